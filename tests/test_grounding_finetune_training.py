"""How long a run goes on, and where it tells of itself; recipes, and what overrides them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import lightning
import pytest
import yaml
from finetune_runs import SIZES, rows, settings, tuned
from kilogram_fixture import write_kilogram
from lightning.pytorch.loggers import CSVLogger
from photo_fixture import write_coco, write_flickr, write_touchdown
from released_files import write_tokenizers
from test_probe_cli import run

from grounding.checkpoint import find_checkpoint, load_checkpoint
from grounding.errors import BadInput, RunFailed
from grounding.finetune import module, trainer
from grounding.finetune.ignored import check_heeded
from grounding.finetune.recipes import RECIPES, read_recipe, settings_from
from grounding.finetune.run import finetune

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


def steps_of(out) -> int:
    return load_checkpoint(out).info["training"]["steps"]


def test_epochs_count_whole_passes(tmp_path):
    """28 examples are three batches of 8, or one step of two."""
    assert steps_of(tuned(tmp_path / "a", epochs=2, limit_train=28)) == 6
    assert steps_of(tuned(tmp_path / "b", epochs=2, limit_train=28, accumulate=2)) == 2
    with pytest.raises(BadInput, match="accumulate 4 batches of 8 are more than the 28 examples; accepted: fewer"):
        tuned(tmp_path / "c", limit_train=28, accumulate=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accumulate": 2},
            "accumulate 2 batches of 8 are more than the 14 examples that each of 2 processes has of 28",
        ),
        ({"limit_dev": 1}, r"split 'dev' has too few examples for 2 processes \(devices x nodes\): 1; accepted: fewer"),
        ({"limit_train": 1}, "split 'train' has too few examples for 2 processes"),
    ],
)
def test_an_epoch_that_is_empty_for_a_process_is_refused(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        finetune(settings(**{"limit_train": 28, **changes}), tmp_path / "out", device="cpu", devices=2)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_look_at_dev_has_no_best_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *args, **options: None)
    with pytest.raises(RunFailed, match="the run ended at step 0 of 6 without a look at dev: no weights were kept"):
        tuned(tmp_path / "out")


def test_a_run_ends_where_its_figure_no_longer_improves(tmp_path):
    """A learning rate of next to nothing: the second look is no better than the first, nor is the third."""
    out = tuned(tmp_path / "out", steps=40, learning_rate=1e-12, patience=2, ema_decay=0.0, weight_decay=0.0)
    assert steps_of(out) == 6
    assert len([row for row in rows(out) if row["dev/loss"]]) == 3


def test_what_is_printed_says_where_and_why_a_run_ended_and_what_it_learned_from(monkeypatch, capsys, tmp_path):
    words = ["finetune", "--model", "vilt-aligner", "--benchmark", "mini-game", "--limit-train", 16, "--limit-dev", 4]
    words += [word for name, value in SIZES["vilt-aligner"].items() for word in ("--config", f"{name}={value}")]
    words += ["--batch-size", 8, "--evaluate-every", 1, "--steps", 9, "--learning-rate", 1e-12, "--ema-decay", 0]
    words += ["--patience", 2, "--weight-decay", 0, "--grounding-fraction", 0.5, "--out", tmp_path / "out"]
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    counts = load_checkpoint(tmp_path / "out").info["training"]["annotations"]
    assert "best step: 1 of 3" in lines
    assert "stopped at step 3 of 9: dev/accuracy was no better after step 1 (patience 2)" in lines
    assert f"learned from {counts['learned']} of {counts['phrases']} annotated phrases" in lines


def test_the_best_may_be_that_of_the_lowest_loss(tmp_path):
    out = tuned(tmp_path / "out", monitor="dev/loss", steps=8, learning_rate=1e-2)
    losses = {int(row["step"]) + 1: float(row["dev/loss"]) for row in rows(out) if row["dev/loss"]}
    training = load_checkpoint(out).info["training"]
    assert training["best_step"] == min(losses, key=losses.__getitem__)
    assert training["dev/loss"] == pytest.approx(min(losses.values()), rel=1e-4)


def test_loggers_are_those_asked_for(tmp_path, monkeypatch):
    out = finetune(settings(steps=1), tmp_path / "out", device="cpu", loggers=["csv"])
    assert sorted(path.name for path in (out / "logs").rglob("*") if path.is_file()) == ["hparams.yaml", "metrics.csv"]
    assert yaml.safe_load((out / "logs" / "hparams.yaml").read_text())["learning_rate"] == settings().learning_rate
    with pytest.raises(BadInput, match="logger 'comet' is unknown; accepted: csv, tensorboard, wandb"):
        finetune(settings(steps=1), tmp_path / "two", loggers=["comet"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match="logger 'wandb' needs pip install wandb"):
        finetune(settings(steps=1), tmp_path / "three", device="cpu", loggers=["wandb"])
    assert not (tmp_path / "three").exists()


def test_the_learning_rate_and_the_norm_of_the_gradient_are_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOG_EVERY", 2)
    monkeypatch.setattr(trainer, "LOG_EVERY", 2)
    out = tuned(tmp_path / "out", steps=4, warmup=2, schedule="linear", learning_rate=0.01, clip=1e-6)
    logged = [row for row in rows(out) if row["train/learning_rate"]]
    assert [float(row["train/learning_rate"]) for row in logged] == pytest.approx([0.01, 0.005])  # the 2nd, the 4th
    assert all(float(row["train/gradient_norm"]) > 1e-3 for row in logged)  # before it is clipped


def test_a_page_of_weights_and_biases_goes_on(tmp_path, monkeypatch):
    """Its library is not needed here: what it is given is."""
    given = []
    monkeypatch.setattr(trainer, "find_spec", lambda name: name)
    monkeypatch.setattr(
        trainer, "WandbLogger", lambda **values: given.append(values) or CSVLogger(tmp_path, "page", version="")
    )
    for out in ("a", "a", "b"):
        trainer._loggers(("wandb",), tmp_path / out, 0)
    first, again, other = (values["id"] for values in given)
    assert first == again != other
    assert {values["resume"] for values in given} == {"allow"}


def test_a_warm_up_as_long_as_the_run_is_told(tmp_path):
    with pytest.warns(UserWarning, match="warmup 200 is longer than the run of 2 steps: the learning rate only"):
        tuned(tmp_path / "out", steps=2, warmup=200)
    with warnings.catch_warnings(record=True) as found:
        tuned(tmp_path / "two", steps=2, warmup=1)
    assert not [warning for warning in found if "warmup" in str(warning.message)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": "dev/accuracy", "task": False}, "monitor 'dev/accuracy' needs the task"),
        ({"monitor": "loss"}, "monitor 'loss' is unknown; accepted: dev/accuracy, dev/pointing, dev/loss"),
        ({"schedule": "step"}, "schedule 'step' is unknown; accepted: cosine, linear"),
        ({"accumulate": 0}, "accumulate 0 is too small"),
        ({"learning_rate_text": 0.0}, "learning_rate_text 0.0 is not above 0"),
        ({"beta2": 1.0}, "beta2 1.0 is outside 0..1"),
        ({"grounding_fraction": 2.0}, "grounding_fraction 2.0 is outside 0..1"),
        ({"budget": "exact"}, "budget 'exact' is unknown; accepted: corrected, paper"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(BadInput, match=message):
        settings(**changes)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_one_of_settings(name):
    chosen = settings_from(read_recipe(name), name)
    assert chosen.model in ("vilt-aligner", "mdetr")
    assert all(getattr(chosen, field) == value for field, value in RECIPES[name].items())


@pytest.mark.parametrize("name", ["mini-game-vilt-aligner", "mini-game-mdetr"])
def test_recipes_of_the_miniature_take_a_step(name, tmp_path):
    values = {**read_recipe(name), "steps": 1, "batch_size": 2, "limit_train": 4, "limit_dev": 2}
    assert steps_of(finetune(settings_from(values, name), tmp_path / "out", device="cpu")) == 1


def real_benchmark(name: str, root: Path) -> Path:
    """A few examples of a benchmark in its published format."""
    if name == "touchdown-sdr":
        return write_touchdown(root, splits=("train", "tune", "dev"))
    if name == "flickr30k":
        return write_flickr(root)
    if name == "kilogram":
        return write_kilogram(root)
    for split in ("train", "dev"):
        write_coco(root, split)
    return root


@pytest.mark.parametrize("name", [name for name in RECIPES if "mini-game" not in name])
def test_recipes_of_the_study_take_a_step(name, tmp_path):
    """On files in the published formats, with narrow models; in fp32, which a CPU has."""
    recipe = read_recipe(name)
    values = {
        **recipe,
        **{"root": str(real_benchmark(recipe["benchmark"], tmp_path / "data")), "precision": "fp32"},
        **{"tokenizer": str(write_tokenizers(tmp_path)[recipe["model"]]), "size": "miniature"},
        **{"config": {**SIZES[recipe["model"]], **recipe.get("config", {})}, "batch_size": 2, "epochs": 1},
        **{"limit_train": 2, "limit_dev": 1},
    }
    assert steps_of(finetune(settings_from(values, name), tmp_path / "out", device="cpu")) == 1


def test_the_command_line_wins_over_a_recipe(monkeypatch, capsys, tmp_path):
    path = tmp_path / "own.yaml"
    values = {"model": "vilt-aligner", "benchmark": "mini-game", "epochs": 9, "config": SIZES["vilt-aligner"]}
    path.write_text(json.dumps({**values, "limit_train": 16, "limit_dev": 4, "batch_size": 8, "seed": 5}))
    words = ["finetune", "--recipe", path, "--steps", 1, "--config", "depth=2", "--out", tmp_path / "out", "--json"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert found["config"] == {**SIZES["vilt-aligner"], "depth": 2}
    assert {name: found[name] for name in ("steps", "epochs", "seed", "batch_size")} == {
        **{"steps": 1, "epochs": None, "seed": 5, "batch_size": 8}
    }
    code, _, err = run(monkeypatch, capsys, "finetune", "--model", "mdetr", "--out", tmp_path / "two")
    assert code == 2
    assert "setting 'benchmark' is missing" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--init vilt-aligner-pretrained --size base",
            "size 'base' has no effect: init 'vilt-aligner-pretrained' brings",
        ),
        (
            "--learning-rate-backbone 1e-5",
            "learning_rate_backbone 1e-05 has no effect: it is of mdetr, and model is 'vilt",
        ),
        ("--no-auxiliary", "auxiliary False has no effect: it is of mdetr"),
        ("--no-grounding --grounding-fraction 0.1", "grounding_fraction 0.1 has no effect: the grounding loss is off"),
        ("--no-grounding --jitter-iou 0.5", "jitter_iou 0.5 has no effect: the grounding loss is off"),
        ("--no-task --task-weight 2", "task_weight 2.0 has no effect: the task is off"),
        ("--steps 3 --epochs 2", "steps 3 has no effect: epochs 2 says how long"),
    ],
)
def test_what_is_said_and_has_no_effect_is_refused(monkeypatch, capsys, tmp_path, words, message):
    given = ["finetune", "--model", "vilt-aligner", "--benchmark", "mini-game", "--out", tmp_path / "out"]
    code, out, err = run(monkeypatch, capsys, *given, *words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_recipe_has_numbers_as_yaml_and_json_write_them(tmp_path):
    (tmp_path / "a.yaml").write_text("{learning_rate: 1e-3, warmup: 2E2, clip: .5e+0, train_split: 1e}")
    assert read_recipe(str(tmp_path / "a.yaml")) == {
        "learning_rate": 0.001, "warmup": 200.0, "clip": 0.5, "train_split": "1e"
    }  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps({"learning_rate": 1e-5, "steps": 3}))
    assert read_recipe(str(tmp_path / "b.json")) == {"learning_rate": 1e-5, "steps": 3}


def test_a_recipe_may_hold_what_has_no_effect_in_this_run():
    chosen = settings(init="somewhere", config={}, grounding=False, grounding_fraction=0.1)
    assert check_heeded({"init", "grounding"}, chosen) is None
    with pytest.raises(BadInput, match=r"grounding_fraction 0\.1 has no effect"):  # said for this run
        check_heeded({"init", "grounding", "grounding_fraction"}, chosen)


@pytest.mark.parametrize("recipe", ["flickr30k-mdetr", "mdetr-pretraining", "flickr30k-vilt-aligner"])
def test_a_recipe_starts_from_a_checkpoint_with_the_sizes_that_this_brings(recipe, monkeypatch, capsys, tmp_path):
    model = str(read_recipe(recipe)["model"])
    root = real_benchmark(str(read_recipe(recipe)["benchmark"]), tmp_path / "data")
    words = ["finetune", "--recipe", recipe, "--init", f"{model}-pretrained", "--root", root, "--epochs", 1]
    words += ["--precision", "fp32", "--tokenizer", find_checkpoint(f"{model}-pretrained") / "tokenizer.json", "--json"]
    words += ["--batch-size", 2, "--limit-train", 2, "--limit-dev", 1]
    code, _, err = run(monkeypatch, capsys, *words, "--config", "candidate_size=384", "--out", tmp_path / "refused")
    assert (code, "config candidate_size: init" in err) == (2, True)
    code, _, err = run(monkeypatch, capsys, *words, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert load_checkpoint(tmp_path / "out").model.config == load_checkpoint(f"{model}-pretrained").model.config


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"model": "mdetr", "benchmark": "mini-game", "steps": 3, "config": SIZES["mdetr"]}))
    assert settings_from(read_recipe(str(path)), "own").steps == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: mdetr\nstep: 3", "own: setting 'step' is unknown; accepted: model, benchmark"),
        ("model: mdetr\nbenchmark: mini-game\nsteps: many", "own: setting 'steps' is 'many'; accepted: int"),
        ("model: mdetr\nbenchmark: mini-game\nsteps: true", "own: setting 'steps' is True; accepted: int"),
        ("model: mdetr", "own: setting 'benchmark' is missing"),
        ("- mdetr", "holds a list; accepted: names and values"),
        ("model: [", "is not YAML"),
    ],
)
def test_recipes_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        settings_from(read_recipe(str(path)), "own")
    with pytest.raises(BadInput, match="recipe 'nothing' is unknown; accepted: touchdown-sdr-vilt-aligner"):
        read_recipe("nothing")
