"""Galleries by rank, confusion of candidates, insets of panoramas, masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_gallery import make_example, make_panorama, make_run
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from pycocotools import mask as coco_mask

from grounding.errors import BadInput
from visualize.case import CasePhrase, gather
from visualize.gallery import draw_gallery
from visualize.games import choices, draw_choices
from visualize.overlays import draw_example
from visualize.panel import FRAME, Panel
from visualize.ranked import Gaps, biggest_gaps, draw_changed, most_changed
from visualize.sheet import Sheet
from visualize.style import phrase_colour
from visualize.zoom import insets_of


@pytest.fixture(scope="module")
def examples():
    return {e.id: e for e in (make_example(n) for n in range(8))}


@pytest.fixture(scope="module")
def run(examples):
    return make_run(list(examples.values()))


def texts(figure) -> str:
    return " ".join(artist.get_text() for artist in figure.findobj(Text))


def test_the_biggest_gaps_come_first_and_the_rule_is_printed(run, examples):
    own = [0.5, 0.1, 0.9, 0.0]
    gaps = Gaps(pd.DataFrame({"example": [3, 5, 6, 7], "probe": [0.6, 0.6, 0.2, 0.5], "own": own}), "the linear probe")
    chosen = biggest_gaps(gaps, count=3)
    assert chosen.rows[2] == 3
    assert set(chosen.rows[:2]) == {5, 7}  # equal gaps, in random order
    orders = {biggest_gaps(gaps, 2, seed).rows for seed in range(8)}
    assert orders == {(5, 7), (7, 5)}
    assert biggest_gaps(gaps, count=9).rows == chosen.rows  # where the model shows more, there is no gap
    figure = draw_gallery([[chosen]], {row: gather(run, row, examples) for row in chosen.rows}, remarks=gaps.remarks)
    words = texts(figure)
    assert "of the linear probe minus the model's own; the 3 largest of 3 above 0, of 4 examples, ties in" in words
    assert "probe 0.60, model 0.10" in words


def test_without_a_gap_there_is_a_line(run):
    nothing = Gaps(pd.DataFrame({"example": [1], "probe": [0.1], "own": [0.4]}), "the linear probe")
    assert "above 0 for none of 1 example" in texts(draw_gallery([[biggest_gaps(nothing)]], {}))


def changed(run, amounts: dict[str, float]):
    """The same run in another order, with the IoU of some examples moved."""
    other = replace(run, phrases=run.phrases.copy(), examples=run.examples.copy(), path=Path("runs/later"))
    ids = run.examples["id"].to_numpy()[run.phrases["example"]]
    other.phrases["iou"] += [amounts.get(name, 0.0) for name in ids]
    return other


def test_the_most_changed_are_found_whichever_way_they_went(run, examples):
    later = changed(run, {"fake/002": -0.3, "fake/006": 0.2, "fake/001": 0.1})
    found = most_changed(run, later, count=3)
    assert found.names == ("fake", "later")
    assert found.pairs == ((2, 2), (6, 6), (1, 1))
    assert found.remarks[0][1].endswith("(-0.30)")
    cases = [(gather(run, old, examples), gather(later, new, examples)) for old, new in found.pairs]
    words = texts(draw_changed(found, cases))
    assert (
        "change of the example's mean IoU, up or down; the 3 largest of 8 examples that both runs know it of" in words
    )
    assert "later" in words


def test_runs_that_do_not_go_together_are_refused(run):
    with pytest.raises(BadInput, match="against 'fake' is the run itself; accepted: a run of another checkpoint"):
        most_changed(run, replace(run, path=Path("there/../fake")))
    other = changed(run, {})
    other.examples["id"] = "other-" + other.examples["id"]
    with pytest.raises(BadInput, match="runs 'fake' and 'later' have no example in common"):
        most_changed(run, other)
    other = changed(run, {})
    other.examples.loc[4, "caption"] = "something else"
    with pytest.raises(BadInput, match="have other captions of example 'fake/004'"):
        most_changed(run, other)
    other = changed(run, {})
    other.phrases["iou"] = np.nan
    with pytest.raises(BadInput, match="measure grounding as mean IoU and share of phrases"):
        most_changed(run, other)


def test_choices_are_counted_by_target_and_answer(run):
    table = run.examples.assign(target_index=[0, 0, 1, 1, 2, 2, 3, 3], answer_index=[0, 1, 1, 1, 5, 2, 3, -1])
    counts = choices(table)
    expected = np.zeros((6, 6), dtype=int)
    for target, answer in ((0, 0), (0, 1), (1, 1), (1, 1), (2, 5), (2, 2), (3, 3)):
        expected[target, answer] += 1
    np.testing.assert_array_equal(counts, expected)
    words = texts(draw_choices(counts))
    assert "5 of 7 games solved" in words
    with pytest.raises(BadInput, match="no game was answered"):
        draw_choices(choices(table.assign(answer_index=-1)))


def panorama(target, answer):
    example = make_panorama(0)
    case = gather(make_run([example]), 0, {example.id: example})
    return replace(case, target=target, answer=answer, phrases=(), images=(np.full((100, 400, 3), 255, np.uint8),))


def test_target_and_answer_of_a_panorama_are_enlarged_without_distortion():
    case = panorama((0.25, 0.5), (0.97, 0.5))
    first, second = insets_of(case)
    assert first.box == pytest.approx(((100 - 33.5) / 400, 0.25, (100 + 33.5) / 400, 0.75), abs=0.003)
    assert second.box[2] == 1  # moved inside the image
    figure = draw_example(case)
    whole, *parts = (image.get_extent() for image in figure.axes[0].images)
    assert len(parts) == 2
    for (left, right, below, above), inset in zip(parts, (first, second), strict=True):
        x1, y1, x2, y2 = inset.box
        assert (right - left) / (below - above) == pytest.approx((x2 - x1) * 400 / ((y2 - y1) * 100))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o" and line.get_markersize() == 11]
    ring = marks[1].get_xydata()[0]  # the first is on the whole panorama
    left, right, below, above = parts[0]
    assert ring == pytest.approx(((left + right) / 2, (below + above) / 2), abs=0.03)
    assert whole[1] - whole[0] == pytest.approx(4 * (whole[2] - whole[3]))
    assert "round the target" in texts(figure)
    assert len(insets_of(panorama((0.25, 0.5), (0.27, 0.5)))) == 1
    assert len(insets_of(panorama((0.25, 0.5), None))) == 1


def test_what_reaches_out_of_an_inset_is_cut_off_at_its_edges():
    case = panorama((0.25, 0.5), None)
    wide = CasePhrase(0, "a", ((0, 1),), 0, boxes=((0.0, 0.4, 1.0, 0.6),), predicted=(0, (0.1, 0.45, 0.9, 0.55)))
    figure = draw_example(replace(case, phrases=(wide,)))
    figure.set_dpi(100)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    left, right, below, above = (round(100 * v) for v in figure.axes[0].images[1].get_extent())
    assert (pixels[above + 10 : below - 10, left + 5 : right - 5] < 200).any()
    assert (pixels[above:below, right + 3 :] == 255).all()
    assert (pixels[above:below, : left - 3] == 255).all()


def test_games_and_ordinary_pictures_have_no_insets(run, examples):
    assert not insets_of(gather(run, 0, examples))
    assert not insets_of(replace(panorama((0.5, 0.5), None), images=(np.zeros((100, 200, 3), np.uint8),)))


@pytest.mark.parametrize("kind", ["polygon", "pixels"])
def test_masks_are_outlined_to_the_pixel_and_leave_the_picture_its_colours(kind):
    example = make_example(1, candidates=1, phrases=1)
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[16:48, 32:] = 1
    coded = coco_mask.encode(mask)["counts"].decode("ascii")
    square = ((0.5, 0.25), (1, 0.25), (1, 0.75), (0.5, 0.75))
    shape = {"polygons": (square,)} if kind == "polygon" else {"mask_rle": (64, 64, coded)}
    (phrase,) = example.phrases
    phrase = replace(phrase, regions=tuple(replace(region, **shape) for region in phrase.regions))
    example = replace(example, phrases=(phrase,), images=(np.full((64, 64, 3), 255, np.uint8),))
    case = gather(make_run([example]), 0, {example.id: example})
    case = replace(case, phrases=tuple(replace(p, boxes=(), predicted=None) for p in case.phrases))
    sheet = Sheet(4, 4)
    panel = Panel(case, 4, shown=0, tallest=9)
    panel.draw(sheet, 0, 0)
    figure = sheet.finish()
    figure.set_dpi(100)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)
    line = np.abs(pixels - 255 * np.array(to_rgb(phrase_colour(0)))).max(-1) < 100
    slot = panel.arrangement.slots[0].moved(FRAME, FRAME)
    x1, y1, x2, y2 = (100 * v for v in slot.box((0.5, 0.25, 1, 0.75)))
    rows, columns = np.flatnonzero(line.any(1)), np.flatnonzero(line.any(0))
    np.testing.assert_allclose((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), (x1, y1, x2, y2), atol=2)
    assert (pixels[round(y1) + 5 : round(y2) - 5, round(x1) + 5 : round(x2) - 5] == 255).all()
