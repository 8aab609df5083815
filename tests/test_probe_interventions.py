"""``probe intervene``: from a checkpoint and a run to tables, words and a figure; and what it refuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hf_models import tiny, write_folder
from test_probe_cli import run

from extract.from_checkpoint import extract_checkpoint
from extract.reader import Run
from grounding.benchmarks import open_benchmark
from grounding.errors import BadInput
from probe.interventions.intervene import _unseen, intervene
from probe.interventions.tables import COLUMNS, read_interventions
from visualize.interventions import intervention_curves

CKPT = "vilt-aligner-grounded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 20 examples of tune, without attention, of two sites."""
    out = tmp_path_factory.mktemp("run") / "run"
    extract_checkpoint(CKPT, "mini-game", "tune", out, limit=20, views=["phrase", "region"], sites=["block.3", "norm"])
    return out


def test_erasure_from_the_command_to_a_figure(monkeypatch, capsys, folder, tmp_path):
    words = ["intervene", "--ckpt", CKPT, "--benchmark", "mini-game", "--limit", 12, "--run", folder, "--draws", 1]
    code, out, err = run(monkeypatch, capsys, *words, "--sites", "norm", "--out", tmp_path / "found", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["examples"] == 12
    table = pd.read_csv(tmp_path / "found" / "interventions.csv")
    assert list(table.columns) == COLUMNS
    assert len(table) == len(result["rows"]) == 2 * 2 * 3  # concepts, scores, conditions
    assert set(table["condition"]) == {"intervention", "control", "specific"}
    assert ((table["low"] <= table["effect"] + 1e-9) & (table["effect"] <= table["high"] + 1e-9)).all()
    assert set(pd.read_csv(tmp_path / "found" / "checks.csv")["read"]) == {"candidate index", "box", "membership"}
    names = {path.name for path in (tmp_path / "found").iterdir()}
    assert names == {"interventions.csv", "checks.csv", "interventions.json", "summary.md", "interventions.png",
                     "interventions.svg"}  # fmt: skip
    assert "Erased by leace; control" in (tmp_path / "found" / "summary.md").read_text()
    content = Run.open(folder).manifest["identity"]["checkpoint"]
    assert len(read_interventions(tmp_path / "found", content)) == 12
    with pytest.raises(BadInput, match="are of checkpoint"):
        read_interventions(tmp_path / "found", "another")
    with pytest.raises(BadInput, match=r"hold no interventions.csv"):
        read_interventions(tmp_path)


@pytest.mark.slow
def test_patching_and_knockout_from_the_command_to_the_figures_of_a_run(monkeypatch, capsys, folder, tmp_path):
    asked = ["--ckpt", CKPT, "--benchmark", "mini-game", "--limit", 3, "--sites", "block.3", "--json"]
    words = [
        "--method",
        "patch",
        "--pairs",
        "caption",
        "--pairs",
        "target",
        "--group",
        "everything",
        "--group",
        "region",
    ]
    code, out, err = run(monkeypatch, capsys, "intervene", *asked, *words, "--out", tmp_path / "patch")
    assert code == 0, err
    result = json.loads(out)
    assert result["pairs"]["target"]["pairs"] == 3
    effects = {(row["pairs"], row["target"]): row["effect"] for row in result["rows"]}
    assert set(effects) <= {(kind, group) for kind in ("caption", "target") for group in ("everything", "region")}
    assert effects["target", "everything"] == pytest.approx(1.0, abs=1e-3)
    assert "Too few images to conclude anything" in (tmp_path / "patch" / "summary.md").read_text()
    words = ["--method", "knockout", "--draws", 1]
    code, out, err = run(monkeypatch, capsys, "intervene", *asked, *words, "--out", tmp_path / "knockout")
    assert code == 0, err
    assert {row["target"] for row in json.loads(out)["rows"]} == {"this layer", "up to this layer"}
    found = ["--interventions", tmp_path / "patch", "--interventions", tmp_path / "knockout"]
    code, _, err = run(monkeypatch, capsys, "visualize", folder, *found, "--count", 1, "--out", tmp_path / "figures")
    assert code == 0, err
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"interventions-patch", "interventions-knockout"} <= names
    (tmp_path / "patch" / "interventions.json").write_text('{"checkpoint": {"content": "another"}}')
    code, _, err = run(monkeypatch, capsys, "visualize", folder, *found, "--out", tmp_path / "more")
    assert code == 2
    assert "are of checkpoint another" in err
    assert not (tmp_path / "more").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vilt", "blip", "grounding-dino"])
def test_adapters_of_hugging_face_models(name, tmp_path):
    """Random weights: the effects mean nothing, but every method runs from end to end."""
    ckpt = write_folder(tiny(name), tmp_path / "model", size={"height": 32, "width": 32, "shortest_edge": 32})
    extract_checkpoint(ckpt, "mini-game", "tune", tmp_path / "run", limit=12, views=["phrase", "region"])
    last = {"vilt": "block.1", "blip": "text.1", "grounding-dino": "encoder.text.1"}[name]
    asked = {"sites": [last], "limit": 3, "threshold": 0.5, "draws": 1}
    erased = intervene(ckpt, "mini-game", run=tmp_path / "run", **asked)
    assert set(erased.table["target"]) == ({"place", "membership"} if name == "vilt" else {"place"})
    asked = {"limit": 3, "threshold": 0.5, "draws": 1}
    patched = intervene(ckpt, "mini-game", method="patch", groups=["everything"], **asked)
    assert patched.table["effect"].notna().all()
    if name == "grounding-dino":
        with pytest.raises(BadInput, match="no taps on attention from phrases to patches"):
            intervene(ckpt, "mini-game", method="knockout", **asked)
        with pytest.raises(BadInput, match="can be read and not be changed"):
            intervene(ckpt, "mini-game", method="knockout", sites=[last], **asked)
    else:
        assert len(intervene(ckpt, "mini-game", method="knockout", **asked).table) == 2 * 2 * 2 * 3
    if name == "vilt":
        with pytest.raises(BadInput, match="comes without a threshold; give --threshold"):
            intervene(ckpt, "mini-game", method="knockout", limit=1)


def test_examples_that_erasers_were_fitted_on_are_left_out(folder, monkeypatch):
    import probe.interventions.intervene as module

    seen = []
    monkeypatch.setattr(module, "erase", lambda live, sites, batches, *others: (seen.extend(batches), ([], []))[1])
    monkeypatch.setattr(module, "tidy", lambda rows, method: pd.DataFrame())
    found = intervene(CKPT, "mini-game", "tune", run=folder, limit=25)
    assert found.description["left_out"] == 12  # three fifths of 20
    assert sum(len(batch) for batch in seen) == found.description["examples"] == 13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "ablate"], "method 'ablate' is unknown; accepted: erase, patch, knockout"),
        (["--method", "knockout"], "with method 'knockout'; accepted: with method 'erase'"),
        (["--group", "phrase"], "groups ['phrase'] with method 'erase'; accepted: with method 'patch'"),
        (["--sites", "block.99"], "site 'block.99' is unknown; accepted: embedding, block.0"),
        (["--concept", "pair"], "concept 'pair' is unknown; accepted: place, membership"),
        (["--eraser", "pca"], "eraser 'pca' is unknown; accepted: leace, inlp, mean"),
        (["--draws", "0"], "draws 0 is too small"),
        (["--sites", "block.1"], "site 'block.1' is unknown; accepted: block.3, norm"),
        (["--ckpt", "vilt-aligner-task"], "is of checkpoint"),
        (["--threshold", "2"], "threshold 2.0 is out of range"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(monkeypatch, capsys, folder, tmp_path, words, message):
    asked = ["intervene", "--ckpt", CKPT, "--benchmark", "mini-game", "--limit", 4, "--run", folder, *words]
    code, _, err = run(monkeypatch, capsys, *asked, "--out", tmp_path / "found")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "found").exists()


def test_what_cannot_be_patched_or_cut_is_refused():
    with pytest.raises(BadInput, match="group 'words' is unknown; accepted: phrase, other-text, region"):
        intervene(CKPT, "mini-game", method="patch", groups=["words"])
    with pytest.raises(BadInput, match="pairs 'colour' is unknown; accepted: caption, target, distractor"):
        intervene(CKPT, "mini-game", method="patch", pairs=["colour"])
    with pytest.raises(BadInput, match="benchmark 'mini-sdr' has no minimal pairs"):
        intervene(CKPT, "mini-sdr", method="patch")
    with pytest.raises(BadInput, match=r"site 'norm' has no taps on attention from phrases to patches"):
        intervene(CKPT, "mini-game", method="knockout", sites=["norm"])


def test_a_run_is_needed_and_must_not_hold_all_examples(folder):
    with pytest.raises(BadInput, match=r"needs a run of the checkpoint \(--run\)"):
        intervene(CKPT, "mini-game")
    with pytest.raises(BadInput, match="all 1 examples are in the train part"):
        intervene(CKPT, "mini-game", "tune", run=folder, limit=1, seed=1)


def test_a_run_that_tells_images_apart_otherwise_is_refused(folder):
    """What is kept from erasers by its image must not be what they were fitted on by another name."""
    opened = Run.open(folder)
    examples = open_benchmark("mini-game").load("tune", 10)
    kept = _unseen(examples, opened, seed=0)
    assert 0 < len(kept) < 10
    opened.examples["group_image"] += "/0"
    with pytest.raises(BadInput, match=r"has example '(.*)' of image '(.*)/0', the benchmark of '.*'; accepted: a run"):
        _unseen(examples, opened, seed=0)


def test_a_site_without_the_tokens_is_refused(tmp_path):
    out = tmp_path / "run"
    extract_checkpoint("mdetr-grounded", "mini-game", "tune", out, limit=10, views=["phrase", "region"])
    with pytest.raises(BadInput, match=r"site 'decoder.0' holds query tokens; erasing 'place' needs text tokens"):
        intervene("mdetr-grounded", "mini-game", run=out, sites=["decoder.0"], concepts=["place"], limit=2)
    with pytest.raises(BadInput, match=r"site 'decoder.0' holds query tokens; erasure needs text or image tokens"):
        intervene("mdetr-grounded", "mini-game", run=out, sites=["decoder.0"], limit=2)


def rows(**changes) -> dict:
    row = {"method": "erase", "site": "block.0", "stage": "block", "layer": 0, "target": "place", "pairs": ""}
    row |= {"condition": "intervention", "score": "accuracy", "effect": -0.1, "low": -0.2, "high": 0.0}
    return row | changes


def test_the_chart_has_the_probe_curve_on_top_and_refuses_what_it_cannot_draw():
    table = pd.DataFrame([rows(), rows(condition="control", effect=0.0), rows(site="block.1", layer=1)])
    swept = pd.DataFrame(
        {
            "site": ["block.0", "block.1", "block.2"], "stage": "block", "layer": [0, 1, 2], "probe": "linear",
            "condition": "alignment", "score": "choice_accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1,
        }
    )  # fmt: skip
    figure = intervention_curves(table, swept)
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "What probes read: choice accuracy", "Change of task accuracy",
    ]  # fmt: skip
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["0", "1", "2"]
    assert len(intervention_curves(table).axes) == 1
    with pytest.raises(BadInput, match="lack the columns effect"):
        intervention_curves(table.drop(columns="effect"))
    with pytest.raises(BadInput, match="no rows to draw"):
        intervention_curves(table[:0])
    with pytest.raises(BadInput, match="methods erase, patch"):
        intervention_curves(pd.DataFrame([rows(), rows(method="patch")]))
