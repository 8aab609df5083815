"""Extra boxes: seeded, shaped like the annotated ones, and never one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tiny_model import tiny_games
from torchvision.ops import box_iou

from extract.extra_boxes import extra_boxes
from grounding.examples import Phrase, Region


def annotated(example, image):
    return [r.box for p in example.phrases if p.image_index == image for r in p.regions]


def test_eight_valid_boxes_for_every_annotated_image_below_half_overlap():
    for example in tiny_games(20):
        elsewhere = (example.target_index + 1) % 3
        moved = replace(example.phrases[0], id="moved", image_index=elsewhere)
        example = replace(example, phrases=(*example.phrases, moved))
        found = extra_boxes(example)
        assert sorted(image for image, _ in found) == sorted([example.target_index] * 8 + [elsewhere] * 8)
        for image, box in found:
            assert 0 <= box[0] < box[2] <= 1
            assert 0 <= box[1] < box[3] <= 1
            assert box_iou(torch.tensor([box]), torch.tensor(annotated(example, image))).max() < 0.5


def test_boxes_depend_on_example_and_seed_alone():
    first, second = tiny_games(2)
    assert extra_boxes(first) == extra_boxes(tiny_games(1)[0])
    assert extra_boxes(first) != extra_boxes(first, seed=1)
    assert extra_boxes(first) != extra_boxes(replace(first, id="other"))
    assert extra_boxes(second) != extra_boxes(first)


def test_shapes_are_those_of_the_annotated_boxes():
    game = tiny_games(1)[0]
    flat = Phrase("p", "road", ((0, 3),), (Region((0.1, 0.4, 0.5, 0.45)),), game.target_index)
    sizes = []
    for i in range(50):
        found = extra_boxes(replace(game, id=str(i), phrases=(flat,)))
        sizes += [(x2 - x1, y2 - y1) for _, (x1, y1, x2, y2) in found]
    widths, heights = np.array(sizes).T
    assert 0.32 - 1e-9 <= widths.min() < 0.34
    assert 0.48 < widths.max() <= 0.5 + 1e-9
    assert heights.max() <= 0.0625 + 1e-9


def test_a_full_image_still_gets_its_boxes():
    game = tiny_games(1)[0]
    whole = Phrase("p", "scene", ((0, 3),), (Region((0.0, 0.0, 1.0, 1.0)),), game.target_index)
    found = extra_boxes(replace(game, phrases=(whole,)))
    assert len(found) == 8
    assert all((x2 - x1) * (y2 - y1) < 0.5 for _, (x1, y1, x2, y2) in found)


def test_an_image_without_annotations_gets_boxes_of_typical_shapes():
    found = extra_boxes(replace(tiny_games(1)[0], phrases=()))
    assert len(found) == 8
