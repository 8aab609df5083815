"""Seeded boxes beside the annotated ones: the negatives that alignment probes choose among."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torchvision.ops import box_iou

from grounding.examples import Box, Example

EXTRA_BOXES = 8  # an image
MOST_OVERLAP = 0.5  # from this IoU on, a box counts as the phrase's own
_PROPOSALS, _ROUNDS, _SHRINK = 32, 20, 0.8
_TYPICAL = ((0.25, 0.25), (0.5, 0.25), (0.25, 0.5))  # width and height where nothing is annotated


def extra_boxes(example: Example, count: int = EXTRA_BOXES, seed: int = 0) -> list[tuple[int, Box]]:
    """``count`` boxes (candidate, xyxy relative to it) in every annotated image of an example, the target's included.

    Each has the width and height of an annotated box of its image, each side times 0.8 to 1.25, so that its
    shape does not tell it apart; its place is uniform; its IoU with every annotated box is below 0.5 (in an image
    that is full, boxes shrink until they fit). They depend on the seed and the example's id alone.
    """
    boxes: dict[int, list[Box]] = {example.target_index: []}
    for phrase in example.phrases:
        for region in phrase.regions:
            boxes.setdefault(phrase.image_index, []).append(region.box)
    digest = hashlib.sha256(f"{seed}\0{example.id}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    chosen = []
    for image in sorted(boxes):
        annotated = np.array(boxes[image], dtype=np.float64).reshape(-1, 4)
        chosen += [(image, (x1, y1, x2, y2)) for x1, y1, x2, y2 in _negatives(annotated, count, random).tolist()]
    return chosen


def _negatives(annotated: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    shapes = annotated[:, 2:] - annotated[:, :2] if len(annotated) else np.array(_TYPICAL)
    found = np.zeros((0, 4))
    for attempt in range(_ROUNDS):
        sizes = shapes[random.integers(len(shapes), size=_PROPOSALS)] * random.uniform(0.8, 1.25, (_PROPOSALS, 2))
        sizes = np.minimum(sizes * _SHRINK**attempt, 1.0)
        corners = random.uniform(size=(_PROPOSALS, 2)) * (1.0 - sizes)
        proposals = np.concatenate([corners, np.minimum(corners + sizes, 1.0)], axis=1)
        if len(annotated):
            overlap = box_iou(torch.from_numpy(proposals), torch.from_numpy(annotated)).amax(1).numpy()
            proposals = proposals[overlap < MOST_OVERLAP]
        found = np.concatenate([found, proposals])[:count]
        if len(found) == count:
            break
    return found
