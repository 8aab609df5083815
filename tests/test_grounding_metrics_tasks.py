import numpy as np
import pytest

from grounding.errors import BadInput
from grounding.metrics.tasks import (
    distance_accuracy,
    game_accuracy,
    mean_distance,
    nested_accuracy,
    nested_weights,
    sdr_distances,
)


def test_nested_accuracy_by_hand():
    # Tangram A: annotation 1 has games right, right, wrong (2/3), annotation 2 wrong (0): 1/3. Tangram B: right: 1.
    correct = [1, 1, 0, 0, 1]
    annotations, tangrams = ["1", "1", "1", "2", "1"], ["A", "A", "A", "A", "B"]
    assert nested_accuracy(correct, annotations, tangrams) == pytest.approx((1 / 3 + 1) / 2)
    assert game_accuracy(correct) == pytest.approx(0.6)
    assert nested_weights(annotations, tangrams) == pytest.approx([1 / 12] * 3 + [1 / 4, 1 / 2])
    order = np.random.default_rng(0).permutation(5)
    shuffled = (np.array(column)[order] for column in (correct, annotations, tangrams))
    assert nested_accuracy(*shuffled) == pytest.approx((1 / 3 + 1) / 2)


def test_equal_group_sizes_make_nesting_plain():
    correct = np.random.default_rng(1).integers(0, 2, 24)
    annotations, tangrams = np.arange(24) // 2 % 3, np.arange(24) // 6
    assert nested_accuracy(correct, annotations, tangrams) == pytest.approx(game_accuracy(correct))


def test_distances_by_hand():
    # 3 / 3712 to the right and 4 / 800 down: a 3-4-5 triangle.
    answers, targets = np.array([[0.5, 0.5], [0.1, 0.1]]), np.array([[0.5 + 3 / 3712, 0.5 + 4 / 800], [0.1, 0.6]])
    distances = sdr_distances(answers, targets)
    assert distances == pytest.approx([5, 400])
    assert sdr_distances(answers, targets, size=(100, 10))[1] == pytest.approx(5)
    assert mean_distance(distances) == pytest.approx(202.5)
    assert distance_accuracy([5, 40, 400]) == pytest.approx({40: 1 / 3, 80: 2 / 3, 120: 2 / 3})


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="correct has shape"):
        game_accuracy([])
    with pytest.raises(BadInput, match="distances"):
        mean_distance([1.0, float("nan")])
    with pytest.raises(BadInput, match="do not fit"):
        sdr_distances(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(BadInput, match="size"):
        sdr_distances(np.zeros((1, 2)), np.zeros((1, 2)), size=(0, 800))
    with pytest.raises(BadInput, match="annotations"):
        nested_accuracy([1, 0], ["a"], ["t"])
