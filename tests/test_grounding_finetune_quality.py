"""Annotations made worse: by how much is exact, and what is not asked for stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_grounding_finetune_budget import examples
from torchvision.ops import box_iou

from grounding.benchmarks.miniature import MiniatureGame
from grounding.errors import BadInput
from grounding.finetune.annotation_quality import AnnotationQuality, jitter_boxes

BOXES = np.array([[0.1, 0.1, 0.3, 0.4], [0, 0, 1, 1], [0.9, 0.5, 1.0, 0.51], [0.4, 0.4, 0.6, 0.6]])


@pytest.mark.parametrize("iou", [0.95, 0.5, 0.1])
def test_boxes_move_until_they_overlap_as_asked(iou):
    moved = jitter_boxes(BOXES, iou, np.random.default_rng(0))
    assert (moved >= 0).all()
    assert (moved <= 1).all()
    overlap = box_iou(torch.from_numpy(BOXES), torch.from_numpy(moved)).diagonal()
    assert overlap.numpy() == pytest.approx([iou] * 4, abs=1e-6)
    assert not np.array_equal(moved, jitter_boxes(BOXES, iou, np.random.default_rng(1)))


def test_nothing_is_changed_unasked():
    given = examples([2, 1, 0])
    assert AnnotationQuality().apply(given) == given


def test_dropped_phrases_stay_without_regions():
    given = examples([5, 5])
    found = AnnotationQuality(drop_rate=0.3).apply(given, seed=1)
    phrases = [phrase for example in found for phrase in example.phrases]
    assert sum(bool(phrase.regions) for phrase in phrases) == 7
    assert [phrase.id for phrase in phrases] == [phrase.id for example in given for phrase in example.phrases]
    assert found == AnnotationQuality(drop_rate=0.3).apply(given, seed=1)
    assert found != AnnotationQuality(drop_rate=0.3).apply(given, seed=2)


@pytest.mark.parametrize(("rate", "swapped"), [(0.5, None), (1.0, None), (0.0, 0)])
def test_swapped_phrases_get_the_regions_of_others_in_their_caption(rate, swapped):
    given = MiniatureGame().load("train", 30)
    found = AnnotationQuality(swap_rate=rate).apply(given, seed=0)
    changed = 0
    for before, after in zip(given, found, strict=True):
        own = [(phrase.image_index, phrase.regions) for phrase in before.phrases]
        now = [(phrase.image_index, phrase.regions) for phrase in after.phrases]
        assert sorted(own, key=str) == sorted(now, key=str)
        changed += sum(x != y for x, y in zip(own, now, strict=True))
    total = sum(len(example.phrases) for example in given)
    assert changed == (round(rate * total) if swapped is None else swapped)


def test_a_caption_with_one_phrase_has_nothing_to_swap():
    given = examples([1, 1])
    assert AnnotationQuality(swap_rate=1.0).apply(given) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jitter_iou": 0.0}, r"jitter_iou 0\.0 is outside 0\.05\.\.1"),
        ({"drop_rate": 1.5}, r"drop_rate 1\.5 is outside 0\.\.1"),
        ({"swap_rate": -0.1}, r"swap_rate -0\.1 is outside 0\.\.1"),
        ({"swap_rate": float("nan")}, "swap_rate nan is outside"),
    ],
)
def test_impossible_rates(values, message):
    with pytest.raises(BadInput, match=message):
        AnnotationQuality(**values)
