"""Where things lie: grid cells in pixels, candidate images on a page, relative boxes and polygons in them.

An image of W × H pixels covers [0, W] × [0, H]: pixel (row r, column c) covers [c, c + 1] × [r, r + 1], and
relative coordinates run from 0 to 1 over the same rectangle, edge to edge. Models see the candidates of a
reference game stacked along the height; a grid over that canvas has its rows split evenly over the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
from PIL import Image

from grounding.errors import BadInput
from grounding.examples import Box, Point
from visualize.style import cold_colours, heat_colours


def spread_cells(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cells ``[rows, columns]`` of one image spread over its pixels, ``[height, width]``.

    A pixel takes the value of the cell that holds its centre; nothing is interpolated.

    >>> spread_cells(np.array([[1, 2]]), height=1, width=4)
    array([[1, 1, 2, 2]])
    """
    return spread_canvas(cells, [(height, width)])[0]


def spread_canvas(cells: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Cells of a grid over N stacked candidates spread over the pixels of each, N arrays ``[height, width]``.

    cells: ``[rows, columns]``; candidate i owns the i-th of N equal bands of rows. Where N does not divide the
    rows, the cell on a border is shown in both candidates, each with the part that is its own.
    sizes: (height, width) of each candidate in pixels, which need not be what the model saw.
    Raises BadInput if the grid is not two-dimensional or is empty.
    """
    if cells.ndim != 2 or 0 in cells.shape:
        raise BadInput(f"grid of cells has shape {cells.shape}; accepted: [rows, columns], neither empty")
    rows, columns = cells.shape
    spread = []
    for index, (height, width) in enumerate(sizes):
        # Twice the position of a pixel's centre, in whole numbers: no rounding can move a border.
        row = (2 * (index * height + np.arange(height)) + 1) * rows // (2 * height * len(sizes))
        column = (2 * np.arange(width) + 1) * columns // (2 * width)
        spread.append(cells[row[:, None], column[None, :]])
    return spread


def spread_maps(maps: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Heatmaps ``[N, h, w]``, one a candidate, spread over the pixels of each candidate.

    Raises BadInput if there are not as many maps as candidates.
    """
    if maps.ndim != 3 or len(maps) != len(sizes):
        raise BadInput(f"heatmap has shape {maps.shape}; accepted: [{len(sizes)}, h, w], one map a candidate")
    return [spread_cells(cells, height, width) for cells, (height, width) in zip(maps, sizes, strict=True)]


def strength(cells: np.ndarray) -> np.ndarray:
    """Values as strengths of colour, 0..1, same shape: 0 up to their mean, 1 at the largest.

    The largest counts as at least twice the mean, so that a map that is all but even stays pale.

    >>> strength(np.array([1.0, 1.0, 1.0, 5.0])), strength(np.array([1.0, 1.1]))[0]
    (array([0., 0., 0., 1.]), np.float64(0.0))
    """
    mean, largest = float(cells.mean()), float(cells.max())
    if largest <= 0:
        return np.zeros_like(cells)
    return np.clip((cells - mean) / max(largest - mean, mean), 0, 1)


def signed_strength(cells: np.ndarray) -> np.ndarray:
    """Values for (above 0) and against as strengths of colour, -1..1, same shape: the largest magnitude is 1.

    >>> signed_strength(np.array([2.0, 0.0, -4.0]))
    array([ 0.5,  0. , -1. ])
    """
    largest = float(np.abs(cells).max())
    return cells / largest if largest > 0 else np.zeros_like(cells)


def paint(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A paled grey image with values painted over it, uint8 RGB ``[height, width, 3]``.

    values: -1..1 ``[height, width]``; 0 leaves the paled image, 1 and -1 (for and against) are nearly opaque.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.intp)
    strength = np.rint(np.clip(values, -1, 1) * _LEVELS).astype(np.intp) + _LEVELS
    table = _painted()
    return table.reshape(-1, 3).take(grey * table.shape[1] + strength, axis=0)


_LEVELS = 255  # of strength to either side of 0: neighbours differ by a step or two of 255


@cache
def _painted() -> np.ndarray:
    """The colour of every grey under every strength, uint8 ``[256, 2 _LEVELS + 1, 3]``: much faster to look up."""
    paled = (255 - (255 - np.arange(256)) * 0.55)[:, None, None]
    strength = np.arange(-_LEVELS, _LEVELS + 1) / _LEVELS
    alpha = 0.92 * np.abs(strength)[:, None] ** 0.75
    tint = np.where(strength[:, None] < 0, cold_colours()(-strength), heat_colours()(strength))[:, :3]
    return np.rint((1 - alpha) * paled + alpha * 255 * tint).astype(np.uint8)


def enlarge(pixels: np.ndarray, least: int = 240, most: int = 2400) -> np.ndarray:
    """The image at a size fit for drawing: small ones by a whole factor, large ones reduced; same proportions.

    least: shorter side in pixels that small images reach. most: longer side that large images keep.
    """
    height, width = pixels.shape[:2]
    factor = -(-least // min(height, width))
    if factor > 1 and max(height, width) * factor <= most:
        size = (width * factor, height * factor)
    elif max(height, width) > most:
        scale = most / max(height, width)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
    else:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Slot:
    """The rectangle that one image fills, in inches from a top left corner."""

    x: float
    y: float
    width: float
    height: float

    def moved(self, x: float, y: float) -> Slot:
        """The same rectangle, farther right and down."""
        return Slot(self.x + x, self.y + y, self.width, self.height)

    def box(self, box: Box) -> Box:
        """Where a relative xyxy box (0..1) of the image lies: x1, y1, x2, y2 in inches.

        >>> Slot(1, 2, width=8, height=4).box((0.25, 0.5, 0.75, 1.0))
        (3.0, 4.0, 7.0, 6.0)
        """
        x1, y1, x2, y2 = box
        return (
            self.x + x1 * self.width,
            self.y + y1 * self.height,
            self.x + x2 * self.width,
            self.y + y2 * self.height,
        )

    def points(self, points: Sequence[Point]) -> np.ndarray:
        """Where relative (x, y) points (0..1) of the image lie, inches ``[points, 2]``."""
        return np.asarray(points, dtype=float).reshape(-1, 2) * (self.width, self.height) + (self.x, self.y)


def line_places(boxes: Sequence[Box], owners: Sequence[int], near: float) -> list[tuple[int, ...]]:
    """Which line the left, top, right and bottom of each box are drawn on, so that none hides another's.

    0 lies along the inside of the box's edge, 1 inside that, and so on. boxes: xyxy in inches. owners: boxes of one
    owner may share a line. near: inches from which on two lines are seen apart.

    >>> line_places([(0, 0, 4, 4), (0, 1, 2, 3), (4, 0, 6, 4)], owners=[0, 1, 2], near=0.1)
    [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0)]
    """
    places: list[tuple[int, ...]] = []
    for box, owner in zip(boxes, owners, strict=True):
        others = [(b, p) for b, o, p in zip(boxes, owners, places, strict=False) if o != owner]
        taken = [{place[edge] for other, place in others if _share(box, other, edge, near)} for edge in range(4)]
        places.append(tuple(next(place for place in count() if place not in used) for used in taken))
    return places


def _share(one: Box, other: Box, edge: int, near: float) -> bool:
    """Whether an edge (0 left, 1 top, 2 right, 3 bottom) of two boxes runs along the same line for a while."""
    along = 1 - edge % 2
    common = min(one[along + 2], other[along + 2]) - max(one[along], other[along])
    return abs(one[edge] - other[edge]) < near and common > near


@dataclass(frozen=True)
class Arrangement:
    """Images in rows: one slot an image, ``height`` inches in all (room for labels included)."""

    slots: tuple[Slot, ...]
    height: float


def arrange(
    sizes: Sequence[tuple[int, int]],
    width: float,
    per_row: int = 6,
    gap: float = 0.1,
    label: float = 0.0,
    tallest: float = 2.6,
) -> Arrangement:
    """Slots for images in rows of at most ``per_row``, as even as can be; no image is distorted.

    sizes: (height, width) in pixels. width, gap, label (room under each image), tallest: inches.
    """
    rows = -(-len(sizes) // per_row)
    columns = -(-len(sizes) // rows)
    cell_width = (width - gap * (columns - 1)) / columns
    cell_height = min(tallest, max(cell_width * h / w for h, w in sizes))
    cell_width = min(cell_width, max(cell_height * w / h for h, w in sizes))
    slots = []
    for index, (h, w) in enumerate(sizes):
        scale = min(cell_width / w, cell_height / h)
        left = (index % columns) * (cell_width + gap) + (cell_width - w * scale) / 2
        top = (index // columns) * (cell_height + label + gap) + (cell_height - h * scale) / 2
        slots.append(Slot(left, top, w * scale, h * scale))
    return Arrangement(tuple(slots), rows * (cell_height + label) + (rows - 1) * gap)
