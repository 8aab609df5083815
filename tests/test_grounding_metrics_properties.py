"""What must not change a metric (order, scale, mirroring), what must turn it round, what bounds it; on random input.

Those of box IoU and of correlations stand with their own tests.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from grounding.metrics.areas import Area
from grounding.metrics.bars import success_bars
from grounding.metrics.boxes import PROTOCOLS, merged_boxes, ranked_ious
from grounding.metrics.heatmaps import THRESHOLDS, choose_threshold, pointing, threshold_ious, truth_coverage
from grounding.metrics.intervals import bootstrap_mean
from grounding.metrics.partial import partial_correlations
from grounding.metrics.precision import average_precision, precision_recall, right_boxes
from grounding.metrics.tasks import consistency, distance_accuracy, mean_distance, nested_accuracy, sdr_distances

SEEDS = range(5)
FAST = {"resamples": 100, "permutations": 100}


def draw_boxes(rng: np.random.Generator, *shape: int) -> Tensor:
    """Random boxes, xyxy, relative."""
    return torch.tensor(np.sort(rng.random((*shape, 2, 2)), -2).reshape(*shape, 4))


def mirrored(boxes: Tensor) -> Tensor:
    """Boxes of the image seen in a mirror."""
    return torch.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)


def draw_heatmaps(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Heatmaps ``[10, 2, 8, 6]`` with ties, and the candidate of each truth."""
    return torch.tensor(rng.integers(1, 40, (10, 2, 8, 6)) / 64, dtype=torch.float32), torch.tensor(
        rng.integers(0, 2, 10)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_iou_of_two_boxes_is_symmetric_and_at_most_one(seed):
    rng = np.random.default_rng(seed)
    one, other = draw_boxes(rng, 50, 1), draw_boxes(rng, 50, 1)
    for protocol in PROTOCOLS:
        for mode, sizes in (("corrected", None), ("paper", np.full((50, 2), 90))):
            ious = ranked_ious(one, other, protocol, mode, sizes)
            torch.testing.assert_close(ious, ranked_ious(other, one, protocol, mode, sizes))
            assert (ious >= 0).all()
            assert (ious <= 1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_more_boxes_never_hurt_and_the_union_is_between_its_bounds(seed):
    rng = np.random.default_rng(seed)
    boxes = draw_boxes(rng, 20, 4)
    predicted = draw_boxes(rng, 20, 6)
    assert (ranked_ious(predicted, boxes, "any") >= ranked_ious(predicted, boxes[:, :2], "any")).all()
    union, each = Area.of_boxes(boxes).total(), (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    enclosing = Area.of_boxes(merged_boxes(boxes)).total()
    assert (union >= each.amax(1) - 1e-12).all()
    assert (union <= torch.minimum(each.sum(1), enclosing) + 1e-12).all()
    torch.testing.assert_close(Area.of_boxes(mirrored(boxes)).total(), union)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("thresholds", [THRESHOLDS, (0.2, 0.7)])
def test_heatmaps_seen_in_a_mirror_and_candidates_in_another_order(seed, thresholds):
    rng = np.random.default_rng(seed)
    maps, index = draw_heatmaps(rng)
    boxes = draw_boxes(rng, 10, 3)

    def measured(maps: Tensor, index: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        inside = Area.of_boxes(boxes).holds_centres(8, 6)
        return threshold_ious(maps, index, truth_coverage(boxes, 8, 6), thresholds), pointing(maps, index, inside)

    plain = measured(maps, index, boxes)
    same = [
        measured(maps.flip(3), index, mirrored(boxes)),
        measured(maps.flip(1), 1 - index, boxes),
        measured(maps * 4, index, boxes),
    ]
    for found in same:
        for one, other in zip(plain, found, strict=True):
            torch.testing.assert_close(one, other)
    order = torch.tensor(rng.permutation(10))
    shuffled = measured(maps[order], index[order], boxes[order])
    torch.testing.assert_close(shuffled[0], plain[0][order])
    torch.testing.assert_close(shuffled[1], plain[1][order])
    assert choose_threshold(shuffled[0][:, 0], "dev", "iou", thresholds) == choose_threshold(
        plain[0][:, 0], "dev", "iou", thresholds
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_above_a_threshold_shrinks_as_it_rises(seed):
    maps, index = draw_heatmaps(np.random.default_rng(seed))
    everything = torch.ones(10, 1, 8, 6)
    ious = threshold_ious(maps[:, :1], 0 * index, everything)  # the share of cells above the threshold
    assert (ious.diff(dim=-1) <= 0).all()
    assert (ious[..., 0] == 1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_precision_hangs_on_ranks_alone(seed):
    rng = np.random.default_rng(seed)
    predicted, truth, scores = draw_boxes(rng, 20, 8), draw_boxes(rng, 20, 3), rng.random((20, 8))
    right = right_boxes(predicted, truth, [3] * 20)
    assert torch.equal(right_boxes(mirrored(predicted), mirrored(truth), [3] * 20), right)
    assert (right.sum(1) <= 3).all()
    best = average_precision(right, [3] * 20)
    assert (best <= average_precision(right.sort(1, descending=True).values, [3] * 20)).all()
    curve, order = precision_recall(right, scores, [3] * 20), rng.permutation(20)
    for other in (
        precision_recall(right[order], scores[order], [3] * 20),
        precision_recall(right, 5 * scores - 2, [3] * 20),
    ):
        np.testing.assert_allclose(other[0], curve[0])
        np.testing.assert_allclose(other[1], curve[1])
    assert (np.diff(curve[1]) >= 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_distances_are_symmetric_scale_and_keep_no_order(seed):
    rng = np.random.default_rng(seed)
    answers, targets, captions = rng.random((40, 2)), rng.random((40, 2)), rng.integers(0, 12, 40)
    distances = sdr_distances(answers, targets)
    np.testing.assert_allclose(sdr_distances(targets, answers), distances)
    np.testing.assert_allclose(sdr_distances(1 - answers, 1 - targets), distances)
    np.testing.assert_allclose(sdr_distances(answers, targets, (2 * 3712, 2 * 800)), 2 * distances)
    limits, order = (400, 1200, 2400), rng.permutation(40)
    assert distance_accuracy(distances[order], limits) == distance_accuracy(distances, limits)
    assert mean_distance(distances[order]) == pytest.approx(mean_distance(distances))
    together = consistency(distances, captions, limits)
    assert consistency(distances[order], captions[order], limits) == together
    assert consistency(distances, captions + 100, limits) == together
    assert list(together.values()) == sorted(together.values())
    assert consistency(distances, np.arange(40), limits) == distance_accuracy(distances, limits)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_and_wrong_exchanged_turn_nested_accuracy_and_bars_round(seed):
    rng = np.random.default_rng(seed)
    correct, annotations, tangrams = rng.integers(0, 2, 60), rng.integers(0, 5, 60), rng.integers(0, 4, 60)
    accuracy, order = nested_accuracy(correct, annotations, tangrams), rng.permutation(60)
    assert nested_accuracy(1 - correct, annotations, tangrams) == pytest.approx(1 - accuracy)
    assert nested_accuracy(correct[order], annotations[order], tangrams[order]) == pytest.approx(accuracy)
    grounding = rng.random(60)
    bars = success_bars(grounding, correct, 6)
    pd.testing.assert_frame_equal(success_bars(grounding[order], correct[order], 6), bars)
    np.testing.assert_allclose(success_bars(grounding, 1 - correct, 6)["success"], 1 - bars["success"])
    scaled = success_bars(1000 * grounding, correct, 6)  # the margin of 1e-6 matters less
    assert scaled["n"].tolist() == bars["n"].tolist()
    assert (bars["n"] * bars["success"].fillna(0)).sum() == pytest.approx(correct.sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_intervals_follow_scale_and_shift_and_turn_round(seed):
    rng = np.random.default_rng(seed)
    values, groups = rng.random(80), rng.integers(0, 15, 80)
    plain, order = bootstrap_mean(values, groups, resamples=200), rng.permutation(80)
    scaled = bootstrap_mean(10 - 3 * values, groups, resamples=200)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (10 - 3 * plain.value, 10 - 3 * plain.high, 10 - 3 * plain.low)
    )
    shuffled = bootstrap_mean(values[order], groups[order], resamples=200)
    assert (shuffled.value, shuffled.low, shuffled.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert plain.low <= plain.value <= plain.high


@pytest.mark.parametrize("seed", SEEDS)
def test_partial_correlation_is_symmetric_and_keeps_no_order(seed):
    rng = np.random.default_rng(seed)
    covariates, groups, order = rng.random((60, 3)), rng.integers(0, 20, 60), rng.permutation(60)
    task = rng.random(60) + covariates[:, 0]
    grounding = 0.5 * task + rng.random(60)
    (plain,) = partial_correlations(task, grounding[:, None], covariates, groups, **FAST)
    (turned,) = partial_correlations(grounding, task[:, None], covariates, groups, **FAST)
    (shuffled,) = partial_correlations(
        task[order], grounding[order][:, None], covariates[order][:, ::-1], groups[order], **FAST
    )
    for other in (turned, shuffled):
        assert (other.value, other.low, other.high) == pytest.approx((plain.value, plain.low, plain.high))
