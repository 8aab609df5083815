"""Fine-tuning from end to end: what is left in the folder, refusals, what is skipped, broken losses."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import SIZES, rows, same, settings, tuned, weights
from kilogram_fixture import write_kilogram
from small_models import byte_level

from grounding.benchmarks.kilogram import KiloGram
from grounding.benchmarks.miniature import MiniatureGame
from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput
from grounding.examples import Example, Phrase
from grounding.finetune import run as run_module
from grounding.finetune.module import FinetuneModule
from grounding.finetune.objectives import objective_for
from grounding.finetune.run import finetune
from grounding.finetune.settings import FinetuneSettings
from grounding.finetune.trainer import as_meant

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each model."""
    folder = tmp_path_factory.mktemp("runs")
    return {model: tuned(folder / model, model) for model in SIZES}


@pytest.mark.parametrize("model", list(SIZES))
def test_a_run_leaves_a_checkpoint_logs_and_its_settings(finished, model):
    out = finished[model]
    assert json.loads((out / "settings.json").read_text())["model"] == model
    assert list((out / "logs").glob("events.out.tfevents.*"))
    logged = rows(out)
    assert [int(row["step"]) for row in logged if row["dev/accuracy"]] == [1, 3, 5]  # after steps 2, 4 and 6
    losses = {"vilt-aligner": ["phrases", "task"], "mdetr": ["boxes", "contrastive", "giou", "task", "tokens"]}[model]
    assert sorted(name for name in logged[0] if name.startswith("train/")) == sorted(
        [f"train/{name}" for name in [*losses, "loss", "learning_rate"]]
    )
    loaded = load_checkpoint(out)
    training = loaded.info["training"]
    best = max(float(row["dev/accuracy"]) for row in logged if row["dev/accuracy"])
    assert training["dev/accuracy"] == pytest.approx(best)
    assert training["best_step"] in (2, 4, 6)
    assert training["settings"] == json.loads((out / "settings.json").read_text())
    threshold = loaded.info["threshold"]
    assert threshold is None if model == "mdetr" else threshold["split"] == "tune"
    examples = MiniatureGame().load("dev", 2)
    with torch.inference_mode():
        batch = loaded.model.preprocess(examples)
        assert len(loaded.model.predict(batch, loaded.model(batch))) == 2


def test_training_leaves_the_process_as_it_was(finished, tmp_path):
    before = torch.get_float32_matmul_precision(), list(warnings.filters)
    tuned(tmp_path / "once", steps=1)
    assert (torch.get_float32_matmul_precision(), list(warnings.filters)) == before
    with as_meant():
        assert torch.get_float32_matmul_precision() == "high"
    assert (torch.get_float32_matmul_precision(), list(warnings.filters)) == before


def test_the_same_settings_give_the_same_weights(finished, tmp_path):
    assert same(weights(tuned(tmp_path / "again")), weights(finished["vilt-aligner"]))
    assert not same(weights(tuned(tmp_path / "other", seed=1)), weights(finished["vilt-aligner"]))


def test_the_weights_are_averaged_ones_of_the_best_step(finished):
    out = finished["vilt-aligner"]
    states = {name: torch.load(out / "states" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")}
    saved = {f"model.{name}": value for name, value in weights(out).items()}
    assert same(saved, states["best"]["state_dict"])
    assert states["best"]["global_step"] == load_checkpoint(out).info["training"]["best_step"]
    assert states["last"]["global_step"] == 6
    assert not same(states["last"]["state_dict"], states["last"]["current_model_state"])


def test_the_best_step_is_the_one_of_the_highest_figure(tmp_path, monkeypatch):
    figures = {2: 0.2, 4: 0.9, 6: 0.5}
    averages = {}

    def validated(self: FinetuneModule, batch: Any, index: int) -> None:
        averages[self.global_step] = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.log("dev/accuracy", figures[self.global_step], batch_size=4)

    monkeypatch.setattr(FinetuneModule, "validation_step", validated)
    out = tuned(tmp_path / "out")
    training = load_checkpoint(out).info["training"]
    assert training["best_step"] == 4
    assert training["dev/accuracy"] == pytest.approx(0.9)
    assert same(weights(out), averages[4])  # what was saved is what was validated: the averaged weights
    assert not same(averages[4], averages[6])


def test_the_average_is_exponential(tmp_path):
    """Two steps at decay 0.25: a quarter of the first step's weights and three of the second's."""
    state = {}
    for steps, ema_decay in ((1, 0.25), (2, 0.25), (2, 0.0)):
        out = tmp_path / f"{steps}-{ema_decay}"
        changes = {"warmup": 0, "evaluate_every": 1, "learning_rate": 1e-2}
        tuned(out, steps=steps, ema_decay=ema_decay, **changes)
        state[steps, ema_decay] = torch.load(out / "states" / "last.ckpt", weights_only=True)
    first, second = (state[steps, 0.25]["current_model_state"] for steps in (1, 2))
    assert same(state[2, 0.0]["state_dict"], second)  # averaging changes nothing about training
    for name, average in state[2, 0.25]["state_dict"].items():
        if average.is_floating_point():
            torch.testing.assert_close(average, 0.25 * first[name] + 0.75 * second[name])
    name = "model.transformer.norm.weight"
    assert (first[name] - second[name]).abs().max() > 1e-3


@pytest.mark.parametrize("model", list(SIZES))
def test_without_grounding_no_region_is_looked_at(tmp_path, monkeypatch, model):
    example = MiniatureGame.example

    def bare(self: Any, split: str, index: int) -> Example:
        found = example(self, split, index)
        return replace(found, phrases=tuple(Phrase(p.id, p.type, p.spans, ()) for p in found.phrases))

    plain = tuned(tmp_path / "plain", model, grounding=False, ema_decay=0.0)
    monkeypatch.setattr(MiniatureGame, "example", bare)
    blind = tuned(tmp_path / "blind", model, grounding=False, ema_decay=0.0)
    states = [torch.load(out / "states" / "last.ckpt", weights_only=True)["state_dict"] for out in (plain, blind)]
    assert same(*states)
    logged = {name for name in rows(plain)[0] if name.startswith("train/")}
    assert logged == {"train/task", "train/loss", "train/learning_rate"}
    assert load_checkpoint(blind).info["threshold"] is None
    with pytest.raises(BadInput, match="split 'train' has no annotated regions, but the grounding loss is on"):
        tuned(tmp_path / "grounded", model)
    assert not (tmp_path / "grounded").exists()


def test_grounding_alone_keeps_the_best_by_pointing(tmp_path):
    out = tuned(tmp_path / "out", task=False, train_split="pretrain")
    training = load_checkpoint(out).info["training"]
    assert "dev/accuracy" not in training
    pointing = [float(row["dev/pointing"]) for row in rows(out) if row["dev/pointing"]]
    assert training["dev/pointing"] == pytest.approx(max(pointing))


def test_init_keeps_sizes_tokenizer_and_weights(finished, tmp_path):
    init = finished["vilt-aligner"]
    out = tuned(tmp_path / "out", init=str(init), config={}, learning_rate=1e-9, steps=1, grounding=False)
    before, after = load_checkpoint(init), load_checkpoint(out)
    assert after.model.config == before.model.config
    assert (init / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    for name, value in before.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], value, atol=1e-6, rtol=0)
    with pytest.raises(BadInput, match=r"config dropout: init '.*' brings its own; accepted: position_grid or none"):
        settings(init=str(init), config={"dropout": 0.1, "position_grid": [24, 4]})
    with pytest.raises(BadInput, match="is for model 'vilt-aligner', not 'mdetr'"):
        tuned(tmp_path / "crossed", "mdetr", init=str(init), config={})
    assert not (tmp_path / "crossed").exists()


def test_folders_that_are_taken_are_refused(finished, tmp_path):
    with pytest.raises(BadInput, match="holds a finished checkpoint; accepted: a new folder, or an interrupted run's"):
        tuned(finished["vilt-aligner"])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(BadInput, match=f"{name}' holds something else than a fine-tuning run"):
            tuned(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "thesis.tex").read_text() == "mine"
    with pytest.raises(BadInput, match=r"file/inside' is not a folder: '.*file' is a file; accepted: "):
        tuned(tmp_path / "file" / "inside")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "mini-gme"}, "benchmark 'mini-gme' is unknown"),
        ({"train_split": "trian"}, "train_split 'trian' is unknown; accepted: pretrain, train"),
        ({"model": "vilt"}, "model 'vilt' is unknown; accepted: vilt-aligner, mdetr"),
        ({"size": "huge"}, "size 'huge' is unknown; accepted: base, miniature"),
        ({"config": {"widht": 3}}, "config: field 'widht' is unknown; accepted: width"),
        ({"config": {"max_text": "long"}}, "config: field 'max_text' is 'long'; accepted: a value like 64"),
        ({"config": {"width": 25}}, "width 25 is not a multiple of heads"),
        ({"init": "nowhere", "config": {}}, "checkpoint 'nowhere' is neither a file, a folder nor bundled"),
        ({"config": {"candidate_size": 30}}, "candidate size 30 is not a multiple of 16"),
        ({"model": "mdetr", "config": {"backbone": "vgg"}}, "backbone 'vgg' is unknown; accepted: small"),
        ({"tokenizer": "gone.json"}, "tokenizer gone.json does not exist"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read_or_written(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(MiniatureGame, "load", lambda *args: pytest.fail("examples are read"))
    wrong = FinetuneSettings(**{**vars(settings()), **changes})
    with pytest.raises(BadInput) as raised:
        finetune(wrong, tmp_path / "out", device="cpu")
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_progress_tells_of_reading_encoding_and_every_step(tmp_path):
    told = []
    changes = {"steps": 3, "limit_train": 12, "batch_size": 4, "config": SIZES["vilt-aligner"]}
    finetune(settings(**changes), tmp_path / "out", device="cpu", progress=lambda *tick: told.append(tick))
    first = [(done, total, doing.split(" ")[0]) for done, total, doing in told if doing.endswith(("train", "dev"))]
    assert first[:14] == [(0, 12, "reading"), *[(n, 12, "reading") for n in range(1, 13)], (0, 4, "reading")]
    assert (12, 12, "checking train") in told
    assert [(done, total) for done, total, doing in told if doing.startswith("train/loss")] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][2] == "tuning the threshold on tune"


@pytest.mark.parametrize("monitor", ["dev/accuracy", "dev/pointing", "dev/loss"])
def test_progress_tells_the_figure_that_the_best_is_chosen_by(tmp_path, monitor):
    told = []
    finetune(settings(monitor=monitor), tmp_path / "out", device="cpu", progress=lambda *tick: told.append(tick))
    assert [monitor in doing for _, _, doing in told if doing.startswith("train/loss")] == [False] * 2 + [True] * 4


def test_skip_bad_trains_on_the_rest_and_lists_what_was_left_out(tmp_path):
    root = write_kilogram(tmp_path / "kilogram", tangrams=48, annotations=2)
    files = sorted((root / "tangrams-svg").glob("*.svg"))
    names = [path.stem for path in files]
    kilogram = {"benchmark": "kilogram", "root": str(root), "benchmark_options": {"candidates": 2}, "steps": 1}
    broken = KiloGram(root).tangrams("train")[0]
    files[names.index(broken)].write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'/>")
    with pytest.raises(BadInput, match=rf"{broken}\.svg"):
        tuned(tmp_path / "out", **kilogram)
    assert not (tmp_path / "out").exists()
    skipped = load_checkpoint(tuned(tmp_path / "out", **kilogram, skip_bad=True)).info["training"]["skipped"]
    assert [item["id"] for item in skipped] == [f"kilogram/train/{broken}"]
    assert f"{broken}.svg" in skipped[0]["reason"]


def test_images_that_cannot_be_opened_are_skipped_too(tmp_path, monkeypatch):
    example = MiniatureGame.example

    def lost(self: Any, split: str, index: int) -> Example:
        found = example(self, split, index)
        return replace(found, images=(tmp_path / "gone.png",) * 6) if (split, index) == ("train", 3) else found

    monkeypatch.setattr(MiniatureGame, "example", lost)
    with pytest.raises(BadInput, match=r"gone\.png does not exist"):
        tuned(tmp_path / "out", steps=1)
    skipped = load_checkpoint(tuned(tmp_path / "out", steps=1, skip_bad=True)).info["training"]["skipped"]
    assert skipped == [
        {"id": "mini-game/train/000003", "reason": f"image {tmp_path / 'gone.png'} does not exist"},
    ]
    monkeypatch.setattr(MiniatureGame, "example", lambda self, split, index: lost(self, "train", 3))
    with pytest.raises(BadInput, match="split 'train' has nothing to offer: all 1 examples were skipped"):
        tuned(tmp_path / "none", steps=1, skip_bad=True, limit_train=1)


def test_the_last_step_is_validated_in_the_middle_of_the_first_epoch(tmp_path):
    out = tuned(tmp_path / "out", steps=3, limit_train=16, batch_size=4)
    assert [int(row["step"]) for row in rows(out) if row["dev/accuracy"]] == [1, 2]  # after steps 2 and 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0 is too small; accepted: 1 or more"),
        ({"evaluate_every": 0}, "evaluate_every 0 is too small"),
        ({"seed": -1}, "seed -1 is too small; accepted: 0 or more"),
        ({"task": False, "grounding": False}, "task and grounding are both off"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 is not above 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan is not above 0 and finite"),
        ({"weight_decay": -1.0}, "weight_decay -1.0 is too small; accepted: 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay nan is not finite; accepted: 0 or more"),
        ({"clip": float("inf")}, "clip inf is not finite"),
        ({"task_weight": float("nan")}, "task_weight nan is not above 0 and finite; without that loss: --no-task"),
        ({"grounding_weight": float("inf")}, "grounding_weight inf is not above 0 and finite"),
        ({"grounding_weight": 0.0}, "grounding_weight 0.0 is not above 0 .*; without that loss: --no-grounding"),
        ({"warmup": float("nan")}, "warmup nan is not finite"),
        ({"warmup": float("-inf")}, "warmup -inf is too small"),
        ({"ema_decay": 1.0}, r"ema_decay 1.0 is outside 0\.\.1"),
        ({"losses": "mean"}, "losses 'mean' is unknown; accepted: corrected, paper"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown; accepted: fp32, bf16, fp16"),
        ({"limit_train": 0}, "limit_train 0 is too small; accepted: 1 or more"),
        ({"limit_dev": 0}, "limit_dev 0 is too small"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is unknown; accepted: auto, cpu, cuda"),
        ({"device": "cpu", "devices": 0}, "devices 0 is too small; accepted: 1 or more"),
        ({"device": "cpu", "workers": -1}, "workers -1 is too small; accepted: 0 or more"),
    ],
)
def test_devices_and_workers_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        finetune(settings(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_losses_are_computed_in_full_precision(monkeypatch, tmp_path):
    seen = []

    def spy(output: Any, batch: Any, targets: Any) -> dict[str, torch.Tensor]:
        seen.append((output.projected_queries.dtype, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
        return objective_for(settings("mdetr"))(output, batch, targets)

    monkeypatch.setattr(run_module, "objective_for", lambda *args: spy)
    tuned(tmp_path / "out", "mdetr", steps=1, precision="bf16")
    assert len(seen) >= 2  # a step, and a look at dev
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_a_tokenizer_that_is_given_is_used_and_fits_the_model(tmp_path):
    byte_level(captions=[e.caption for e in MiniatureGame().load("train", 8)]).save(tmp_path / "bpe.json")
    out = tuned(tmp_path / "out", "mdetr", tokenizer=str(tmp_path / "bpe.json"), steps=1)
    config = load_checkpoint(out).model.config
    assert config.pad_id == 1  # type: ignore[attr-defined]
    assert config.vocabulary >= 300  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_processes_of_the_command_end_together_and_go_on_as_two_alone(tmp_path):
    """The one that writes the checkpoint tunes a threshold first, for which the other has to wait."""
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text("from probe.cli import main\nif __name__ == '__main__':\n    main()\n")
    words = "finetune --model vilt-aligner --benchmark mini-game --init vilt-aligner-pretrained --device cpu --steps 4 "
    words += "--evaluate-every 2 --limit-train 16 --limit-dev 120 --batch-size 4 --warmup 1"
    command = [sys.executable, script, *words.split()]
    done = subprocess.run(
        [*command, "--devices", "2", "--out", out], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint: ") == 1  # of both
    assert load_checkpoint(out).info["threshold"]
    (out / "config.json").unlink()
    alone = subprocess.run([*command, "--out", out], capture_output=True, text=True, timeout=500, check=False)
    assert alone.returncode == 2
    assert "is of 2 processes, not 1 (devices x nodes)" in alone.stderr


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """Without grounding, where many of MDETR's weights have no gradient."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from finetune_runs import finetune, settings\n"
        "if __name__ == '__main__':\n"
        f"    out = Path({str(tmp_path / 'out')!r})\n"
        "    finetune(settings('mdetr', grounding=False, steps=5), out, device='cpu', devices=2)\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=300)
    assert [int(row["step"]) for row in rows(tmp_path / "out") if row["dev/accuracy"]] == [1, 3, 4]
    assert load_checkpoint(tmp_path / "out").model.config.model == "mdetr"
