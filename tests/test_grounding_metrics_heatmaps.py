import numpy as np
import pytest
import torch

from grounding.errors import BadInput
from grounding.metrics.areas import Area
from grounding.metrics.boxes import PROTOCOLS
from grounding.metrics.heatmaps import (
    THRESHOLDS,
    Threshold,
    _levels_below,
    by_protocol,
    check_threshold,
    check_tuning_split,
    choose_threshold,
    pointing,
    region_boxes,
    resize_published,
    threshold_ious,
    truth_coverage,
)

FIRST = torch.zeros(1, dtype=torch.long)


def one_heatmap(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]  # [1, 1, h, w]


def test_iou_by_hand():
    # Truth: the left half of a 2 x 2 map. Above 0.5: both left cells. Above 0: three cells. Above 0.9: one.
    heatmap = one_heatmap([[0.4, 0.1], [0.3, 0.0]])
    truth = truth_coverage(torch.tensor([[[0.0, 0.0, 0.5, 1.0]]], dtype=torch.float64), 2, 2)
    ious = by_protocol(threshold_ious(heatmap, FIRST, truth, (0.5, 0.0, 0.9)))
    for protocol in PROTOCOLS:
        assert ious[protocol][0].tolist() == pytest.approx([1.0, 2 / 3, 1 / 2])


def test_a_cell_that_the_truth_half_covers_counts_half():
    heatmap = one_heatmap([[1.0, 0.0]])
    truth = truth_coverage(torch.tensor([[[0.0, 0.0, 0.25, 1.0]]], dtype=torch.float64), 1, 2)
    assert threshold_ious(heatmap, FIRST, truth, [0.5])[0, 0, 0].item() == pytest.approx(0.25 / 0.5)


def test_heat_in_another_candidate_counts_against_it():
    heatmap = torch.zeros(1, 3, 2, 2)
    heatmap[0, 1] = 0.1  # the truth's candidate, all of it
    heatmap[0, 2, 0, 0] = 0.1  # a quarter of another
    truth = torch.ones(1, 1, 2, 2)
    assert threshold_ious(heatmap, torch.tensor([1]), truth, [0.5]).item() == pytest.approx(1 / 1.25)
    assert threshold_ious(heatmap, torch.tensor([0]), truth, [0.5]).item() == 0


def test_protocols_for_two_truth_boxes_by_hand():
    heatmap = one_heatmap([[1.0, 0.0, 0.0, 1.0]])
    boxes = torch.tensor([[[0.0, 0.0, 0.25, 1.0], [0.75, 0.0, 1.0, 1.0]]], dtype=torch.float64)
    ious = by_protocol(threshold_ious(heatmap, FIRST, truth_coverage(boxes, 1, 4), [0.5]))
    assert {name: value.item() for name, value in ious.items()} == pytest.approx(
        {"all": 1.0, "merged": 0.5, "any": 0.5}
    )


def test_all_thresholds_at_once_equal_one_by_one():
    rng = np.random.default_rng(0)
    heatmaps = torch.as_tensor(rng.random((5, 3, 8, 6)).astype(np.float32)).round(decimals=2)  # many ties
    heatmaps /= heatmaps.sum((1, 2, 3), keepdim=True)
    index = torch.as_tensor(rng.integers(0, 3, 5))
    coverage = torch.as_tensor(rng.random((5, 4, 8, 6)))
    ious = threshold_ious(heatmaps, index, coverage)
    for number, threshold in enumerate(THRESHOLDS):
        above = (heatmaps / heatmaps.amax((1, 2, 3), keepdim=True) > threshold).double()
        own = above[torch.arange(5), index][:, None]
        shared = (own * coverage).sum((2, 3))
        union = above.sum((1, 2, 3))[:, None] + coverage.sum((2, 3)) - shared
        torch.testing.assert_close(ious[:, :, number], shared / union)
        torch.testing.assert_close(threshold_ious(heatmaps, index, coverage, [threshold])[:, :, 0], shared / union)


def test_scale_of_the_heatmap_and_order_of_phrases_do_not_matter():
    rng = np.random.default_rng(1)
    heatmaps = torch.as_tensor(rng.random((6, 2, 4, 4)))
    index, coverage = torch.as_tensor(rng.integers(0, 2, 6)), torch.as_tensor(rng.random((6, 1, 4, 4)))
    ious = threshold_ious(heatmaps, index, coverage)
    torch.testing.assert_close(threshold_ious(heatmaps * 8, index, coverage), ious)
    order = torch.as_tensor(rng.permutation(6))
    torch.testing.assert_close(threshold_ious(heatmaps[order], index[order], coverage[order]), ious[order])


def test_threshold_is_the_first_best_and_remembers_its_split():
    curves = np.array([[0.2, 0.6, 0.6, 0.4], [0.1, 0.5, 0.5, 0.3], [0.9, 0.4, 0.45, 0.0]])
    levels = (0.0, 0.1, 0.2, 0.3)
    assert choose_threshold(curves, "dev", "recall", levels) == Threshold(0.1, "dev", 3, "recall")
    assert choose_threshold(curves, "dev", "iou", levels) == Threshold(0.2, "dev", 3, "iou")


@pytest.mark.parametrize("split", ["test", "test_unseen", "testA", "flickr_test", "Test"])
def test_no_threshold_is_tuned_on_test(split):
    with pytest.raises(BadInput, match=split):
        choose_threshold(np.ones((2, 100)), split)


def test_other_splits_and_bad_choices():
    for split in ("dev", "tune", "val", "contested"):
        check_tuning_split(split)
    with pytest.raises(BadInput, match="criterion 'best' is unknown; accepted: recall, iou"):
        choose_threshold(np.ones((2, 100)), "dev", "best")
    with pytest.raises(BadInput, match=r"\(0, 100\)"):
        choose_threshold(np.ones((0, 100)), "dev")
    assert check_threshold(Threshold(0.3, "dev", 1, "iou")) == 0.3
    for bad in (1.0, -0.1, float("nan")):
        with pytest.raises(BadInput, match="threshold"):
            check_threshold(bad)


def test_pointing_counts_tied_peaks_by_their_share():
    heatmaps = torch.zeros(3, 2, 2, 2)
    heatmaps[0, 1, 0, 0] = 1.0  # inside
    heatmaps[1, 0, 0, 0] = 1.0  # same cell, other candidate
    heatmaps[2, 1, 0, 0] = heatmaps[2, 1, 1, 1] = heatmaps[2, 0, 0, 0] = heatmaps[2, 1, 0, 1] = 0.5
    inside = Area.of_boxes(torch.tensor([[[0.0, 0.0, 1.0, 0.5]]] * 3, dtype=torch.float64)).holds_centres(2, 2)
    assert pointing(heatmaps, torch.ones(3, dtype=torch.long), inside).tolist() == [1.0, 0.0, 0.5]


def test_region_box_is_round_the_heat_in_the_peaks_candidate():
    heatmaps = torch.zeros(1, 2, 4, 5)
    heatmaps[0, 1, 1, 2], heatmaps[0, 1, 2, 3], heatmaps[0, 1, 3, 0] = 1.0, 0.6, 0.2
    heatmaps[0, 0, 0, 0] = 0.9
    box, index = region_boxes(heatmaps, 0.5)
    assert index.tolist() == [1]
    assert box[0].tolist() == pytest.approx([2 / 5, 1 / 4, 4 / 5, 3 / 4])
    assert region_boxes(heatmaps, 0.1)[0][0].tolist() == pytest.approx([0, 1 / 4, 4 / 5, 1])


def test_published_resizing_pools_where_a_side_shrinks():
    heatmap = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    assert resize_published(heatmap, (1, 4))[0].tolist() == [[1.0, 1.0, 2.0, 2.0]]
    assert resize_published(heatmap, (2, 4))[0, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    assert resize_published(heatmap, (2, 2)) is heatmap


def test_levels_below_a_value_are_those_that_a_search_finds():
    levels = torch.tensor(THRESHOLDS)
    above, below = (torch.nextafter(levels, torch.tensor(limit)).clamp(0, 1) for limit in (2.0, -1.0))
    values = torch.cat([levels, above, below, torch.rand(5000, generator=torch.Generator().manual_seed(0)), levels[:1]])
    assert torch.equal(_levels_below(values, levels), torch.bucketize(values, levels))
    near = torch.tensor([0.5, 0.5001, 0.5002, 0.5003])  # several in one bin
    assert torch.equal(_levels_below(values, near), torch.bucketize(values, near))
