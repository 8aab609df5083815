"""``probe inspect`` and ``probe convert`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from finetune_runs import SIZES
from photo_fixture import write_coco
from released_files import released_mdetr, released_vilt, write_mdetr, write_study, write_tokenizers, write_vilt
from test_probe_cli import run

import grounding.checkpoint
from grounding.checkpoint import BUNDLED, load_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each architecture, and tokenizers."""
    folder = tmp_path_factory.mktemp("released")
    tokenizers = write_tokenizers(folder)
    return {
        "aligner": write_study(folder / "aligner.ckpt", released_vilt()),
        "aligner-tokens": tokenizers["vilt-aligner"],
        "mdetr": write_mdetr(folder / "mdetr.pth", released_mdetr(), ema=False),
        "mdetr-tokens": tokenizers["mdetr"],
    }


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What a command prints with --json; it must succeed."""
    code, out, err = run(monkeypatch, capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_inspect_tells_what_a_file_holds(monkeypatch, capsys, files):
    found = printed(monkeypatch, capsys, "inspect", files["aligner"])
    assert found["format"] == "Lightning checkpoint"
    assert found["weights"] == "ema (averaged)"
    assert found["model"] == "vilt-aligner"
    assert found["sizes"]["width"] == 128
    model = released_vilt()
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["loaded"] == len(model.state_dict()) - 1
    assert found["ignored"]["state of training, not a weight"] == 9
    assert found["missing"] == {}
    assert found["tokenizer"] == "none; give bert-base-uncased with --tokenizer"
    raw = printed(monkeypatch, capsys, "inspect", files["aligner"], "--weights", "raw", "--config", "heads=4")
    assert (raw["weights"], raw["sizes"]["heads"]) == ("raw", 4)
    assert "checks" not in raw


def test_inspect_prints_a_table_for_people(monkeypatch, capsys, files):
    code, out, _ = run(monkeypatch, capsys, "inspect", files["mdetr"], "--tokenizer", files["mdetr-tokens"])
    assert code == 0
    for words in ("MDETR checkpoint", "the only ones in the file", "backbone resnet18", "x state of training"):
        assert words in " ".join(out.replace("│", " ").split())


def test_verify_passes_sound_models_and_fails_broken_ones(monkeypatch, capsys, files, tmp_path):
    words = ["inspect", files["mdetr"], "--verify", "--tokenizer", files["mdetr-tokens"]]
    opened = []
    open_stored = grounding.checkpoint.open_stored
    monkeypatch.setattr(grounding.checkpoint, "open_stored", lambda *given: opened.append(given) or open_stored(*given))
    checks = printed(monkeypatch, capsys, *words)["checks"]
    assert len(opened) == 1
    assert [check["status"] for check in checks].count("ok") == len(checks) - 1
    assert {check["name"] for check in checks if check["status"] == "known"} == {"image padding does not matter"}
    model = released_vilt()
    with torch.no_grad():
        model.transformer.blocks[1].mlp.fc2.bias.fill_(3e38)  # finite weights, states that are not
        model.transformer.blocks[1].attn.proj.bias.fill_(3e38)
    path = write_study(tmp_path / "overflow.ckpt", model, ema=False)
    words = ["inspect", path, "--verify", "--tokenizer", files["aligner-tokens"], "--json"]
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 1
    status = {check["name"]: check["status"] for check in json.loads(out)["checks"]}
    assert status["states and outputs are finite"] == "failed"
    assert status["shapes of every site"] == "ok"


def test_verify_needs_a_tokenizer_and_names_it(monkeypatch, capsys, files):
    code, _, err = run(monkeypatch, capsys, "inspect", files["mdetr"], "--verify")
    assert code == 2
    assert "give the one it was trained with, roberta-base, with --tokenizer" in " ".join(err.split())


def test_a_converted_checkpoint_serves_every_command(monkeypatch, capsys, files, tmp_path):
    out = tmp_path / "converted"
    words = ["convert", files["aligner"], out, "--weights", "raw", "--tokenizer", files["aligner-tokens"]]
    result = printed(monkeypatch, capsys, *words, "--config", "candidate_size=64")
    assert (result["weights"], result["missing"]) == ("raw", 0)
    assert load_checkpoint(out).model.config.candidate_size == 64
    found = printed(monkeypatch, capsys, "inspect", out)
    assert found["format"] == "checkpoint folder"
    assert found["tokenizer"] == str(out / "tokenizer.json")
    source = ["--ckpt", out, "--benchmark", "mini-game", "--limit", 2]
    figures = printed(monkeypatch, capsys, "evaluate", *source, "--threshold", 0.5)
    assert figures["figures"]["accuracy"]["n"] == 2
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "exists; accepted: a new folder, or an empty one" in err


def test_a_converted_checkpoint_tells_what_its_file_lacked(monkeypatch, capsys, files, tmp_path):
    """ViLT's own file has no aligner head; in the folder nothing is missing, but its head is as random as before."""
    path, out = write_vilt(tmp_path / "vilt.ckpt", released_vilt()), tmp_path / "folder"
    printed(monkeypatch, capsys, "convert", path, out, "--tokenizer", files["aligner-tokens"])
    found = printed(monkeypatch, capsys, "inspect", out)
    assert found["missing"] == {}
    first, lacked = found["converted from"].splitlines()
    assert first == "vilt.ckpt (Lightning checkpoint), weights only"
    assert lacked.startswith("not in the file: random values of seed 0")


def test_mdetr_pre_trained_without_a_query_gets_one_and_learns_a_task(monkeypatch, capsys, files, tmp_path):
    """The whole way: MDETR's recipe on a made-up folder of its JSON, the query, one step of the task."""
    for split in ("train", "dev"):
        write_coco(tmp_path / "mixed", split)
    first, second, third = (tmp_path / name for name in ("pretrained", "with-query", "tuned"))
    tiny = {**SIZES["mdetr"], "shorter_side": 64, "longer_side": 128}
    words = ["finetune", "--recipe", "mdetr-pretraining", "--root", tmp_path / "mixed", "--out", first]
    words += ["--size", "miniature", *(word for size in tiny.items() for word in ("--config", "{}={}".format(*size)))]
    words += ["--tokenizer", BUNDLED / "mdetr-pretrained", "--epochs", 1, "--batch-size", 2, "--precision", "fp32"]
    printed(monkeypatch, capsys, *words, "--device", "cpu")
    learning = ["finetune", "--model", "mdetr", "--benchmark", "mini-game", "--out", third, "--device", "cpu"]
    learning += ["--steps", 1, "--batch-size", 2, "--limit-train", 2, "--limit-dev", 2]
    code, _, err = run(monkeypatch, capsys, *learning, "--init", first)
    assert code == 2
    assert f"`probe convert {first} NEW --config task_query=true`" in " ".join(err.split())
    code, out, err = run(monkeypatch, capsys, "convert", first, second, "--config", "task_query=true")
    assert code == 0, err
    assert "7 missing\nnot in the file: random values of seed 0" in out
    assert "not in the file: a copy of the box head" in out
    before, after = (load_checkpoint(folder).model.state_dict() for folder in (first, second))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"sdr_embed", "sdr_head"}
    assert "not in the file" in printed(monkeypatch, capsys, "inspect", second)["converted from"]
    printed(monkeypatch, capsys, *learning, "--init", second)
    assert load_checkpoint(third).model.config.task_query


def test_a_tokenizer_that_pads_with_another_token_is_refused(monkeypatch, capsys, files, tmp_path):
    """RoBERTa counts no position for padding: with another model's tokenizer every position would be wrong."""
    words = ["convert", files["mdetr"], tmp_path / "out", "--tokenizer", files["aligner-tokens"]]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "tokenizer pads with token 0, the model with 1 (pad_id); accepted: the model's own tokenizer" in err
    assert not (tmp_path / "out").exists()


def test_other_commands_take_the_file_itself(monkeypatch, capsys, files):
    words = ["evaluate", "--ckpt", files["mdetr"], "--tokenizer", files["mdetr-tokens"], "--benchmark", "mini-game"]
    assert printed(monkeypatch, capsys, *words, "--limit", 1)["figures"]["accuracy"]["n"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "ema"], "has no averaged weights (EMA); accepted: --weights raw"),
        (["--config", "depth=3"], "field 'depth' is unknown; accepted: backbone, width"),
        (["--config", "heads=3"], "width 32 is not a multiple of heads 3"),
        (["--config", "queries=5"], "mdetr.query_embed.weight is [7, 32], not [5, 32]"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "convert", "evaluate", "extract"])
def test_bad_usage_is_one_line_and_exit_code_two(monkeypatch, capsys, files, tmp_path, command, words, message):
    given: list[object] = {
        "inspect": [files["mdetr"]],
        "convert": [files["mdetr"], tmp_path / "out"],
        "evaluate": ["--ckpt", files["mdetr"], "--benchmark", "mini-game"],
        "extract": ["--ckpt", files["mdetr"], "--benchmark", "mini-game", "--out", tmp_path / "out"],
    }[command]
    if command != "inspect":
        given += ["--tokenizer", files["mdetr-tokens"]]
    code, out, err = run(monkeypatch, capsys, command, *given, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_evaluation_and_extraction_use_the_weights_and_sizes_asked_for(monkeypatch, capsys, files, tmp_path):
    """The same scores as from a folder that was converted with them, and others than with the file's averages."""
    source = ["--benchmark", "mini-game", "--limit", 2, "--tokenizer", files["aligner-tokens"]]
    said = ["--weights", "raw", "--config", "candidate_size=64"]
    printed(monkeypatch, capsys, "convert", files["aligner"], tmp_path / "folder", *source[4:], *said)
    checkpoints: dict[str, list[object]] = {
        "converted": [tmp_path / "folder"],
        "raw": [files["aligner"], *said],
        "default": [files["aligner"], "--config", "candidate_size=64"],
    }
    scores, identities = {}, {}
    for name, words in checkpoints.items():
        figures, run_folder = tmp_path / name / "figures", tmp_path / name / "run"
        words = ["--ckpt", *words, *source]
        printed(monkeypatch, capsys, "evaluate", *words, "--threshold", 0.5, "--out", figures)
        scores[name] = pd.read_csv(figures / "examples.csv")["score"].tolist()
        printed(monkeypatch, capsys, "extract", *words, "--views", "phrase", "--sites", "norm", "--out", run_folder)
        manifest = json.loads((run_folder / "manifest.json").read_text())
        identities[name] = manifest["identity"]["checkpoint"]
        assert manifest["source"]["loading"]["weights"] == ("raw" if name == "raw" else None)
    assert scores["raw"] == pytest.approx(scores["converted"])
    assert scores["raw"] != pytest.approx(scores["default"], rel=1e-3)
    assert identities["raw"] != identities["default"]
