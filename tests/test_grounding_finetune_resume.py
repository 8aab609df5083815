"""Runs that were stopped: by the power, by Ctrl-C, after the last step; and what may not differ when they go on."""

from __future__ import annotations

import json
import shutil
import signal
from typing import Any

import pytest
import torch
from finetune_runs import SIZES, interrupt, rows, same, settings, tuned, weights

from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput, RunFailed
from grounding.finetune import run as run_module
from grounding.finetune.module import FinetuneModule
from grounding.finetune.run import finetune

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.mark.parametrize(("model", "at"), [("vilt-aligner", 1), ("vilt-aligner", 4), ("vilt-aligner", 5), ("mdetr", 5)])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(tmp_path, monkeypatch, model, at):
    """Three batches an epoch and validation every second step: every resumption is inside an epoch."""
    changes = {"steps": 7, "limit_train": 28, "learning_rate": 3e-3}
    whole = tuned(tmp_path / "whole", model, **changes)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "broken", model, **changes)
    assert not (tmp_path / "broken" / "config.json").exists()
    resumed = tuned(tmp_path / "broken", model, **changes)
    assert same(weights(resumed), weights(whole))
    last = [torch.load(out / "states" / "last.ckpt", weights_only=True) for out in (whole, resumed)]
    assert [state["global_step"] for state in last] == [7, 7]  # validated after the last step too, which is odd
    assert same(*(state["current_model_state"] for state in last))
    assert (
        load_checkpoint(resumed).info["training"]["best_step"] == load_checkpoint(whole).info["training"]["best_step"]
    )
    steps = [int(row["step"]) for row in rows(resumed) if row["dev/accuracy"]]
    assert sorted(set(steps)) == [1, 3, 5, 6]  # nothing that was logged before the interruption is lost


def test_the_seconds_of_a_run_are_those_of_all_its_sittings(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "out")
    last = tmp_path / "out" / "states" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["callbacks"]["Timer"]["time_elapsed"]["train"] = 1000.0
    torch.save(state, last)
    assert 1000 <= load_checkpoint(tuned(tmp_path / "out")).info["training"]["seconds"] < 1500


@pytest.mark.filterwarnings("error:The dirpath has changed")
def test_a_run_whose_folder_was_moved_still_knows_its_best(tmp_path, monkeypatch):
    """The first look at dev, before the move, is the best; the looks after it are worse."""
    figure = {2: 0.75, 4: 0.25, 6: 0.5}
    log = FinetuneModule.log

    def planted(self: FinetuneModule, name: str, value: Any, **options: Any) -> None:
        log(self, name, torch.tensor(figure[self.global_step]) if name == "dev/accuracy" else value, **options)

    monkeypatch.setattr(FinetuneModule, "log", planted)
    whole = tuned(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "before")
    resumed = tuned((tmp_path / "before").rename(tmp_path / "after"))
    for out in (whole, resumed):
        training = load_checkpoint(out).info["training"]
        assert (training["best_step"], training["dev/accuracy"]) == (2, 0.75)
        assert sorted(path.name for path in (out / "states").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert same(weights(resumed), weights(whole))
    assert not (tmp_path / "before").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_run_that_is_told_to_stop_keeps_its_last_step(tmp_path, at, accumulate):
    """Looks at dev after every second step, an epoch of five batches; told at one of these, it stops a step later."""
    changes = {"steps": 7, "limit_train": 42, "accumulate": accumulate}
    whole = tuned(tmp_path / "whole", **changes)

    def stop(done: int, total: int | None, doing: str) -> None:
        if total == 7 and done >= at:
            raise RunFailed("the minutes are over")

    with pytest.raises(RunFailed, match="the minutes are over"):
        finetune(settings(**changes), tmp_path / "broken", device="cpu", progress=stop)
    kept = torch.load(tmp_path / "broken" / "states" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == (at if at % 2 else at + 1)
    resumed = tuned(tmp_path / "broken", **changes)
    assert same(weights(resumed), weights(whole))
    last = [torch.load(out / "states" / "last.ckpt", weights_only=True) for out in (whole, resumed)]
    assert [state["global_step"] for state in last] == [7, 7]
    assert same(*(state["current_model_state"] for state in last))
    looks = [[(row["step"], row["dev/loss"]) for row in rows(out) if row["dev/loss"]] for out in (whole, resumed)]
    assert looks[0] == looks[1]


@pytest.mark.parametrize("at", [2, 3])
def test_random_numbers_and_accumulated_batches_go_on_too(tmp_path, monkeypatch, at):
    """Dropout, and an epoch of five batches, which makes two steps."""
    changes = {"steps": 5, "limit_train": 42, "accumulate": 2, "config": {**SIZES["vilt-aligner"], "dropout": 0.3}}
    whole = tuned(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "broken", **changes)
    torch.manual_seed(99)  # of no matter
    resumed = tuned(tmp_path / "broken", **changes)
    assert same(weights(resumed), weights(whole))
    last = [torch.load(out / "states" / "last.ckpt", weights_only=True) for out in (whole, resumed)]
    assert [state["global_step"] for state in last] == [5, 5]
    assert same(*(state["current_model_state"] for state in last))


def test_ctrl_c_ends_a_run_as_it_ends_any_program(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        with monkeypatch.context() as patch:
            patch.setattr(FinetuneModule, "validation_step", lambda *args: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                tuned(tmp_path / "out")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tuned(tmp_path / "out") / "config.json").exists()


def test_other_settings_are_refused_with_both_values(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "out")
    before = (tmp_path / "out" / "settings.json").read_bytes()
    with pytest.raises(BadInput) as raised:
        tuned(tmp_path / "out", steps=9)
    assert str(raised.value) == (
        f"out '{tmp_path / 'out'}' holds a run with steps 6, not 9; accepted: the same settings, or another folder"
    )
    with pytest.raises(BadInput, match=r"holds a run with config .*, not "):
        tuned(tmp_path / "out", config={**SIZES["vilt-aligner"], "depth": 2})
    assert (tmp_path / "out" / "settings.json").read_bytes() == before
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(BadInput, match=r"settings\.json is not JSON"):
        tuned(tmp_path / "out")


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "out")
    path = tmp_path / "out" / "settings.json"
    path.write_text(json.dumps({name: v for name, v in json.loads(path.read_text()).items() if name != "skip_bad"}))
    with pytest.raises(BadInput, match="holds a run with skip_bad False, not True"):
        tuned(tmp_path / "out", skip_bad=True)
    assert (tuned(tmp_path / "out") / "config.json").exists()


@pytest.mark.parametrize("kept", [0, 1, 1000, 20_000, -1, None])
def test_a_state_that_cannot_be_read_is_named_with_what_to_do(tmp_path, monkeypatch, kept):
    """Broken off after so many bytes, or another file altogether."""
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(ConnectionError):
            tuned(tmp_path / "out")
    states = tmp_path / "out" / "states"
    last = states / "last.ckpt"
    if kept is None:
        torch.save({"weights": torch.zeros(3)}, last)
    else:
        last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(BadInput) as raised:
        tuned(tmp_path / "out")
    assert str(raised.value) == (
        f"state {str(last)!r} cannot be read: it breaks off, or is no run's; accepted: a whole one, or none: "
        f"remove {str(states)!r}, and the same command begins again"
    )
    shutil.rmtree(states)
    assert (tuned(tmp_path / "out") / "config.json").exists()


def test_a_run_that_fails_after_training_only_has_to_finish(tmp_path, monkeypatch):
    whole = tuned(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "tune", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tuned(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneModule, "training_step", lambda *args: 1 / 0)  # no step is taken again
        out = tuned(tmp_path / "out")
    assert same(weights(out), weights(whole))
    training, expected = (load_checkpoint(path).info["training"] for path in (out, whole))
    assert training["dev/accuracy"] == expected["dev/accuracy"]
    assert training["best_step"] == expected["best_step"]
