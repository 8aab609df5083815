"""From points and boxes on the stacked canvas to answers, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_models import game, single_image

from grounding.errors import BadInput
from grounding.models.answers import (
    answer,
    candidate_box_to_canvas,
    canvas_boxes_to_candidates,
    target_point,
)


@pytest.mark.parametrize("count", [1, 2, 6, 10])
def test_the_target_point_of_a_game_answers_it(count):
    for target in range(count):
        example = game(images=count, target=target)
        point = target_point(example)
        assert point == (0.5, pytest.approx((target + 0.5) / count))
        in_float32 = tuple(float(v) for v in torch.tensor(point, dtype=torch.float32))
        for given in (point, in_float32):
            prediction = answer(example, given, 0.25, ())
            assert prediction.answer == target
            assert prediction.correct
            assert prediction.score == 0.25


@pytest.mark.parametrize(("point", "score"), [((0.5, math.nan), 0.0), ((0.5, 0.5), math.inf)])
def test_an_answer_that_is_not_finite_is_told_as_the_models(point, score):
    with pytest.raises(BadInput) as raised:
        answer(example := game(images=2, target=1), point, score, ())
    assert str(raised.value).startswith(f"the model's answer to example {example.id!r} is {point} with score {score}, ")


@pytest.mark.parametrize(("count", "side"), [(6, 64), (10, 224), (6, 100), (10, 7)])
def test_every_row_of_pixels_belongs_to_its_own_candidate(count, side):
    """Trap 15 of the design: in float32, row 5 H / 6 of the original falls into candidate 4."""
    example = game(images=count, size=1, target=0)
    rows = torch.arange(count * side)
    for row, y in zip(rows.tolist(), ((rows.float() + 0.5) / (count * side)).tolist(), strict=True):
        assert answer(example, (0.5, y), 0.0, ()).answer == row // side


def test_the_lower_edge_of_the_canvas_is_the_last_candidate():
    assert answer(game(images=6, target=5), (0.5, 1.0), 0.0, ()).answer == 5
    assert answer(game(images=6, target=0), (0.5, 0.0), 0.0, ()).answer == 0


def test_a_description_is_right_within_80_pixels_of_a_panorama():
    example = single_image(target_xy=(0.5, 0.5))
    near, far = (0.5 + 79.9 / 3712, 0.5), (0.5 + 80.1 / 3712, 0.5)
    assert answer(example, near, -1.0, ()).correct
    assert not answer(example, far, -1.0, ()).correct
    assert answer(example, near, -1.0, ()).answer == near
    assert not answer(example, (0.5, 0.5 + 81 / 800), -1.0, ()).correct


def test_boxes_go_to_the_canvas_and_back():
    random = np.random.default_rng(0)
    for count in (1, 3, 10):
        for index in range(count):
            x1, y1 = random.uniform(0, 0.4, 2)
            box = (x1, y1, x1 + random.uniform(0.1, 0.6), y1 + random.uniform(0.1, 0.6))
            canvas = candidate_box_to_canvas(box, index, count)
            assert index / count <= canvas[1] <= canvas[3] <= (index + 1) / count
            own, found = canvas_boxes_to_candidates(canvas[None], count)
            assert found.tolist() == [index]
            np.testing.assert_allclose(own[0], box, atol=2e-6)


def test_a_box_over_several_candidates_belongs_to_the_one_of_its_centre_and_is_not_clipped():
    boxes = np.array([[0.1, 0.2, 0.5, 0.9], [0.0, -0.5, 1.0, 0.1], [0.2, 0.9, 0.4, 1.5]], dtype=np.float32)
    own, index = canvas_boxes_to_candidates(boxes, 4)
    assert index.tolist() == [2, 0, 3]  # centres at 0.55, -0.2 and 1.2 of the height
    np.testing.assert_allclose(own[0], [0.1, 0.2 * 4 - 2, 0.5, 0.9 * 4 - 2], atol=1e-6)
    np.testing.assert_allclose(own[1], [0.0, -2.0, 1.0, 0.4], atol=1e-6)
    np.testing.assert_allclose(own[2], [0.2, 0.6, 0.4, 3.0], atol=1e-6)
    assert np.array_equal(boxes[0], np.array([0.1, 0.2, 0.5, 0.9], dtype=np.float32))  # the input is left alone
