"""Annotations made worse on purpose: boxes moved, phrases without regions, phrases with each other's regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from grounding.errors import BadInput
from grounding.examples import Example, Phrase, Region

LEAST_IOU = 0.05  # below, a moved box may hardly touch its place
_HALVINGS = 40


@dataclass(frozen=True)
class AnnotationQuality:
    """How annotations are spoilt; the values of a fresh one leave them as they are.

    jitter_iou: every box is moved and scaled until its overlap (IoU) with itself is this; its outlines are dropped.
    drop_rate: share of the annotated phrases that lose their regions, and so are no longer trained on.
    swap_rate: share of the annotated phrases that get the regions of another one of their caption: caption after
    caption, in random order, all of its annotated phrases in a circle until there are enough; a caption with one has
    nothing to swap. Rates are exact to the nearest whole number of phrases, of swapped ones as far as captions allow.
    """

    jitter_iou: float = 1.0
    drop_rate: float = 0.0
    swap_rate: float = 0.0

    def __post_init__(self) -> None:
        if not LEAST_IOU <= self.jitter_iou <= 1:
            raise BadInput(f"jitter_iou {self.jitter_iou} is outside {LEAST_IOU}..1")
        for name in ("drop_rate", "swap_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} {getattr(self, name)} is outside 0..1")

    def apply(self, examples: Sequence[Example], seed: int = 0) -> list[Example]:
        """The examples with spoilt annotations, the same for the same seed: swapped, then dropped, then moved."""
        spoilt = list(examples)
        swap, drop, jitter = np.random.default_rng(seed).spawn(3)
        if self.swap_rate:
            spoilt = _swap(spoilt, self.swap_rate, swap)
        if self.drop_rate:
            spoilt = _drop(spoilt, self.drop_rate, drop)
        if self.jitter_iou < 1:
            spoilt = _jitter(spoilt, self.jitter_iou, jitter)
        return spoilt


def jitter_boxes(boxes: np.ndarray, iou: float, random: np.random.Generator) -> np.ndarray:
    """Boxes within the image whose IoU with ``boxes`` is ``iou``, row by row: float64 ``[N, 4]`` xyxy (0..1), twice.

    Each goes from where it is towards a random box (corners moved by up to its size, clipped to the image) as far as
    the overlap allows, which is found by halving: corners move in straight lines, so that the overlap only falls.
    """
    start = torch.from_numpy(boxes)
    size = (start[:, 2:] - start[:, :2]).repeat(1, 2)
    far, near_ones = start.clone(), torch.ones(len(start), dtype=torch.bool)
    while near_ones.any():
        moves = torch.from_numpy(random.uniform(-1, 1, (int(near_ones.sum()), 4)))
        far[near_ones] = (start[near_ones] + moves * size[near_ones]).clamp(0, 1)
        is_box = (far[:, :2] < far[:, 2:]).all(1)
        near_ones = ~is_box | (_paired_iou(start, far) >= iou)
    near, beyond = torch.zeros(len(start), 1), torch.ones(len(start), 1)
    for _ in range(_HALVINGS):
        middle = (near + beyond) / 2
        enough = _paired_iou(start, start + middle * (far - start))[:, None] >= iou
        near, beyond = torch.where(enough, middle, near), torch.where(enough, beyond, middle)
    return (start + near * (far - start)).numpy()


def _paired_iou(first: Tensor, second: Tensor) -> Tensor:
    return torch.vmap(box_iou)(first[:, None], second[:, None])[:, 0, 0]


def _jitter(examples: list[Example], iou: float, random: np.random.Generator) -> list[Example]:
    boxes = [region.box for example in examples for phrase in example.phrases for region in phrase.regions]
    moved = iter(jitter_boxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), iou, random).tolist())

    def spoilt(phrase: Phrase) -> Phrase:
        return replace(phrase, regions=tuple(Region(tuple(next(moved))) for _ in phrase.regions))

    return [replace(example, phrases=tuple(spoilt(phrase) for phrase in example.phrases)) for example in examples]


def _chosen(keys: Sequence[tuple[int, int]], share: int, random: np.random.Generator) -> set[tuple[int, int]]:
    return {keys[place] for place in random.permutation(len(keys))[:share]}


def _drop(examples: list[Example], rate: float, random: np.random.Generator) -> list[Example]:
    keys = [key for members in _annotated(examples) for key in members]
    lost = _chosen(keys, round(rate * len(keys)), random)
    return [
        replace(
            example,
            phrases=tuple(
                replace(phrase, regions=()) if (number, place) in lost else phrase
                for place, phrase in enumerate(example.phrases)
            ),
        )
        for number, example in enumerate(examples)
    ]


def _swap(examples: list[Example], rate: float, random: np.random.Generator) -> list[Example]:
    """Captions in random order give all or some of their phrases to the swap, until enough are swapped."""
    groups = [members for members in _annotated(examples) if len(members) > 1]
    wanted = round(rate * sum(len(members) for members in _annotated(examples)))
    swapped = list(examples)
    for group in (groups[place] for place in random.permutation(len(groups))):
        if wanted < 2:
            break
        circle = [group[place] for place in random.permutation(len(group))[:wanted]]
        wanted -= len(circle)
        number = group[0][0]
        phrases = list(swapped[number].phrases)
        giver = {place: examples[number].phrases[other] for (_, place), (_, other) in _neighbours(circle)}
        for place, other in giver.items():
            phrases[place] = replace(phrases[place], regions=other.regions, image_index=other.image_index)
        swapped[number] = replace(swapped[number], phrases=tuple(phrases))
    return swapped


def _neighbours(circle: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    return list(zip(circle, [*circle[1:], circle[0]], strict=True))


def _annotated(examples: Sequence[Example]) -> list[list[tuple[int, int]]]:
    """For every example, (its number, place among its phrases) of the phrases that have regions."""
    return [
        [(number, place) for place, phrase in enumerate(example.phrases) if phrase.regions]
        for number, example in enumerate(examples)
    ]
