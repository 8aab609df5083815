from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from grounding.errors import BadInput
from grounding.examples import Example, Phrase, PhrasePrediction, ReferenceGame, Region
from grounding.metrics.phrases import PROTOCOLS, Measure, PhraseItem, heatmap_curves, phrase_scores, phrase_table

LEFT, RIGHT = (0.0, 0.0, 0.25, 1.0), (0.75, 0.0, 1.0, 1.0)
TRIANGLE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))


def item(prediction, *regions, image_index=1, n_images=2):
    regions = tuple(region if isinstance(region, Region) else Region(region) for region in regions)
    phrase = Phrase("p", "thing", ((0, 3),), regions, image_index)
    images = tuple(np.zeros((4, 4, 3), dtype=np.uint8) for _ in range(n_images))
    example = Example("e", "dev", images, "the one", (phrase,), ReferenceGame(image_index), {"image": "i"})
    return PhraseItem(example, phrase, prediction)


def boxed(*rows):
    """Ranked boxes, each given with its candidate: (x1, y1, x2, y2, image_index)."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return PhrasePrediction("p", boxes=table[:, :4], image_index=table[:, 4].astype(int), scores=np.ones(len(rows)))


def heat(*maps):
    return PhrasePrediction("p", heatmap=np.array(maps, dtype=np.float32))


def row_of(prediction, *regions, threshold=0.5, measure=None, **where):
    return phrase_table([item(prediction, *regions, **where)], threshold, measure).iloc[0]


NOTHING = [[0.0] * 4]


def test_both_families_that_say_the_same_get_the_same_row():
    of_box = row_of(boxed((0.0, 0.0, 0.5, 1.0, 1)), LEFT, RIGHT)
    of_heat = row_of(heat(NOTHING, [[0.5, 0.5, 0.0, 0.0]]), LEFT, RIGHT)
    expected = {"iou": 0.25 / 0.75, "iou_any": 0.5, "iou_merged": 0.5, "hit": False}
    box = {"predicted_x1": 0.0, "predicted_y1": 0.0, "predicted_x2": 0.5, "predicted_y2": 1.0}
    for row in (of_box, of_heat):
        assert row[[*expected, *box]].to_dict() == pytest.approx(expected | box)
        assert row["predicted_image_index"] == row["image_index"] == 1
    assert of_box["pointing"] == 0  # its centre is between the regions
    assert of_heat["pointing"] == 0.5  # one of its two equal peaks is in one


def test_only_the_best_box_counts_and_only_in_its_candidate():
    first = row_of(boxed((*LEFT, 1), (*RIGHT, 1)), RIGHT)
    assert (first["iou"], first["pointing"], first["hit"]) == (0, 0, False)
    elsewhere = row_of(boxed((*LEFT, 0)), LEFT)
    assert (elsewhere["iou"], elsewhere["iou_any"], elsewhere["iou_merged"], elsewhere["pointing"]) == (0, 0, 0, 0)
    right = row_of(boxed((*LEFT, 1)), LEFT)
    assert (right["iou"], right["pointing"], right["hit"]) == (1, 1, True)


def test_no_box_is_no_grounding():
    row = row_of(boxed(), LEFT)
    assert (row["iou"], row["pointing"], row["predicted_image_index"]) == (0, 0, -1)
    assert np.isnan(row["predicted_x1"])


def test_rows_keep_the_order_of_mixed_kinds_and_shapes():
    heats = [heat(NOTHING, [[1.0, 0, 0, 0]]), heat([[0.0] * 2] * 2, [[0.0, 0.5], [0.0, 0.5]])]
    items = [item(heats[0], LEFT), item(boxed((*RIGHT, 1)), RIGHT), item(heats[1], LEFT, RIGHT), item(heats[0], RIGHT)]
    table = phrase_table(items, 0.5)
    assert table["iou"].tolist() == pytest.approx([1, 1, 0.25 / 0.75, 0])
    assert table["image_index"].dtype == table["predicted_image_index"].dtype == np.int64


def test_blocks_of_memory_do_not_change_the_numbers(monkeypatch):
    rng = np.random.default_rng(0)
    boxes = [tuple(np.sort(rng.random((2, 2)), axis=0).ravel()) for _ in range(60)]
    items = [item(heat(*rng.random((2, 4, 4))), *boxes[n : n + 1 + n % 3]) for n in range(30)]
    items += [item(boxed((*boxes[-n - 1], n % 2)), *boxes[n : n + 1 + n % 3]) for n in range(30)]
    whole = phrase_table(items, 0.3)
    monkeypatch.setattr("grounding.metrics.phrase_ious._CHUNK", 200)
    pd.testing.assert_frame_equal(phrase_table(items, 0.3), whole)


def test_outlines_are_compared_where_they_are_asked_for():
    region = Region((0.0, 0.0, 1.0, 1.0), polygons=(TRIANGLE,))
    full = boxed((0.0, 0.0, 1.0, 1.0, 1)), heat([[0.0] * 4] * 4, [[0.1] * 4] * 4)
    for prediction in full:
        assert row_of(prediction, region)["iou"] == pytest.approx(1)
        outlined = row_of(prediction, region, measure=Measure(truth="outlines"))
        assert outlined["iou"] == pytest.approx(0.5, abs=0.01)
        assert outlined["iou_merged"] == pytest.approx(1)
    corner = boxed((0.8, 0.8, 1.0, 1.0, 1))
    assert row_of(corner, region)["pointing"] == 1
    assert row_of(corner, region, measure=Measure(truth="outlines"))["pointing"] == 0
    away = boxed((0.0, 0.0, 1.0, 1.0, 0))
    assert row_of(away, region, measure=Measure(truth="outlines"))["iou"] == 0
    assert row_of(full[0], LEFT, measure=Measure(truth="outlines"))["iou"] == pytest.approx(0.25)


def test_paper_works_on_the_stacked_canvas():
    # Two candidates of 4 x 4 pixels: 0.3 of a width of 4 rounds to 1 pixel, 0.4 to 2.
    measure = Measure("paper", canvas_size=(8, 4))
    row = row_of(boxed((0.0, 0.0, 0.4, 1.0, 1)), (0.0, 0.0, 0.3, 1.0), measure=measure)
    assert row["iou"] == pytest.approx(0.5)
    # Resized to 8 x 4, the heat is (0, 0, 0, 1/4, 3/4, 1, 1, 1) down times (1, 3/4, 1/4, 0) across: 8 pixels pass.
    smooth = row_of(heat([[0.0] * 2] * 2, [[1.0, 0.0]] * 2), LEFT, measure=measure)
    assert smooth["iou"] == pytest.approx(4 / 8)
    assert row_of(boxed((*LEFT, 0)), LEFT, measure=measure)["iou"] == 0


def test_paper_takes_the_canvas_of_each_prediction():
    """The same boxes and heatmaps, seen on canvases of two sizes, mixed."""
    sizes = [(8, 4), (200, 100), (8, 4), (200, 100)]
    seen = [boxed((0.0, 0.0, 0.4, 1.0, 1))] * 2 + [heat([[0.0] * 2] * 2, [[1.0, 0.0]] * 2)] * 2
    items = [replace(item(one, (0.0, 0.0, 0.3, 1.0)), canvas_size=size) for one, size in zip(seen, sizes, strict=True)]
    found = phrase_table(items, 0.5, Measure("paper"))["iou"]
    alone = [phrase_table([i], 0.5, Measure("paper", canvas_size=i.canvas_size))["iou"][0] for i in items]
    assert found.tolist() == alone
    assert found[:2].tolist() == pytest.approx([0.5, 0.75])
    assert found[2] != found[3]
    curves = heatmap_curves(items[2:], measure=Measure("paper"))
    np.testing.assert_allclose(curves[:, 50], found[2:])


def test_paper_draws_polygons_on_the_canvas():
    region = Region((0.0, 0.0, 1.0, 1.0), polygons=(TRIANGLE,))
    measure = Measure("paper", "outlines", canvas_size=(200, 100))
    row = row_of(heat([[0.0] * 100] * 100, [[0.1] * 100] * 100), region, measure=measure)
    assert row["iou"] == pytest.approx(0.5, abs=0.01)


def test_curves_hold_the_table_s_numbers():
    rng = np.random.default_rng(1)
    items = [item(heat(*rng.random((2, 4, 4))), LEFT, RIGHT) for _ in range(5)]
    table = phrase_table(items, 0.3)
    for protocol, column in (("all", "iou"), ("any", "iou_any"), ("merged", "iou_merged")):
        curves = heatmap_curves(items, protocol)
        assert curves.shape == (5, 100)
        np.testing.assert_allclose(curves[:, 30], table[column])


@pytest.mark.parametrize("measure", [Measure(), Measure(truth="outlines"), Measure("paper", "outlines", (8, 4))])
def test_one_protocol_alone_has_the_table_s_numbers(measure):
    rng = np.random.default_rng(2)
    outlined = Region((0.0, 0.0, 1.0, 1.0), polygons=(TRIANGLE,))
    truths = ([LEFT], [LEFT, RIGHT], [outlined], [RIGHT, (0.1, 0.2, 0.6, 0.7)])
    items = [item(heat(*rng.random((2, 4, 4))), *truth) for truth in truths]
    items += [item(boxed((0.1, 0.1, 0.8, 0.9, 1)), *truth) for truth in truths]
    table = phrase_table(items, 0.3, measure)
    for protocol, column in zip(PROTOCOLS, ("iou", "iou_any", "iou_merged"), strict=True):
        scores = phrase_scores(items, 0.3, measure, [protocol])
        assert sorted({"iou", "iou_any", "iou_merged"} & set(scores)) == [column]
        for name, values in scores.items():
            np.testing.assert_array_equal(values, table[name])


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="example 'e' has heatmaps: a threshold is needed"):
        row_of(heat(NOTHING, NOTHING), LEFT, threshold=None)
    with pytest.raises(BadInput, match="mode 'exact' is unknown; accepted: corrected, paper"):
        Measure("exact")
    with pytest.raises(BadInput, match="truth 'masks' is unknown; accepted: boxes, outlines"):
        Measure(truth="masks")
    with pytest.raises(BadInput, match=r"canvas_size \(0, 4\) is too small"):
        Measure("paper", canvas_size=(0, 4))
    with pytest.raises(BadInput, match="example 'e': its prediction has no canvas_size"):
        row_of(boxed((*LEFT, 1)), LEFT, measure=Measure("paper"))
    with pytest.raises(BadInput, match="no heatmap"):
        heatmap_curves([item(boxed((*LEFT, 1)), LEFT)])
    with pytest.raises(BadInput, match="protocol 'best'"):
        heatmap_curves([], "best")
    with pytest.raises(BadInput, match="protocol 'best'"):
        phrase_scores([], protocols=["best"])
    with pytest.raises(BadInput, match="phrase 'p' has no truth boxes"):
        row_of(boxed((*LEFT, 1)))
