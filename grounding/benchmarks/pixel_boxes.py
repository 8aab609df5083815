"""Boxes in pixels, as annotation files have them, to boxes as they are kept here: xyxy relative to the image (0..1).

A box may stick out of its image by one pixel, which rounding explains: it is clipped. One that sticks out further, has
no area, or is not in the expected format is refused, with a hint at the format that it seems to be in. A box of one
pixel seems to be relative, unless the image has no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from grounding.errors import BadInput
from grounding.examples import Box

ROUNDING = 1.0  # pixels

Size = tuple[int, int]  # width and height in pixels


def box_of_xywh(bbox_xywh: object, size: Size, where: str) -> Box:
    """A COCO box: left, top, width and height in pixels.

    Raises BadInput, beginning with ``where``, for what is no such box.
    """
    left, top, width, height = _numbers(bbox_xywh, f"{where}: bbox", "[left, top, width, height] in pixels")
    given = f"{where}: bbox {bbox_xywh} [left, top, width, height]"
    if width <= 0 or height <= 0:
        raise BadInput(f"{given} has no area")
    if min(width, height) < 1 or max(width, height) <= 1 < max(size):
        raise BadInput(f"{given} is no larger than a pixel; is it relative (0..1)? accepted: pixels")
    if _sticks_out((left, top, left + width, top + height), size):
        ordered = left < width and top < height and not _sticks_out((left, top, width, height), size)
        hint = "is it [x1, y1, x2, y2]? accepted: " if ordered else ""
        raise BadInput(f"{given} sticks out of an image of {size[0]} x {size[1]}; {hint}left + width <= image width")
    return _clipped((left, top, left + width, top + height), size, given)


def box_of_corners(corners_xyxy: Sequence[float], size: Size, where: str) -> Box:
    """A Pascal VOC box: first and last pixel that belong to it, counted from 1 (x1, y1, x2, y2).

    Raises BadInput, beginning with ``where``, for what is no such box.
    """
    x1, y1, x2, y2 = _numbers(corners_xyxy, f"{where}: box", "[x1, y1, x2, y2] in pixels")
    given = f"{where}: box {tuple(corners_xyxy)} (x1, y1, x2, y2)"
    if x2 < x1 or y2 < y1:
        raise BadInput(f"{given} ends before it begins; is it (left, top, width, height)? accepted: two corners")
    if min(x2, y2) < 1 or max(x2, y2) <= 1 < max(size) or 0 < x1 < 1 or 0 < y1 < 1:
        raise BadInput(f"{given} lies within a pixel; is it relative (0..1)? accepted: pixels, counted from 1")
    if _sticks_out((x1 - 1, y1 - 1, x2, y2), size):
        raise BadInput(f"{given} sticks out of an image of {size[0]} x {size[1]}")
    return _clipped((x1 - 1, y1 - 1, x2, y2), size, given)


def are_corners(boxes: Sequence[tuple[object, Size]]) -> bool:
    """Whether boxes that should be ``[left, top, width, height]`` are all ``[x1, y1, x2, y2]``.

    boxes: each with the size of its image; what is no box does not count. They are if some stick out of their image as
    the former, and none as the latter.
    """
    read = []
    for bbox, size in boxes:
        with suppress(BadInput):
            read.append((_numbers(bbox, "", ""), size))
    outside = any(_sticks_out((a, b, a + c, b + d), size) for (a, b, c, d), size in read)
    return outside and all(a < c and b < d and not _sticks_out((a, b, c, d), size) for (a, b, c, d), size in read)


def _numbers(values: object, what: str, accepted: str) -> list[float]:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 4:
        raise BadInput(f"{what} is {values!r}; accepted: {accepted}")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise BadInput(f"{what} is {values!r}; accepted: {accepted}, finite numbers")
    return [float(value) for value in values]


def _sticks_out(box_xyxy: Sequence[float], size: Size) -> bool:
    x1, y1, x2, y2 = box_xyxy
    return min(x1, y1) < -ROUNDING or x2 > size[0] + ROUNDING or y2 > size[1] + ROUNDING


def _clipped(box_xyxy: Sequence[float], size: Size, given: str) -> Box:
    """The relative box, cut off at the image's edges."""
    x1, y1, x2, y2 = (
        min(max(value / side, 0.0), 1.0) for value, side in zip(box_xyxy, (*size, *size), strict=True)
    )  # fmt: skip
    if x1 == x2 or y1 == y2:
        raise BadInput(f"{given} lies outside an image of {size[0]} x {size[1]}")
    return x1, y1, x2, y2
