"""``probe report``: from the folder of a run to pages, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_pages import chunk
from test_probe_cli import run as probe
from test_probe_cli_sweep import games_of_own_images
from tiny_run import run_tiny

from extract.from_checkpoint import extract_checkpoint
from grounding.errors import BadInput
from probe.cli.report import read_subjects, views_of
from probe.sweep import sweep


def test_what_is_no_run_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    code, _, err = probe(monkeypatch, capsys, "report", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert str(tmp_path) in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused_before_the_run_is_opened(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = probe(monkeypatch, capsys, "report", tmp_path / "no-run", "--out", tmp_path)
    assert code == 2
    assert "holds other files" in err


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A tiny run, whose sweep of localisation lies beside it."""
    folder = tmp_path_factory.mktemp("swept")
    run = run_tiny(folder / "run", games_of_own_images(20))
    sweep(
        run, ("linear",), (), questions=("localisation",), out=folder / "asked", linear_strengths=(0.3,), resamples=20
    )
    return folder


def test_probes_are_fitted_where_a_sweep_asked_localisation_or_where_they_are_asked_for(swept):
    run, asked = swept / "run", [swept / "asked"]
    (subject,) = read_subjects([run], asked)
    assert {probe.strength for probe, _ in subject.probed.probes.values()} == {0.3}
    assert set(subject.probed.sites) == set(subject.sweep["site"])
    assert read_subjects([run])[0].probed is None
    assert read_subjects([run], asked, maps=["attention"])[0].probed is None
    assert set(read_subjects([run], maps=["probe"])[0].probed.sites) == set(subject.probed.sites)
    assert views_of([subject], ["sink-filtered", "probe"]) == ["attention", "probe"]


def test_a_run_has_the_name_of_its_folder_wherever_it_is_seen_from(swept, monkeypatch):
    monkeypatch.chdir(swept / "run")
    assert read_subjects([Path(".")])[0].name == "run"
    with pytest.raises(BadInput, match=r"run '\.' is given more than once; accepted: each run once"):
        read_subjects([Path("."), swept / "run"])


def test_a_report_is_written_into_the_folder_that_one_is_in(swept, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, err = probe(monkeypatch, capsys, "report", swept / "run", "--out", ".")
    assert code == 0, err
    assert (tmp_path / "here" / "index.html").is_file()
    assert "20 examples" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--map", "rollout"), "map 'rollout' is unknown; accepted: attention"),
        (("--map", "relevance.occlusion"), "this run holds no relevance.occlusion"),
        (("--sweep", "a", "--sweep", "b"), "sweep: 2 given for 1 runs; accepted: one for each, in their order"),
        (("--sweep", "nothing"), "sweep 'nothing' holds no sweep.csv"),
        (("--map", "probe", "--budget-mb", 0), "budget-mb 0.0 is not a size"),
        (("--grounded-at", 0), "grounded-at 0 cannot be; accepted: above 0, at most 1"),
        (("--grounded-at", "nan"), "grounded-at nan cannot be"),
    ],
)
def test_maps_sweeps_and_budgets_are_checked_before_anything_is_fitted(
    swept, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.setattr("probe.phrase_maps.fit_probes", None)
    code, _, err = probe(monkeypatch, capsys, "report", swept / "run", "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_becomes_a_report(tmp_path, monkeypatch, capsys):
    for name, model in (("one", "mdetr-task"), ("two", "mdetr-grounded")):
        extract_checkpoint(
            model, "mini-game", "dev", tmp_path / name, limit=12, views=["phrase", "region", "attention"]
        )
    assert probe(monkeypatch, capsys, "sweep", tmp_path / "two", "--probe", "linear")[0] == 0
    evaluation = tmp_path / "evaluation"
    words = ("--ckpt", "mdetr-grounded", "--benchmark", "mini-game", "--split", "dev", "--limit", 12)
    assert probe(monkeypatch, capsys, "evaluate", *words, "--out", evaluation)[0] == 0
    out = tmp_path / "out"
    runs = (tmp_path / "one", tmp_path / "two")
    code, text, err = probe(monkeypatch, capsys, "report", *runs, "--out", out, "--evaluation", evaluation, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert result["examples"] == 12
    assert result["left_out"] == {}
    assert result["missing_images"] == 0
    index = chunk(out, "index")
    assert [run["name"] for run in index["runs"]] == ["one", "two"]
    assert {series["probe"] for series in index["runs"][1]["series"]} >= {"linear"}
    assert not index["runs"][0]["series"]
    assert index["words"][0]["figures"]
    assert index["runs"][1]["words"]
    views = {view["view"]: view for view in index["runs"][1]["views"]}
    assert ["decoder.2", 0] in views["attention"]["units"]
    code, text, _ = probe(monkeypatch, capsys, "report", *runs, "--out", out, "--budget-mb", 0.2)
    assert code == 0
    assert "left out: attention: all of it" in text
    assert "--budget-mb" in text
    assert chunk(out, "index")["runs"][0]["views"] == []
    code, _, err = probe(monkeypatch, capsys, "report", *runs, "--out", out, "--budget-mb", -1)
    assert code == 2
    assert "budget-mb -1" in err
    code, _, err = probe(monkeypatch, capsys, "report", runs[0], "--out", out, "--evaluation", tmp_path)
    assert code == 2
    assert "evaluation" in err
