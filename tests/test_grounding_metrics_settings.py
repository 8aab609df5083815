"""Every protocol, rank and threshold; precision and recall of boxes; the study's bars; all against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_grounding_evaluate import answer_game, linked_games, make_game

from grounding.errors import BadInput
from grounding.evaluate import score
from grounding.metrics.bars import success_bars
from grounding.metrics.boxes import pad_boxes
from grounding.metrics.joint import correlate, correlations
from grounding.metrics.precision import average_precision, precision_recall, right_boxes
from grounding.metrics.tasks import consistency

FAST = {"resamples": 200, "permutations": 200}
HALF = [0.0, 0.0, 0.5, 1.0]


def test_recall_at_every_rank_by_hand():
    """The right box comes first in e0, second in e1; a wrong one of another candidate never counts."""
    examples = [make_game(n, phrases=1) for n in range(2)]
    answers = [answer_game(e, True, 0.8) for e in examples]
    boxes = answers[1].phrases[0]
    boxes.boxes[[0, 1]] = boxes.boxes[[1, 0]]
    boxes.image_index[[0, 1]] = boxes.image_index[[1, 0]]
    evaluation = score(examples, answers)
    summary = evaluation.summary(**FAST)
    for protocol in ("", "_any", "_merged"):
        found = [summary[f"recall{protocol}@{k}"].value for k in ("1", "5", "10", "all")]
        assert found == [0.5, 1.0, 1.0, 1.0]
    assert summary["average_precision"].value == pytest.approx(0.75)
    assert set(evaluation.sensitivity["boxes"]) == {"1", "5", "10", "all"}
    assert evaluation.sensitivity["threshold"].isna().all()


def test_correlations_are_there_under_every_threshold_and_differ():
    examples, answers = linked_games(as_heatmap=True)
    for n, answer in enumerate(answers):  # a faint floor in half of them: low thresholds cannot tell
        for phrase in answer.phrases:
            phrase.heatmap[:] = np.maximum(phrase.heatmap, 0.15 * phrase.heatmap.max() * (n % 2))
    evaluation = score(examples, answers, 0.5)
    joint = evaluation.joint_table(**FAST)
    pearson = joint[(joint["correlation"] == "pearson") & (joint["grounding"] == "mean_iou")]
    assert sorted(set(pearson["threshold"])) == [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7]
    assert pearson.groupby("threshold")["protocol"].apply(set).map(len).eq(3).all()
    of = pearson[pearson["protocol"] == "all"].set_index("threshold")["value"]
    assert of[0.5] == pytest.approx(evaluation.summary(**FAST)["pearson"].value)
    assert of[0.1] < of[0.5] - 0.1
    own = score(examples, answers, 0.1).per_example
    assert of[0.1] == pytest.approx(np.corrcoef(own["mean_iou"], own["score"])[0, 1])


def test_correlations_together_equal_each_alone():
    rng = np.random.default_rng(0)
    task, groundings, groups = rng.random(40), rng.random((40, 3)), np.arange(40) // 2
    groundings[:, 1] = 0.5
    together = correlations("spearman", task, groundings, groups, **FAST)
    for number in (0, 2):
        alone = correlate("spearman", task, groundings[:, number], groups, **FAST)
        assert (together[number].value, together[number].low, together[number].high) == (
            alone.value, alone.low, alone.high,
        )  # fmt: skip
    assert together[1].value is None
    assert "0.5 in all" in together[1].reason


def test_each_truth_box_is_found_once():
    truth = pad_boxes([np.array([HALF, [0.5, 0.0, 1.0, 1.0]]), np.array([HALF])])
    predicted = np.array([[HALF, HALF, [0.5, 0.0, 1.0, 1.0]], [[0.6, 0.0, 1.0, 1.0], HALF, HALF]])
    right = right_boxes(predicted, truth, [2, 1])
    assert right.tolist() == [[True, False, True], [False, True, False]]
    assert average_precision(right, [2, 1]).tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])
    other = np.array([[True, False, False], [False, True, False]])
    assert right_boxes(predicted, truth, [2, 1], other).tolist() == [[False, True, True], [False, False, True]]
    precision, recall, level = precision_recall(right, [[0.9, 0.8, 0.8], [0.7, 0.6, np.nan]], [2, 1])
    assert level.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert precision.tolist() == pytest.approx([1, 2 / 3, 2 / 4, 3 / 5])
    assert recall.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    with pytest.raises(BadInput, match="of 0 truth boxes"):
        precision_recall(right, np.zeros((2, 3)), [0, 0])


def test_precision_does_not_hang_on_the_order_of_phrases_truth_boxes_or_on_scale():
    rng = np.random.default_rng(2)
    predicted, boxes = (np.sort(rng.random((30, n, 2, 2)), axis=-2).reshape(30, n, 4) for n in (8, 3))
    right = right_boxes(predicted, boxes, [3] * 30)
    order = rng.permutation(30)
    assert torch.equal(right_boxes(predicted[order], boxes[order], [3] * 30), right[order])
    assert torch.equal(right_boxes(predicted, boxes[:, ::-1].copy(), [3] * 30), right)
    assert torch.equal(right_boxes(predicted * 3, boxes * 3, [3] * 30), right)


def test_bars_by_hand_and_bad_input():
    table = success_bars([0.0, 0.1, 0.9, 1.0], [0, 1, 1, 0], bars=2)
    assert table["n"].tolist() == [2, 2]
    assert table["success"].tolist() == [0.5, 0.5]
    assert success_bars([0.0, 1.0], [1, 1], bars=4)["success"].isna().tolist() == [False, True, True, False]
    with pytest.raises(BadInput, match="below 0"):
        success_bars([-0.1], [1])
    with pytest.raises(BadInput, match="bars 0"):
        success_bars([0.1], [1], 0)


def test_consistency_by_hand():
    assert consistency([10, 90, 30], ["a", "a", "b"]) == {40: 0.5, 80: 0.5, 120: 1.0}
    with pytest.raises(BadInput, match="1 captions for 2 distances"):
        consistency([1, 2], ["a"])
