"""Drawing a run into a folder: files, bad input, reproducibility, no traces in matplotlib."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fake_gallery import make_example, make_panorama, make_run, make_sweep
from PIL import Image
from tiny_model import TinyModel, tiny_games

from extract.run import extract
from grounding.errors import BadInput
from visualize.described import file_name
from visualize.figures import draw
from visualize.maps import PROBE, SiteMaps
from visualize.plan import GRIDS, Look
from visualize.ranked import Gaps
from visualize.style import contrast, halo, phrase_colour


@pytest.fixture(scope="module")
def examples():
    return {e.id: e for e in (make_example(n) for n in range(8))}


@pytest.fixture(scope="module")
def run(examples):
    run = make_run(list(examples.values()), heatmaps=True)
    run.phrases["iou"] = np.where(run.phrases["example"] < 4, 0.7, 0.2)  # no quadrant is empty
    return run


def test_everything_is_drawn_as_png_and_svg_and_leaves_no_trace_in_matplotlib(run, examples, tmp_path):
    settings, steps = dict(matplotlib.rcParams), []
    options = {"sweep": make_sweep(3), "chosen": ["fake/001"], "count": 1, "progress": lambda *s: steps.append(s)}
    drawn = draw(run, tmp_path / "figures", examples, **options)
    names = [figure.name for figure in drawn]
    assert names[:5] == ["layer-curves", "task-and-grounding", "candidates", "right-and-wrong", "quadrants"]
    assert re.fullmatch("example-fake-001-[0-9a-f]{8}", names[5])
    assert steps == [(n + 1, 6) for n in range(6)]
    for figure in drawn:
        assert [path.suffix for path in figure.paths] == [".png", ".svg"]
        with Image.open(figure.paths[0]) as image:
            assert np.asarray(image.convert("L")).std() > 5  # not blank
        assert len(list(ElementTree.parse(figure.paths[1]).iter())) > 50
        assert figure.title
        assert figure.caption
        assert figure.alternative
    assert dict(matplotlib.rcParams) == settings
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_quadrants_are_parted_where_it_is_asked(run, examples, tmp_path):
    drawn = {figure.name: figure for figure in draw(run, tmp_path, examples, formats=("png",), grounded_at=0.1)}
    assert "grounded from 0.1 on" in drawn["task-and-grounding"].caption
    assert "right, not grounded: 0;" in drawn["task-and-grounding"].alternative


def test_chosen_examples_are_drawn_with_the_chosen_head(run, examples, tmp_path):
    drawn = draw(
        run, tmp_path, examples, chosen=["fake/003"], look=Look(site="block.0", head=1), count=1, formats=("png",)
    )
    assert drawn[-1].title == "Example fake/003"
    assert "Attention from each phrase at block.0, head 1 of 4." in drawn[-1].caption
    assert sum(figure.name.startswith("example-") for figure in drawn) == 1


def test_the_same_run_gives_the_same_files(examples, tmp_path):
    run = make_run(list(examples.values())[:2], attention=False)
    first, second = (draw(run, tmp_path / name, examples, count=1, chosen=["fake/000"]) for name in "ab")
    for one, two in zip(first, second, strict=True):
        assert [path.read_bytes() for path in one.paths] == [path.read_bytes() for path in two.paths]


def test_without_a_choice_an_example_of_each_quadrant_is_drawn(run, examples, tmp_path):
    drawn = draw(run, tmp_path, examples, count=1, formats=("png",))
    assert sum(figure.name.startswith("example-") for figure in drawn) == 4


def test_a_run_with_one_example_without_attention_or_images(tmp_path):
    run = make_run([make_example(1)], attention=False)
    drawn = draw(run, tmp_path, {}, formats=("png",))
    assert [figure.name for figure in drawn][-1].startswith("example-")


def test_a_run_without_predictions(examples, tmp_path):
    run = make_run(list(examples.values()))
    run.phrases[["iou", "pointing"]] = np.nan
    run.phrases["predicted_image_index"] = -1
    drawn = draw(run, tmp_path, examples, count=1, formats=("png",))
    names = [figure.name for figure in drawn]
    assert names[:2] == ["candidates", "right-and-wrong"]
    assert [name[:8] for name in names[2:]] == ["example-", "example-"]


def test_a_run_that_answers_nothing_is_drawn_by_its_first_example(tmp_path):
    run = make_run([make_example(1), make_example(2)], attention=False)
    run.phrases[["iou", "pointing"]] = np.nan
    run.examples[["task_score", "target_index", "answer_index"]] = (np.nan, -1, -1)
    drawn = draw(run, tmp_path, {}, formats=("png",))
    assert [figure.title for figure in drawn] == ["Example fake/001"]


def test_one_candidate_is_no_task_that_is_right(tmp_path):
    """Every single picture is found by whoever picks among one: nothing is said of the task, only of grounding."""
    examples = {e.id: e for e in (make_example(n, candidates=1) for n in range(8))}
    run = make_run(list(examples.values()))
    run.phrases["iou"] = np.where(run.phrases["example"] < 4, 0.9, 0.1)
    drawn = draw(run, tmp_path, examples, count=2, formats=("svg",))
    assert [figure.name.split("-fake")[0] for figure in drawn] == ["grounded-or-not", "example", "example"]
    assert not any("Task" in figure.caption or "answer" in figure.alternative for figure in drawn)
    assert drawn[0].alternative.startswith("Grounded (mean IoU at least 0.5; 2 of 4 examples")
    assert "Not grounded (mean IoU below 0.5; 2 of 4 examples" in drawn[0].alternative


def test_maps_grids_gaps_and_another_run_are_drawn(tmp_path):
    examples = {e.id: e for e in (make_example(n, candidates=2, phrases=1) for n in range(4))}
    run, before = (make_run(list(examples.values()), seed=seed) for seed in (0, 3))
    before.path = Path("before")
    maps = {row: np.random.default_rng(row).random((1, 8, 4)) for row in run.phrases.index}
    run.relevance = {"relevance.rollout": maps}
    probed = [SiteMaps(PROBE, site, {row: cells[0] for row, cells in maps.items()}) for site in ("block.0", "block.1")]
    look = Look(("attention", "relevance.rollout", PROBE), "block.1", None, GRIDS, probed)
    gaps = Gaps(pd.DataFrame({"example": [1, 2], "probe": [0.9, 0.8], "own": [0.1, 0.2]}), "the linear probe")
    options = {"chosen": ["fake/003"], "count": 1, "formats": ("png",)}
    drawn = draw(run, tmp_path, examples, look=look, gaps=gaps, against=before, **options)
    names = [figure.name.split("-fake")[0] for figure in drawn]
    assert names[-8:] == [
        "expression-gap", "most-changed", "example", "layers-attention", "layers-relevance-rollout", "layers-probe",
        "heads-attention", "maps",
    ]  # fmt: skip
    assert "Attention rollout up to block.1." in drawn[-6].caption
    assert "fake/001" in drawn[-8].alternative
    assert all(figure.alternative and figure.paths[0].stat().st_size for figure in drawn)


def test_a_run_on_disk_is_drawn_as_it_is_read(tmp_path):
    games = tiny_games(6)
    run = extract(TinyModel(), games, tmp_path / "run", identity={"checkpoint": "tiny"}, views=("phrase", "attention"))
    drawn = draw(run, tmp_path / "figures", {game.id: game for game in games}, count=1, formats=("png",))
    assert any("Cross-attention from each phrase's query at decoder." in figure.caption for figure in drawn)


def test_a_run_of_spatial_descriptions(tmp_path):
    examples = {e.id: e for e in (make_panorama(n) for n in range(4))}
    assert draw(make_run(list(examples.values()), heatmaps=True), tmp_path, examples, count=1, formats=("png",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chosen": ["fake/999"]}, "example 'fake/999' is not in the run"),
        ({"look": Look(site="block.7")}, "site 'block.7' is unknown; accepted: block.0, block.1, block.2"),
        ({"look": Look(head=4)}, "head 4 is not at site 'block.2'; accepted: 0 to 3"),
        ({"formats": ("bmp",)}, "format 'bmp' is unknown; accepted: png, svg, pdf"),
        ({"count": 0}, "count 0"),
        (
            {"look": Look(("relevance.rollout",))},
            "holds no relevance.rollout, only attention, sink-filtered; add it: ",
        ),
        ({"look": Look(("probe",))}, "map 'probe': no maps of probes were given; accepted: attention, sink-filtered"),
        (
            {"look": Look(("probe",), grids=("heads",))},
            "grid 'heads': probe has one map of all heads; accepted: with att",
        ),
        ({"look": Look(grids=("rows",))}, "grid 'rows' is unknown; accepted: layers, heads, maps"),
        ({"heads": pd.DataFrame({"kind": []})}, "table of heads lacks the columns site, head"),
        ({"sweep": make_sweep(2).drop(columns="value")}, "lacks the columns value"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(run, examples, tmp_path, options, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        draw(run, tmp_path / "figures", examples, **options)
    assert not (tmp_path / "figures").exists()


def test_figures_of_another_run_are_not_written_over(run, examples, tmp_path, monkeypatch):
    monkeypatch.setitem(run.manifest, "identity_hash", "this")
    drawn = draw(run, tmp_path, examples, count=1, formats=("png",))
    listed = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [figure["files"] for figure in listed] == [[path.name for path in figure.paths] for figure in drawn]
    draw(run, tmp_path, examples, count=1, formats=("png",), chosen=["fake/000"])
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setitem(run.manifest, "identity_hash", "other")
    with pytest.raises(BadInput, match="the figures of another run: identity_hash is 'this' there and 'other' here; "):
        draw(run, tmp_path, examples, count=1, formats=("png",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == there


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_place_of_the_folder_is_refused_before_anything_is_drawn(run, examples, tmp_path, monkeypatch, out):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr("visualize.described.draw_gallery", lambda *_: pytest.fail("drawn for nothing"))
    with pytest.raises(BadInput, match=rf"out '.*{out}' is not a folder"):
        draw(run, tmp_path / out, examples)
    assert (tmp_path / "file").read_text() == "kept"


def test_attention_that_is_not_stored_is_refused_when_asked_for(examples, tmp_path):
    run = make_run(list(examples.values()), attention=False)
    with pytest.raises(BadInput, match="holds no attention"):
        draw(run, tmp_path, examples, look=Look(site="block.0"))


def test_a_run_without_examples_is_refused(tmp_path):
    run = make_run([make_example(1)])
    run.examples = run.examples.iloc[:0]
    with pytest.raises(BadInput, match="no examples"):
        draw(run, tmp_path, {})


def test_file_names_are_safe_and_do_not_clash():
    assert file_name("plain-1.a") == "plain-1.a"
    assert re.fullmatch(r"a-b-[0-9a-f]{8}", file_name("a/b"))
    assert file_name("a/b") != file_name("a b")
    assert "/" not in file_name("../../etc/passwd")
    assert re.fullmatch(r"[0-9a-f]{8}", file_name("קובץ"))
    assert len(file_name("x" * 500)) < 100


def test_phrase_colours_repeat_and_stay_readable():
    colours = [phrase_colour(n) for n in range(6)]
    assert len(set(colours)) == 6
    assert phrase_colour(6) == colours[0]
    assert contrast("#ffffff") == "#222222"
    assert contrast("#000000") == "#ffffff"
    assert halo("#f0e442") == "#222222"
    assert halo("#e69f00") == "#ffffff"
