"""``probe extract`` and ``probe inspect`` on a run: going on, adding, verifying, estimating."""

from __future__ import annotations

import json
import warnings

import pytest
from hf_models import tiny, write_folder
from test_probe_cli import run as probe

from extract.reader import Run

NEW = ("--ckpt", "mdetr-task", "--benchmark", "mini-game", "--limit", "6", "--sites", "encoder.*", "--views", "phrase")


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    out = tmp_path / "x"
    code, _, err = probe(monkeypatch, capsys, "extract", *NEW, "--out", out)
    assert code == 0, err
    return out


def test_views_and_sites_are_added_from_the_manifest_alone(made, monkeypatch, capsys):
    assert probe(monkeypatch, capsys, "extract", "--out", made, "--add-view", "region")[0] == 0
    words = ("--add-view", "attention", "--add-site", "decoder.0")
    assert probe(monkeypatch, capsys, "extract", "--out", made, *words)[0] == 0
    views = {site.name: site.views for site in Run.open(made).sites}
    assert views["encoder.0"] == ("phrase", "region")
    assert views["decoder.0"] == ("attention",)


def test_a_run_goes_on_from_its_manifest_and_is_mended(made, monkeypatch, capsys):
    (made / "shard-00000.json").unlink()
    code, out, err = probe(monkeypatch, capsys, "extract", "--out", made)
    assert (code, "6 examples" in out) == (0, True), err
    file = made / "shard-00000.phrase.h5"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    code, out, _ = probe(monkeypatch, capsys, "inspect", made, "--verify", "--json")
    assert code == 1
    assert json.loads(out)["faults"] == ["shard-00000.phrase.h5 has other bytes than were written"]
    code, out, _ = probe(monkeypatch, capsys, "extract", "--out", made, "--verify")
    assert code == 0
    assert out.startswith("shard-00000.phrase.h5 has other bytes than were written: written anew")
    code, out, _ = probe(monkeypatch, capsys, "inspect", made, "--verify", "--json")
    assert (code, json.loads(out)["faults"]) == (0, [])


def test_the_views_of_a_model_without_attention_are_those_that_it_has(tmp_path, monkeypatch, capsys):
    ckpt, out = write_folder(tiny("clip"), tmp_path / "clip"), tmp_path / "x"
    words = ("--ckpt", ckpt, "--benchmark", "mini-game", "--limit", "3", "--out", out)
    code, _, err = probe(monkeypatch, capsys, "extract", *words)
    assert code == 0, err
    assert {view for site in Run.open(out).sites for view in site.views} == {"phrase", "region"}
    assert probe(monkeypatch, capsys, "extract", *words)[0] == 0  # the same command again: the run is there
    code, _, err = probe(monkeypatch, capsys, "extract", *words, "--views", "attention")
    assert (code, "view 'attention' is offered by none" in err) == (2, True)


def test_a_run_that_was_made_is_found_and_said(made, monkeypatch, capsys):
    told = "all of it was there, nothing was computed"
    code, out, _ = probe(monkeypatch, capsys, "extract", *NEW, "--out", made)
    assert (code, told in out) == (0, True)
    copy = made.parent / "copy"
    with pytest.warns(UserWarning, match=f"{made} holds all of this run already; {copy} will be another copy"):
        code, out, _ = probe(monkeypatch, capsys, "extract", *NEW, "--out", copy)
    assert (code, told in out) == (0, False)
    more = [*NEW[:-1], "phrase,region"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # another view, or other examples: another run
        assert probe(monkeypatch, capsys, "extract", *more, "--out", made.parent / "more")[0] == 0
        assert probe(monkeypatch, capsys, "extract", *NEW, "--split", "tune", "--out", made.parent / "tune")[0] == 0


def test_what_is_wrong_is_told_before_anything_is_opened(tmp_path, monkeypatch, capsys):
    def never(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr("extract.from_checkpoint.open_benchmark", never)
    (tmp_path / "file").write_text("mine")
    for words, message in (
        (("--out", tmp_path / "file"), "is a file; accepted: a folder"),
        (("--out", tmp_path), "holds files that are not a run"),
        (("--out", tmp_path / "x", "--dtype", "int8"), "dtype 'int8' is unknown"),
        (("--out", tmp_path / "x", "--batch-size", "auto", "--compression", "zip"), "compression 'zip' is unknown"),
    ):
        code, _, err = probe(monkeypatch, capsys, "extract", *NEW, *words)
        assert (code, message in err.replace("\n", " ")) == (2, True), err


def test_an_estimate_writes_nothing(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "x"
    code, told, err = probe(monkeypatch, capsys, "extract", *NEW, "--out", out, "--estimate", "--json")
    assert code == 0, err
    told = json.loads(told)
    assert told["examples"] == 6
    assert set(told["bytes"]) == {"meta", "phrase"}
    assert told["total_bytes"] == sum(told["bytes"].values()) > 0
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--views", "tokens"), "--views needs --ckpt and --benchmark"),
        (("--estimate",), "--estimate needs --ckpt and --benchmark"),
        (("--benchmark", "mini-game"), "ckpt is missing"),
        ((*NEW, "--estimate", "--verify"), "--estimate writes nothing and --verify writes"),
        ((), "is not there to go on with; accepted: a run, or --ckpt and --benchmark to begin one"),
        (("--add-view", "tokens"), "is not there to go on with"),
        (("--ckpt", "mdetr-task"), "is not there to go on with; accepted: a run, or --ckpt and --benchmark"),
        ((*NEW, "--add-view", "region"), "--views is of a new run; accepted beside --add-view"),
        (
            ("--ckpt", "mdetr-task", "--benchmark", "mini-game", "--add-view", "region", "--sites", "x"),
            "--sites is of a",
        ),
        (
            ("--ckpt", "mdetr-task", "--benchmark", "mini-game", "--add-view", "region", "--estimate"),
            "--estimate is of",
        ),
        ((*NEW, "--batch-size", "many"), "batch-size 'many' is not a number; accepted: 1 or more, or auto"),
        ((*NEW, "--batch-size", "0"), "batch_size 0 is too small"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    code, _, err = probe(monkeypatch, capsys, "extract", "--out", tmp_path / "x", *words)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert not (tmp_path / "x").exists()
