"""The command as a user meets it: help, results, one-line errors and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kilogram_fixture import write_kilogram

import probe.cli as cli
from grounding.predictions import DROPPED

TINY = ["--config", "width=32", "--config", "depth=2", "--config", "heads=2", "--config", "feed_forward=32"]
WRONG = "Invalid value for"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``probe WORDS``."""
    monkeypatch.setattr(sys, "argv", ["probe", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    code = stopped.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small ViLT-Aligner after two steps."""
    folder = tmp_path_factory.mktemp("ckpt") / "tiny"
    words = ["finetune", "--model", "vilt-aligner", "--benchmark", "mini-game", "--out", str(folder), *TINY]
    words += ["--steps", "2", "--batch-size", "4", "--limit-train", "8", "--limit-dev", "8", "--evaluate-every", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["probe", *words, "--json"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert not stopped.value.code
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "finetune",
        "evaluate",
        "extract",
        "sweep",
        "heads",
        "intervene",
        "visualize",
        "export",
        "study",
        "inspect",
        "convert",
        "push",
    ],
)
def test_every_command_has_help_with_an_example(monkeypatch, capsys, name):
    code, out, _ = run(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert f"Example: probe {name}" in " ".join(out.split())


def test_from_a_checkpoint_to_figures(monkeypatch, capsys, checkpoint, tmp_path):
    source = ["--ckpt", checkpoint, "--benchmark", "mini-game", "--limit", 24]
    code, out, _ = run(monkeypatch, capsys, "evaluate", *source, "--out", tmp_path / "evaluation", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["figures"]["accuracy"]["n"] == 24
    assert result == json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    tables = {"examples", "phrases", "settings", "joint", "bars"}
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {
        *(f"{table}.{kind}" for table in tables for kind in ("csv", "parquet")),
        "summary.json",
        "summary.md",
        "figures",
    }
    assert {path.name for path in (tmp_path / "evaluation" / "figures").iterdir()} == {
        f"{chart}.{kind}" for chart in ("task-and-grounding", "success-bars", "correlations") for kind in ("png", "svg")
    }
    folder = tmp_path / "run"
    views = ["--views", "phrase, region,attention"]
    code, out, _ = run(monkeypatch, capsys, "extract", *source, *views, "--out", folder, "--json")
    assert code == 0
    assert json.loads(out)["examples"] == 24
    words = ["sweep", folder, "--probe", "linear", "--sites", "block.1, norm", "--control", "none"]
    code, out, _ = run(monkeypatch, capsys, *words, "--json")
    assert code == 0
    assert {row["site"] for row in json.loads(out)["rows"]} == {"block.1", "norm"}
    assert {row["condition"] for row in json.loads(out)["rows"]} == {"alignment"}
    every = [*words[:4], "--sites", "norm", "--control", "all", "--json"]
    code, _, err = run(monkeypatch, capsys, *every)
    assert code == 2
    assert "holds another sweep: controls is [] there and ['labels'" in err
    code, out, _ = run(monkeypatch, capsys, *every, "--out", tmp_path / "every")
    assert code == 0
    assert "NaN" not in out
    assert "<NA>" not in out
    assert None in [row["validation_loss"] for row in json.loads(out)["rows"]]
    code, out, _ = run(monkeypatch, capsys, *words, "--out", tmp_path / "elsewhere")
    assert code == 0
    assert out.endswith(f"Next: probe visualize {folder} --sweep {tmp_path / 'elsewhere'}\n")
    code, _, err = run(monkeypatch, capsys, "sweep", folder, "--control", "bogus")
    assert code == 2
    names = "labels, position-only, random-model, concatenation, phrase-only, region-only, majority, all, none"
    assert err == f"Error: control 'bogus' is unknown; accepted: {names}\n"
    code, out, _ = run(monkeypatch, capsys, "visualize", folder, "--count", 1)
    assert code == 0
    drawn = [Path(line) for line in out.split()]
    assert all(path.is_file() for path in drawn)
    assert {path.suffix for path in drawn} == {".png", ".svg"}


def test_a_split_of_which_nothing_is_left_says_why(monkeypatch, capsys, checkpoint, tmp_path):
    root = write_kilogram(tmp_path / "kilogram", tangrams=20, annotations=2)
    source = ["--benchmark", "kilogram", "--root", root, "--option", "candidates=99", "--skip-bad"]
    for command in (
        ["evaluate", "--ckpt", checkpoint],
        ["extract", "--ckpt", checkpoint, "--out", tmp_path / "out"],
        ["finetune", "--model", "vilt-aligner", "--out", tmp_path / "out"],
    ):
        code, out, err = run(monkeypatch, capsys, *command, *source)
        split = "train" if command[0] == "finetune" else "dev"
        assert (code, out) == (2, "")
        assert f"split '{split}' of 'kilogram' has no examples: 0 were skipped and " in err
        assert "left out; first: fewer than 98 distractors of " in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["finetune", "--model", "vilt-aligner", "--benchmark", "mini-game", "--out", "{}/x"],
        ["evaluate", "--ckpt", "mdetr-task", "--benchmark", "mini-game", "--out", "{}/x"],
        ["evaluate", "--ckpt", "mdetr-task", "--benchmark", "mini-game", "--export-predictions", "{}/x.json"],
        ["extract", "--ckpt", "mdetr-task", "--benchmark", "mini-game", "--limit", "4", "--out", "{}/x"],
        ["convert", "mdetr-task", "{}/x"],
        ["data", "convert", "mini-game", "--split", "dev", "--out", "{}/x"],
        ["data", "show", "mini-game", "mini-game/dev/000003", "--out", "{}/x.png"],
        ["demo", "--out", "{}/x"],
    ],
)
def test_a_file_in_the_place_of_an_output_folder_is_one_line(monkeypatch, capsys, tmp_path, words):
    (tmp_path / "file").write_text("mine")
    code, out, err = run(monkeypatch, capsys, *(word.format(tmp_path / "file") for word in words))
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert str(tmp_path / "file") in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_runs_sweep_is_not_drawn(monkeypatch, capsys, checkpoint, tmp_path):
    source = ["extract", "--ckpt", checkpoint, "--benchmark", "mini-game", "--sites", "block.1"]
    for name, limit in (("one", 4), ("other", 20)):
        assert run(monkeypatch, capsys, *source, "--limit", limit, "--out", tmp_path / name)[0] == 0
    words = ["sweep", tmp_path / "other", "--probe", "linear", "--control", "none"]
    assert run(monkeypatch, capsys, *words)[0] == 0
    code, _, err = run(monkeypatch, capsys, "visualize", tmp_path / "one", "--sweep", tmp_path / "other" / "sweep")
    assert code == 2
    assert "accepted: a sweep of this run" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "one" / "figures").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmark", "mini-gme"], "benchmark 'mini-gme' is unknown; accepted: kilogram, touchdown-sdr, "),
        (["--split", "dve"], "split 'dve' is unknown; accepted: pretrain, train, tune, dev, test"),
        (["--sites", "blck.1"], "site 'blck.1' is unknown; accepted: embedding, block.0"),
        (["--sites", ""], "site '' is unknown; accepted: embedding, block.0"),
        (["--views", ""], "view '' is unknown; accepted: phrase, region, attention, tokens"),
        (["--views", "phrase,regoin"], "view 'regoin' is unknown; accepted: phrase, region, attention, tokens"),
        (["--limit", "0"], "limit 0 is too small"),
        (["--batch-size", "0"], "batch_size 0 is too small"),
        (["--option", "difficulty"], "--option 'difficulty' is not of the form KEY=VALUE"),
        (["--option", "colour=red"], "takes no option 'colour'; accepted: difficulty"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--dtype", "int8"], "int8"),
        (["--ckpt", "nowhere"], "checkpoint 'nowhere' is neither a file, a folder nor bundled"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(monkeypatch, capsys, checkpoint, tmp_path, words, message):
    source = ["--ckpt", checkpoint, "--benchmark", "mini-game", "--limit", "4", "--out", tmp_path / "run"]
    code, out, err = run(monkeypatch, capsys, "extract", *source, *words)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_an_output_folder_with_another_run_is_left_alone(monkeypatch, capsys, checkpoint, tmp_path):
    source = ["extract", "--ckpt", checkpoint, "--benchmark", "mini-game", "--out", tmp_path / "run"]
    assert run(monkeypatch, capsys, *source, "--limit", 4)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, _, err = run(monkeypatch, capsys, *source, "--limit", 5)
    assert code == 2
    assert "4" in err
    assert "5" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_checkpoint_for_another_model_is_refused(monkeypatch, capsys, checkpoint, tmp_path):
    words = ["finetune", "--model", "mdetr", "--init", checkpoint, "--benchmark", "mini-game", "--out", tmp_path / "x"]
    code, _, err = run(monkeypatch, capsys, *words, "--limit-train", 8, "--limit-dev", 8)
    assert code == 2
    assert "is for model 'vilt-aligner', not 'mdetr'" in err
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_takes_another_position_table_and_no_other_size(monkeypatch, capsys, checkpoint, tmp_path):
    words = ["finetune", "--model", "vilt-aligner", "--init", checkpoint, "--benchmark", "mini-game", "--out"]
    small = ["--limit-train", 8, "--limit-dev", 4, "--batch-size", 4, "--steps", 2, "--device", "cpu", "--json"]
    for config, message in {
        "depth=3": f"config depth: init {str(checkpoint)!r} brings its own; accepted: position_grid or none",
        "position_grid=[0,4]": "vilt-aligner configuration: position_grid (0, 4); accepted: 1 or more",
    }.items():
        code, out, err = run(monkeypatch, capsys, *words, tmp_path / "x", *small, "--config", config)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "x").exists()
    code, out, _ = run(monkeypatch, capsys, *words, tmp_path / "x", *small, "--config", "position_grid=[12,4]")
    assert code == 0
    assert json.loads(out)["checkpoint"] == str(tmp_path / "x")
    assert json.loads((tmp_path / "x" / "config.json").read_text())["config"]["position_grid"] == [12, 4]


def test_skip_bad_goes_on_and_lists_what_was_left_out(monkeypatch, capsys, checkpoint, tmp_path):
    root = tmp_path / "kilogram"
    write_kilogram(root, tangrams=48, annotations=2)
    broken = sorted((root / "tangrams-svg").glob("*.svg"))[0]
    broken.write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'/>")
    failed = 0
    for split in ("train", "dev", "test"):
        words = ["extract", "--ckpt", checkpoint, "--benchmark", "kilogram", "--root", root, "--split", split]
        words += ["--option", "candidates=3", "--sites", "block.0"]
        code, _, err = run(monkeypatch, capsys, *words, "--out", tmp_path / split)
        failed += code == 2 and broken.name in err and not (tmp_path / split).exists()
        code, out, _ = run(monkeypatch, capsys, *words, "--skip-bad", "--out", tmp_path / f"{split}-skipping")
        assert code == 0
        assert ("skipped" in out) == (broken.name in err)
    assert failed == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bogus"], "No such command 'bogus'; help: probe --help"),
        (["evaluate", "--ckpt", "x"], "Missing option '--benchmark'; help: probe evaluate --help"),
        (["evaluate", "--benchmark", "mini-game"], "accepted: either --ckpt or --predictions, once or several times"),
        (["extract", "--bogus"], "No such option: --bogus (Possible options: --out); help: probe extract --help"),
        (["sweep"], "Missing argument 'run'; help: probe sweep --help"),
        (
            ["finetune", "--steps", "x"],
            f"{WRONG} '--steps': 'x'; accepted: a valid integer; help: probe finetune --help",
        ),
        (
            ["demo", "--examples=1.5"],
            f"{WRONG} '--examples': '1.5'; accepted: a valid integer; help: probe demo --help",
        ),
        (
            ["finetune", "--grounding-fraction", "abc"],
            f"{WRONG} '--grounding-fraction': 'abc'; accepted: a valid number; help: probe finetune --help",
        ),
        (["finetune", "--task=maybe"], "Option '--task' does not take a value; help: probe finetune --help"),
        (["evaluate", "--limit"], "Option '--limit' requires an argument; help: probe evaluate --help"),
        (["--version=3"], "Option '--version' does not take a value; help: probe --help"),
    ],
)
def test_wrong_usage_is_one_line_with_exit_code_2(monkeypatch, capsys, words, message):
    assert run(monkeypatch, capsys, *words) == (2, "", f"Error: {message}\n")


def test_without_a_command_the_help_is_shown(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys)
    assert (code, err) == (2, "")
    assert "Usage: probe" in out


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*words: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grounding.evaluate_checkpoint.evaluate_checkpoint", interrupted)
    code, out, err = run(monkeypatch, capsys, "evaluate", "--ckpt", "x", "--benchmark", "mini-game")
    assert (code, out) == (130, "")
    assert err == "Interrupted; what is complete is kept, the same command goes on from there.\n"


def test_fine_tuning_lists_what_it_skipped(monkeypatch, capsys, tmp_path):
    root = write_kilogram(tmp_path / "kilogram", tangrams=48, annotations=2)
    for path in (root / "tangrams-svg").glob("made-1*.svg"):
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'/>")
    words = ["finetune", "--model", "vilt-aligner", "--benchmark", "kilogram", "--root", root, *TINY, "--skip-bad"]
    words += ["--option", "candidates=2", "--steps", "1", "--batch-size", "4", "--device", "cpu", "--data-seed", "3"]
    code, out, err = run(monkeypatch, capsys, *words, "--out", tmp_path / "out")
    assert code == 0
    lines = out.splitlines()
    assert "skipped kilogram/train/made-1" in out
    assert "skipped kilogram/dev/made-1" in out
    assert lines[-1].endswith(f"--option candidates=2 --root {root} --data-seed 3 --skip-bad")
    assert "Epoch" not in out + err


def test_help_does_not_import_torch():
    script = (
        "import sys; sys.argv = ['probe', '--help']\ntry:\n import probe.cli; probe.cli.main()\nexcept SystemExit:\n"
    )
    script += " sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_phrases_beyond_the_token_limit_are_listed_by_every_command(monkeypatch, capsys, tmp_path):
    out = tmp_path / "short"
    words = ["finetune", "--model", "vilt-aligner", "--benchmark", "mini-game", "--out", out, *TINY, "--config"]
    words += ["max_text=12", "--steps", 1, "--batch-size", 4, "--limit-train", 8, "--limit-dev", 4, "--json"]
    code, printed, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    of_training = json.loads(printed)["dropped_phrases"]
    assert {item["example"].split("/")[1] for item in of_training} == {"train", "dev"}
    source = ["--ckpt", out, "--benchmark", "mini-game", "--limit", 4]
    found = {}
    for command, more in (("evaluate", ["--threshold", 0.5]), ("extract", ["--views", "phrase", "--sites", "norm"])):
        folder = ["--out", tmp_path / command]
        code, printed, _ = run(monkeypatch, capsys, command, *source, *more, *folder, "--json")
        assert code == 0
        found[command] = json.loads(printed)["dropped_phrases"]
        _, printed, _ = run(monkeypatch, capsys, command, *source, *more, "--out", tmp_path / f"{command}-again")
        listed = [line for line in printed.splitlines() if line.endswith(DROPPED)]
        assert len(found[command]) == 11
        assert len(listed) == {"evaluate": 11, "extract": 10}[command]
        assert ("and 1 more (--json lists all)" in printed) == (command == "extract")
        assert f"phrase {found[command][0]['phrase']} of {found[command][0]['example']} has no tokens" in listed[0]
    assert found["extract"] == found["evaluate"] == [item for item in of_training if "/dev/" in item["example"]]


def test_bars_of_transformers_are_for_terminals():
    code = "import probe.cli; from huggingface_hub.utils import are_progress_bars_disabled as off; print(off())"
    clean = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout.strip() == "True"
