"""Reports as files: escaped, packed without loss that is seen, within their budget, never half written."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from fake_gallery import SITES, make_example, make_panorama, make_run
from report_pages import (
    EVIL,
    HEADS,
    PlantedProbes,
    by_id,
    chunk,
    items_of,
    plant_attention,
    two_runs,
    unpack,
    write_probed,
    write_two,
)

from grounding.errors import BadInput
from visualize.report import Subject, write_report
from visualize.report.budget import choose, default_budget
from visualize.report.maps import MODEL, Unit, quantised, read_maps, units_of
from visualize.report.overview import blocks
from visualize.report.pack import to_script_json
from visualize.report.page import content_hash, render_page
from visualize.report.subject import match_runs


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two runs, what they are, and its folder."""
    folder = tmp_path_factory.mktemp("report") / "out"
    written, subjects, examples = write_two(folder)
    return folder, written, subjects, examples


def test_a_caption_cannot_end_its_script():
    text = to_script_json({"caption": EVIL})
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text)["caption"] == EVIL


def test_numbers_that_json_does_not_know_are_refused():
    with pytest.raises(ValueError):
        to_script_json([float("nan")])


def test_the_page_allows_its_own_script_and_nothing_else():
    html = render_page(EVIL)
    script, style = (re.search(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)[1] for tag in ("script", "style"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert content_hash(script) in policy
    assert content_hash(style) in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert html.count("<script") == 1
    assert "hacked=1</script>" not in html


def test_the_index_says_what_the_runs_say(report):
    folder, written, subjects, examples = report
    index = chunk(folder, "index")
    assert index["table"]["id"] == [example.id for example in examples]
    assert [run["name"] for run in index["runs"]] == ["first", "second"]
    for subject, outcome in zip(subjects, index["outcomes"], strict=True):
        table = subject.outcomes.table
        assert outcome["correct"] == table["correct"].tolist()
        np.testing.assert_allclose(outcome["grounding"], table["grounding"], atol=1e-4)
    assert written.examples == 6
    assert written.missing_images == 0
    assert written.bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert index["runs"][1]["words"][0]["blocks"] == [
        {"kind": "heading", "level": 1, "text": "Found"},
        {"kind": "text", "text": "Best site block.1: 0.5."},
        {"kind": "table", "rows": [["a", "b"], ["x", "1"]]},
    ]


def test_an_example_has_its_phrases_of_every_run(report):
    folder, _, subjects, examples = report
    record = chunk(folder, "examples-0")[2]
    example = examples[2]
    assert record["caption"] == example.caption
    assert record["target"] == example.target_index
    assert [phrase["id"] for phrase in record["phrases"]] == [phrase.id for phrase in example.phrases]
    np.testing.assert_allclose(record["phrases"][0]["boxes"][0], example.phrases[0].regions[0].box, atol=1e-4)
    rows = subjects[1].run.phrases.query("example == 2")
    np.testing.assert_allclose([phrase["iou"] for phrase in record["runs"][1]["phrases"]], rows["iou"], atol=1e-4)
    first = int(rows.index[0])
    assert record["runs"][1]["phrases"][0]["probes"] == {"0": [0.0, 1.0, 1.0] if first % 2 == 0 else [0.0, 0.0, 0.0]}
    assert record["runs"][0]["phrases"][0]["probes"] == {}


def test_maps_come_back_as_they_were(report):
    folder, _, subjects, _ = report
    view = next(view for view in chunk(folder, "index")["runs"][0]["views"] if view["view"] == "attention")
    assert view["units"] == [[site, head] for site in SITES for head in (None, *range(HEADS))]
    maps = chunk(folder, "maps-0-attention-0")
    cells = unpack(maps["cells"]).reshape(len(view["units"]), -1)
    peaks = unpack(maps["peaks"], np.float32).reshape(len(view["units"]), -1)
    assert maps["grids"] == [[24, 4]] * peaks.shape[1]
    row, head = 4, 2
    unit = view["units"].index([SITES[1], head])
    whole = subjects[0].run.attentions[row][head]
    back = cells[unit].reshape(-1, 24, 4)[row] / 255 * peaks[unit, row]
    np.testing.assert_allclose(back, whole, atol=whole.max() / 509)
    means = unpack(maps["means"], np.float32).reshape(len(view["units"]), -1)
    assert means[unit, row] == pytest.approx(whole.mean())
    mean = cells[0].reshape(-1, 24, 4)[row] / 255 * peaks[0, row]
    np.testing.assert_allclose(mean, subjects[0].run.attentions[row].mean(0), atol=peaks[0, row] / 509)


def test_one_planted_cell_is_the_only_one_that_is_not_zero():
    run = make_run([make_example(0)])
    plant_attention(run, row=1, head=3, cell=(9, 2))
    maps = read_maps(Subject(run, "x"), "attention", np.arange(3), [Unit("attention", SITES[0], 3)])
    np.testing.assert_array_equal(np.argwhere(maps.cells.reshape(3, 24, 4)[1]), [[9, 2]])
    assert maps.peaks[0, 1] == 1


def test_values_below_zero_count_as_zero_and_maps_of_zeros_stay():
    maps = quantised(np.array([[-2.0, 1.0, 0.5, 0.0, 0.0]]), np.array([[1, 3], [1, 2]]))
    np.testing.assert_array_equal(maps.cells, [[0, 255, 128, 0, 0]])
    np.testing.assert_array_equal(maps.peaks, [[1, 0]])


def test_a_budget_keeps_what_is_worth_most():
    examples = [make_example(number) for number in range(4)]
    run = make_run(examples, heatmaps=True)
    best = {"kind": "raw", "site": SITES[1], "head": "2", "scope": "canvas", "measure": "pointing", "value": 0.9}
    others = [best | {"site": SITES[0], "head": str(head), "value": 0.1 * head} for head in range(HEADS)]
    subject = Subject(run, "x", heads=pd.DataFrame([*others, best]))
    rows = [np.arange(4)]
    (everything,) = choose([subject], rows, 4, budget=1e9, fixed=0)
    assert not everything.left_out
    assert sum(len(held.units) for held in everything.held) == len(units_of(subject)) == 1 + 3 * (1 + HEADS)
    (nothing,) = choose([subject], rows, 4, budget=1000, fixed=2000)
    assert not nothing.held
    assert len(nothing.left_out) == 2
    assert "--budget-mb" in nothing.left_out[0]
    (most,) = choose([subject], rows, 4, budget=50e6, fixed=50e6)
    assert most.left_out
    told = float(re.search(r"--budget-mb (\d+)", most.left_out[0])[1])
    (again,) = choose([subject], rows, 4, budget=told * 1e6, fixed=50e6)
    assert not again.left_out
    kept = {}
    for budget in np.linspace(1e3, 4.5e4, 60):  # as it grows: means over heads, then the best head, then the others
        (choice,) = choose([subject], rows, 4, budget=budget, fixed=0)
        for held in choice.held:
            for unit in held.units:
                kept.setdefault(unit, budget)
    assert kept[Unit("attention", SITES[2])] < kept[Unit("attention", SITES[0])] < kept[Unit("attention", SITES[1], 2)]
    assert Unit(MODEL, MODEL) in kept
    assert kept[Unit("attention", SITES[1], 2)] <= min(kept[Unit("attention", SITES[2], h)] for h in range(HEADS))


def test_heads_are_told_of_what_was_left_out_where_a_view_has_them():
    run = make_run([make_example(0)])
    subject = Subject(run, "x", probed=PlantedProbes(run, np.random.default_rng(0).random((3, 24, 4)), {0: "test"}))
    told = set()
    for budget in np.linspace(100, 1e4, 100):
        (choice,) = choose([subject], [np.arange(1)], 1, budget=budget, fixed=0)
        told |= {line.partition(" (")[0] for line in choice.left_out}
    assert "the linear probe’s probability: block.0" in told
    assert not [line for line in told if line.startswith("the linear probe") and "head" in line]
    assert "attention: head 0, 1, 2, 3 of block.0, block.1, block.2" in told


def test_maps_of_probes_go_in_by_layer_with_the_part_that_each_example_is_in(tmp_path):
    subject, examples = write_probed(tmp_path / "out", 3)
    index = chunk(tmp_path / "out", "index")
    view = next(view for view in index["runs"][0]["views"] if view["view"] == "probe")
    assert view["units"] == [[site, None] for site in subject.probed.sites]
    maps = chunk(tmp_path / "out", "maps-0-probe-0")
    found, peaks = unpack(maps["cells"]).reshape(2, -1, 24, 4), unpack(maps["peaks"], np.float32).reshape(2, -1)
    np.testing.assert_array_equal(np.argwhere(found), [[0, 4, 9, 2], [1, 4, 9, 2]])
    np.testing.assert_allclose(peaks[:, 4], [0.75, 0.375])  # half of it at the second layer
    assert [record["runs"][0]["part"] for record in chunk(tmp_path / "out", "examples-0")] == ["train", "test", None]
    write_report([subject], tmp_path / "few", examples, views=["probe"])
    assert [view["view"] for view in chunk(tmp_path / "few", "index")["runs"][0]["views"]] == ["probe"]


def test_the_default_budget_is_thirty_megabytes_a_thousand():
    assert default_budget(1000) == 30e6
    assert default_budget(3) == 5e6


def test_runs_of_other_examples_are_refused(tmp_path):
    one, _, examples = two_runs(3)
    other = make_run([*examples[:2], make_example(9)])
    with pytest.raises(BadInput, match="'a' and 'b' hold different examples: 3 and 3, 2 of them shared"):
        write_report([Subject(one, "a"), Subject(other, "b")], tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_runs_in_another_order_are_matched_by_id():
    examples = [make_example(number) for number in range(4)]
    one, other = make_run(examples), make_run(examples[::-1])
    rows = match_runs([Subject(one, "a"), Subject(other, "b")])
    np.testing.assert_array_equal(rows[1], [3, 2, 1, 0])


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_no_runs_and_names_given_twice_are_refused(names):
    run = make_run([make_example(0)])
    with pytest.raises(BadInput, match="accepted"):
        match_runs([Subject(run, name) for name in names])


def test_a_phrase_that_one_run_leaves_out_is_none_there(tmp_path):
    one, other, examples = two_runs(2)
    other.phrases = other.phrases[other.phrases.index != 4].reset_index(drop=True)
    other.attentions, other.heatmaps = {}, {}
    other.regions = other.regions.iloc[:0]
    other.phrases["heatmap_rows"] = 0
    write_report([Subject(one, "a"), Subject(other, "b")], tmp_path / "out", by_id(examples))
    found = chunk(tmp_path / "out", "examples-0")[1]["runs"]
    assert [phrase is None for phrase in found[1]["phrases"]] == [False, True, False]
    assert all(found[0]["phrases"])


def test_missing_images_have_a_reason(tmp_path):
    one, _, _examples = two_runs(2)
    broken = make_example(1)
    object.__setattr__(broken, "images", (tmp_path / "gone.png", *broken.images[1:]))
    written = write_report([Subject(one, "a")], tmp_path / "out", {broken.id: broken})
    records = chunk(tmp_path / "out", "examples-0")
    assert written.missing_images == 7
    assert {tuple(image) for image in records[0]["images"]} == {("missing",)}
    told = records[1]["images"][0]["missing"]
    assert "gone.png" in told
    assert str(tmp_path) not in told  # a report is passed on
    assert "src" in records[1]["images"][1]
    assert chunk(tmp_path / "out", "index")["table"]["thumb"][0] is None


def test_runs_that_hold_little_are_reported_with_notes(tmp_path):
    example = make_panorama(0)
    run = make_run([example], attention=False)
    run.phrases[[f"predicted_{c}" for c in ("x1", "y1", "x2", "y2")]] = np.nan
    run.phrases["predicted_image_index"] = -1
    run.phrases[["iou", "pointing"]] = np.nan
    run.examples[["answer_x", "answer_y"]] = np.nan
    run.examples["task_score"] = np.nan
    run.manifest["dropped_phrases"] = [[example.id, "one"], [example.id, "two"]]
    write_report([Subject(run, "a")], tmp_path / "out", by_id([example]))
    index, record = chunk(tmp_path / "out", "index"), chunk(tmp_path / "out", "examples-0")[0]
    assert index["runs"][0]["views"] == []
    assert len(index["runs"][0]["notes"]) == 6
    assert "leaves out 2 of its phrases, in 1 of its examples" in index["runs"][0]["notes"][-1]
    assert record["runs"][0]["answer"] is None
    assert record["runs"][0]["correct"] is None
    assert record["runs"][0]["phrases"][0]["predicted"] is None


def test_a_folder_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="holds other files"):
        write_report([Subject(make_run([make_example(0)]), "a")], tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("budget", [0, -3, float("nan")])
def test_a_budget_that_is_no_size_is_refused(tmp_path, budget):
    with pytest.raises(BadInput, match="budget-mb"):
        write_report([Subject(make_run([make_example(0)]), "a")], tmp_path / "out", {}, budget_mb=budget)


def test_what_fails_on_the_way_leaves_the_old_report(tmp_path, monkeypatch):
    examples = [make_example(0)]
    subject = Subject(make_run(examples), "a")
    write_report([subject], tmp_path / "out", by_id(examples))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("visualize.report.content.read_maps", full)
    with pytest.raises(OSError, match="no space"):
        write_report([subject], tmp_path / "out", by_id(examples))
    assert [place.name for place in tmp_path.iterdir()] == ["out"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before
    monkeypatch.undo()
    write_report([subject], tmp_path / "out", by_id(examples), title="again")
    assert chunk(tmp_path / "out", "index")["title"] == "again"


def test_equal_images_are_written_once(tmp_path):
    examples = [make_example(3), make_example(3)]
    object.__setattr__(examples[1], "id", "other")
    write_report([Subject(make_run(examples), "a")], tmp_path / "out", by_id(examples))
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6


def test_lists_and_raw_html_of_a_summary_become_text():
    found = list(blocks("* a `b`\n* c\n\n<script>x</script>\n\nd <b>e</b>"))
    assert found[0] == {"kind": "list", "items": ["a b", "c"]}
    assert [block["text"] for block in found[1:]] == ["<script>x</script>\n", "d <b>e</b>"]
    assert [block["text"] for block in blocks("A sentence.\nAnother `one`.")] == ["A sentence.\nAnother one."]


def test_only_the_first_seed_of_a_sweep_is_shown():
    run = make_run([make_example(0)])
    items = items_of(run)
    from visualize.report.records import series_of

    (series,) = series_of(pd.concat([items, items.assign(seed=1, correct=1 - items["correct"])]))
    np.testing.assert_array_equal(series.found[0], [0, 1, 1])
