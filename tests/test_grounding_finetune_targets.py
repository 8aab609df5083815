"""Targets of a batch on hand-worked numbers: points, boxes, and their maps over the canvas."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from small_models import game, single_image, small_vilt

from grounding.examples import Phrase, Region
from grounding.finetune.targets import Targets, box_maps, make_targets, originals_tokens, point_maps
from grounding.models.answers import candidate_box_to_canvas


def targets_of(boxes: list[list[float]], phrase: list[int], example: list[int]) -> Targets:
    """Targets with those boxes on the canvas."""
    return Targets(
        points=torch.zeros(max(example, default=0) + 1, 2),
        boxes=torch.tensor(boxes).reshape(-1, 4),
        box_phrase=torch.tensor(phrase, dtype=torch.int64),
        box_example=torch.tensor(example, dtype=torch.int64),
        candidates=torch.zeros(max(example, default=0) + 1, dtype=torch.int64),
    )


def test_targets_follow_the_batch():
    bare = replace(game("bare"), phrases=(Phrase("nowhere", "x", ((0, 3),), ()),))
    batch = small_vilt().preprocess([game(images=4, target=2), bare, single_image(target_xy=(0.7, 0.3))])
    targets = make_targets(batch)
    torch.testing.assert_close(targets.points, torch.tensor([[0.5, 0.625], [0.5, 0.5], [0.7, 0.3]]))
    assert targets.candidates.tolist() == [4, 3, 0]
    assert batch.phrase_ids == ("p0", "p1", "nowhere", "p0", "p1")
    assert targets.box_phrase.tolist() == [0, 1, 1, 3, 4, 4]
    assert targets.box_example.tolist() == [0, 0, 0, 2, 2, 2]
    expected = [
        *[[0.1, (2 + 0.2) / 4, 0.6, (2 + 0.7) / 4], [0.3, 2.1 / 4, 0.9, 2.4 / 4], [0, 0.5, 0.5, 2.5 / 4]],
        *[[0.1, 0.2, 0.6, 0.7], [0.3, 0.1, 0.9, 0.4], [0, 0, 0.5, 0.5]],
    ]
    torch.testing.assert_close(targets.boxes, torch.tensor(expected))


def test_a_phrase_that_lost_its_tokens_has_no_target():
    example = game()
    late = Phrase("late", "dot", ((29, 32),), (Region((0, 0, 1, 1)),), 1)
    model = small_vilt(max_text=9)
    batch = model.preprocess([replace(example, phrases=(late, *example.phrases))])
    assert batch.phrase_ids == ("p0", "p1")
    torch.testing.assert_close(make_targets(batch).boxes, make_targets(model.preprocess([example])).boxes)


def test_an_image_index_beside_the_target_moves_the_box():
    example = game(images=3, target=0)
    elsewhere = replace(example.phrases[0], image_index=2)
    targets = make_targets(small_vilt().preprocess([replace(example, phrases=(elsewhere,))]))
    torch.testing.assert_close(targets.boxes, torch.tensor([[0.1, 2.2 / 3, 0.6, 2.7 / 3]]))


def test_targets_without_boxes_are_empty():
    targets = make_targets(small_vilt().preprocess([replace(game(), phrases=())]))
    assert targets.boxes.shape == (0, 4)
    assert targets.box_phrase.dtype == targets.box_example.dtype == torch.int64
    maps = box_maps(targets, 0, torch.tensor([[96, 32]]), (96, 32))
    assert maps.shape == (0, 96, 32)
    moved = targets.to("meta")
    values = {field.name: getattr(moved, field.name) for field in fields(Targets)}
    assert values.pop("contrasted") is None
    assert all(value.device.type == "meta" for value in values.values())


def test_the_originals_look_in_the_first_caption_where_a_character_has_no_token():
    """Two captions of three tokens; the second one's characters 3 and 4 have none, and the first one's do."""
    offsets = np.array([[[0, 2], [2, 5], [5, 9]], [[0, 1], [1, 3], [5, 9]]])

    def found(row: int, *spans: tuple[int, int]) -> list[int]:
        return np.flatnonzero(originals_tokens(offsets, row, spans)).tolist()

    assert found(1, (0, 3)) == [0, 1]
    assert found(1, (0, 1), (5, 6)) == [0, 2]
    assert found(1, (1, 4)) == [1]  # 3 has none; 2 is of token 1 in the first caption, by chance in its own too
    assert found(1, (1, 5)) == [1]  # 4 has none; 3 is of token 1 there
    assert found(1, (3, 9)) == [1, 2]  # 3 has none; 4 is of token 1 there, where its own has a gap
    assert found(1, (3, 4)) == [1]  # neither end has one: both are found in the first caption
    assert found(0, (20, 30)) == []


def test_paper_targets_are_looked_up_and_move_with_the_others():
    batch = small_vilt().preprocess([game("a"), game("b")])
    targets = make_targets(batch, "paper")
    assert torch.equal(targets.contrasted, batch.phrase_tokens)  # whole words: no difference
    assert targets.to("meta").contrasted.device.type == "meta"
    assert make_targets(batch).contrasted is None


def test_a_point_becomes_a_gaussian_of_three_pixels():
    maps = point_maps(torch.tensor([[0.5, 0.25]]), torch.tensor([[80, 60]]), (80, 60))
    assert maps.sum() == pytest.approx(1)
    assert divmod(int(maps[0].argmax()), 60) == (20, 30)  # the pixel whose index is 0.25 * 80, 0.5 * 60
    assert maps[0, 20, 33] / maps[0, 20, 30] == pytest.approx(math.exp(-0.5))
    assert maps[0, 24, 30] / maps[0, 20, 30] == pytest.approx(math.exp(-16 / 18))
    reach = math.sqrt(-18 * math.log(1e-5 * 2 * math.pi * 9))  # where the density falls under 1e-5
    row, column = torch.meshgrid(torch.arange(80.0), torch.arange(60.0), indexing="ij")
    inside = (row - 20) ** 2 + (column - 30) ** 2 < reach**2
    assert torch.equal(maps[0] > 0, inside)


def test_a_point_is_relative_to_the_real_canvas_and_may_lie_on_its_edge():
    size = torch.tensor([[40, 20], [80, 60]])
    maps = point_maps(torch.tensor([[0.5, 0.5], [1.0, 1.0]]), size, (80, 60))
    assert divmod(int(maps[0].argmax()), 60) == (20, 10)
    assert divmod(int(maps[1].argmax()), 60) == (79, 59)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))


def test_boxes_become_uniform_maps_over_their_union():
    boxes = [[0.1, 0.1, 0.3, 0.5], [0.2, 0.3, 0.6, 0.6], [0.5, 0.5, 1.0, 1.0]]
    maps = box_maps(targets_of(boxes, [0, 0, 2], [0, 0, 0]), 3, torch.tensor([[10, 20]]), (10, 20))
    union = torch.zeros(10, 20, dtype=torch.bool)
    union[1:5, 2:6] = True
    union[3:6, 4:12] = True
    torch.testing.assert_close(maps[0], union / union.sum())
    assert not maps[1].any()  # no boxes
    assert maps[2, 5:, 10:].sum() == pytest.approx(1)
    assert maps[2, 5, 10] == pytest.approx(1 / 50)


def test_left_top_width_and_height_are_truncated_each():
    """Left 2.7 is 2; width 4.9 is 4 (not floor(7.6) - floor(2.7) = 5)."""
    maps = box_maps(targets_of([[0.27, 0.3, 0.76, 0.6]], [0], [0]), 1, torch.tensor([[10, 10]]), (10, 10))
    filled = torch.zeros(10, 10)
    filled[3:6, 2:6] = 1 / 12
    torch.testing.assert_close(maps[0], filled)


def test_a_border_on_a_pixel_is_on_it_whatever_float32_says():
    """Row 103 of the first of ten candidates of 224 pixels is row 102.99999 of the canvas in float32."""
    box = torch.from_numpy(candidate_box_to_canvas((0.0, 103 / 224, 1.0, 1.0), 0, 10))
    assert int(box[1] * 2240) == 102
    maps = box_maps(targets_of([box.tolist()], [0], [0]), 1, torch.tensor([[2240, 224]]), (2240, 224))
    assert maps[0].any(1).nonzero()[:, 0].tolist() == list(range(103, 224))


def test_a_box_thinner_than_a_pixel_keeps_one():
    maps = box_maps(targets_of([[0.55, 0.0, 0.57, 0.04]], [0], [0]), 1, torch.tensor([[10, 10]]), (10, 10))
    assert maps[0, 0, 5] == 1
    assert maps.sum() == 1


def test_boxes_are_relative_to_each_examples_real_canvas():
    boxes = [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]]
    maps = box_maps(targets_of(boxes, [0, 1], [0, 1]), 2, torch.tensor([[8, 8], [4, 6]]), (8, 8))
    assert maps[0, :4, :4].sum() == pytest.approx(1)
    assert maps[1, :2, :3].sum() == pytest.approx(1)
    assert (maps[1] > 0).sum() == 6
