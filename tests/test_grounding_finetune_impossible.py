"""What cannot be learned or measured is told before training; a loss that is no number, before its state is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from finetune_runs import SIZES, settings, tuned

from grounding.benchmarks.miniature import MiniatureGame
from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput, RunFailed
from grounding.examples import Example, ReferenceGame
from grounding.finetune.module import FinetuneModule
from grounding.finetune.run import finetune

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.mark.parametrize("grounding", [True, False])
def test_a_task_that_does_not_exist_is_refused(tmp_path, grounding):
    """A single picture is the right one by itself: accuracy would be 1 from the first look on, and the best."""
    with pytest.raises(BadInput) as raised:
        tuned(tmp_path / "out", benchmark_options={"difficulty": "single"}, grounding=grounding)
    assert str(raised.value) == (
        "task is on, but no example of split 'train' of 'mini-game' has candidates to choose from; "
        "accepted: grounding alone (--no-task)"
    )
    assert not (tmp_path / "out").exists()
    out = tuned(tmp_path / "out", benchmark_options={"difficulty": "single"}, task=False, steps=1)
    assert "dev/pointing" in load_checkpoint(out).info["training"]


def test_accuracy_of_a_dev_without_a_task_is_refused_before_training(tmp_path, monkeypatch):
    example = MiniatureGame.example

    def single(self: Any, split: str, index: int) -> Example:
        found = example(self, split, index)
        if split != "dev":
            return found
        target = found.target_index
        phrases = tuple(replace(phrase, image_index=0) for phrase in found.phrases)
        return replace(found, images=found.images[target : target + 1], task=ReferenceGame(0), phrases=phrases)

    monkeypatch.setattr(MiniatureGame, "example", single)
    with pytest.raises(BadInput, match="monitor 'dev/accuracy' needs a task, but none of the 4 examples of"):
        tuned(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tuned(tmp_path / "out", monitor="dev/loss", steps=1) / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"task": False}, "a dev (--limit-dev) with some"),
        ({"task": False, "monitor": "dev/loss"}, "a dev (--limit-dev) with some"),
        ({"monitor": "dev/pointing"}, "dev/accuracy or dev/loss, or a dev (--limit-dev) with some"),
    ],
)
def test_a_dev_without_what_is_monitored_is_told_before_training(tmp_path, monkeypatch, changes, accepted):
    example = MiniatureGame.example

    def bare(self: Any, split: str, index: int) -> Example:
        found = example(self, split, index)
        return replace(found, phrases=()) if split == "dev" else found

    monkeypatch.setattr(MiniatureGame, "example", bare)
    with pytest.raises(BadInput) as raised:
        tuned(tmp_path / "out", **changes)
    monitor = changes.get("monitor", "dev/pointing")
    assert str(raised.value) == (
        f"monitor {monitor!r} needs annotated phrases, but the 4 examples of split 'dev' have none; "
        f"accepted: {accepted}"
    )
    assert not (tmp_path / "out").exists()
    assert load_checkpoint(tuned(tmp_path / "out", steps=1)).info["training"]["steps"] == 1


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_half_precision_is_refused_without_a_gpu(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadInput) as raised:
        finetune(settings(precision="fp16"), tmp_path / "out", device=device)
    assert str(raised.value) == (f"precision 'fp16' needs a GPU, but device is {device!r} here; accepted: fp32, bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", list(SIZES))
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_examples(tmp_path, monkeypatch, model):
    step = FinetuneModule.training_step

    def poisoned(self: FinetuneModule, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == 3:
            with torch.no_grad():
                next(p for name, p in self.model.named_parameters() if "position_embeddings" in name).fill_(math.nan)
        return step(self, batch, index)

    monkeypatch.setattr(FinetuneModule, "training_step", poisoned)
    with pytest.raises(RunFailed, match=r"loss is nan at step 3 \(batch of mini-game/train/\d{6}, mini-game/train/"):
        tuned(tmp_path / "out", model)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("model", list(SIZES))
def test_a_loss_of_dev_that_is_not_finite_stops_the_run_before_its_state_is_kept(tmp_path, monkeypatch, model):
    """The steps are good; the weights are broken from the look at dev after step 4 on."""
    look = FinetuneModule.validation_step

    def poisoned(self: FinetuneModule, batch: Any, index: int) -> None:
        if self.global_step == 4:
            with torch.no_grad():
                next(p for name, p in self.model.named_parameters() if "position_embeddings" in name).fill_(math.nan)
        look(self, batch, index)

    monkeypatch.setattr(FinetuneModule, "validation_step", poisoned)
    with pytest.raises(RunFailed) as raised:
        tuned(tmp_path / "out", model)
    states = tmp_path / "out" / "states"
    assert str(raised.value).startswith("dev/loss is nan at step 4 (batch of mini-game/dev/000000, ")
    assert f"; states from before it stay in {str(states)!r}; " in str(raised.value)
    assert not (tmp_path / "out" / "config.json").exists()
    for name in ("best", "last"):
        state = torch.load(states / f"{name}.ckpt", weights_only=True)
        assert state["global_step"] == 2
        assert all(value.isfinite().all() for value in state["state_dict"].values())
