"""Sizes that the originals give a single image before their models see it, both sides rounded down afterwards.

ViLT's is ``MinMaxResize``, MDETR's is DETR's ``get_size_with_aspect_ratio``; they round differently, and by a whole
image token where a side then falls short of a multiple of it.
"""

from __future__ import annotations

RATIO = 1333 / 800  # of the longer side to the shorter one, at most, unless told


def longest(shorter: int, longer: int = 0) -> int:
    """Pixels that the longer side may have: ``longer``, or for 0 in the ratio of 1333 to 800."""
    return longer or int(RATIO * shorter)


def vilt_size(height: int, width: int, shorter: int, longer: int = 0) -> tuple[int, int]:
    """Height and width with ``shorter`` pixels at the shorter side, less where the longer one is over its limit.

    >>> vilt_size(75, 110, 64)
    (64, 94)
    """
    scale = shorter / min(height, width)
    sides = [side * scale for side in (height, width)]
    if (most := longest(shorter, longer)) < max(sides):
        sides = [side * (most / max(sides)) for side in sides]
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def detr_size(height: int, width: int, shorter: int, longer: int = 0) -> tuple[int, int]:
    """The same as DETR rounds: the shorter side to the nearest pixel, the longer one down.

    >>> detr_size(75, 110, 64)
    (64, 93)
    """
    least, most = min(height, width), max(height, width)
    if most / least * shorter > (limit := longest(shorter, longer)):
        shorter = round(limit * least / most)
    if least == shorter:
        return height, width
    return (int(shorter * height / width), shorter) if width < height else (shorter, int(shorter * width / height))
