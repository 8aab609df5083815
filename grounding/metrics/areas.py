"""Exact areas: any region as filled cells of a rectilinear grid.

A union of boxes becomes such a grid by coordinate compression (its lines are the boxes' own edges, so nothing
is rounded); a mask is one already. Overlaps with boxes and with heatmap cells are then two small products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from grounding.errors import BadInput
from grounding.examples import Point, Region

OUTLINE_PIXELS = 512  # side of the grid on which polygons without a mask are drawn


@dataclass(frozen=True)
class Area:
    """Regions of one image each, with any leading (batch) dimensions, in relative coordinates.

    edges_x: float64 ``[..., X+1]`` and edges_y: ``[..., Y+1]``, ascending (equal neighbours: an empty cell).
    filled: float64 ``[..., Y, X]``, 1 inside the region and 0 outside.
    """

    edges_x: Tensor
    edges_y: Tensor
    filled: Tensor

    @classmethod
    def of_boxes(cls, boxes: Tensor) -> Area:
        """Union of the boxes ``[..., G, 4]`` (xyxy, relative), exactly."""
        edges_x = boxes[..., 0::2].flatten(-2).sort(-1).values  # [..., 2G]
        edges_y = boxes[..., 1::2].flatten(-2).sort(-1).values
        in_x = _inside(_centres(edges_x), boxes[..., 0], boxes[..., 2])  # [..., 2G-1, G]
        in_y = _inside(_centres(edges_y), boxes[..., 1], boxes[..., 3])
        filled = (in_y @ in_x.transpose(-1, -2)) > 0
        return cls(edges_x, edges_y, filled.to(boxes.dtype))

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> Area:
        """A mask, bool ``[H, W]``, stretched over the whole image."""
        height, width = mask.shape
        filled = torch.as_tensor(np.ascontiguousarray(mask)).to(torch.float64)
        return cls(_grid(width, filled.device), _grid(height, filled.device), filled)

    def total(self) -> Tensor:
        """Area ``[...]``, as a share of the image."""
        return (self.edges_y.diff()[..., None, :] @ self.filled @ self.edges_x.diff()[..., :, None])[..., 0, 0]

    def within(self, boxes: Tensor) -> Tensor:
        """Area ``[..., K]`` of the region inside each of the boxes ``[..., K, 4]``."""
        rows = _overlap(boxes[..., 1], boxes[..., 3], self.edges_y)  # [..., K, Y]
        columns = _overlap(boxes[..., 0], boxes[..., 2], self.edges_x)
        return ((rows @ self.filled) * columns).sum(-1)

    def coverage(self, height: int, width: int) -> Tensor:
        """Share, 0..1, of each cell of a regular grid over the image that the region covers.

        Returns ``[..., height, width]``; its mean is the area.
        """
        y, x = _grid(height, self.filled.device), _grid(width, self.filled.device)
        rows = _overlap(y[:-1], y[1:], self.edges_y) * height
        columns = _overlap(x[:-1], x[1:], self.edges_x) * width
        return rows @ self.filled @ columns.transpose(-1, -2)

    def holds_centres(self, height: int, width: int) -> Tensor:
        """Whether each cell centre of a regular grid is in the region, 0 or 1, ``[..., height, width]``."""
        rows = self._cells(_centres(_grid(height, self.filled.device)), self.edges_y)
        columns = self._cells(_centres(_grid(width, self.filled.device)), self.edges_x)
        return rows @ self.filled @ columns.transpose(-1, -2)

    def holds(self, points: Tensor) -> Tensor:
        """Whether each point ``[..., K, 2]`` (x, y) is in the region, 0 or 1, ``[..., K]``.

        A region holds its left and upper edge, not its right and lower one.
        """
        rows = self._cells(points[..., 1], self.edges_y)
        columns = self._cells(points[..., 0], self.edges_x)
        return ((rows @ self.filled) * columns).sum(-1)

    def _cells(self, points: Tensor, edges: Tensor) -> Tensor:
        return _inside(points, edges[..., :-1], edges[..., 1:]).to(self.filled.dtype)  # [..., K, cells]


def outline_area(regions: Sequence[Region]) -> Area | None:
    """Union of one phrase's outlines (mask, else polygons, else box); None where only boxes are annotated.

    Raises BadInput for masks of different sizes.
    """
    if not any(region.polygons or region.mask_rle for region in regions):
        return None
    sizes = sorted({region.mask_rle[:2] for region in regions if region.mask_rle})
    if len(sizes) > 1:
        raise BadInput(f"masks of one phrase have sizes {sizes}; accepted: one size")
    height, width = sizes[0] if sizes else (OUTLINE_PIXELS, OUTLINE_PIXELS)
    return Area.of_mask(draw_regions(regions, height, width))


def draw_regions(regions: Sequence[Region], height: int, width: int) -> np.ndarray:
    """Union of the outlines of regions as a mask, bool ``[height, width]``; their masks must have that size."""
    mask = np.zeros((height, width), dtype=bool)
    polygons: list[Sequence[Point]] = []
    for region in regions:
        x1, y1, x2, y2 = region.box
        if region.mask_rle is not None:
            mask |= coco_mask.decode({"size": [height, width], "counts": region.mask_rle[2]}).astype(bool)
        else:
            polygons += region.polygons or (((x1, y1), (x2, y1), (x2, y2), (x1, y2)),)
    return mask | draw_polygons(polygons, height, width)


def draw_polygons(polygons: Sequence[Sequence[Point]], height: int, width: int) -> np.ndarray:
    """Union of polygons (relative vertices) as pycocotools draws it, bool ``[height, width]``.

    Raises BadInput for fewer than three vertices (pycocotools would take two for a box).
    """
    short = [polygon for polygon in polygons if len(polygon) < 3]
    if short:
        raise BadInput(f"polygon {tuple(short[0])} has {len(short[0])} vertices; accepted: 3 or more")
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    flat = [(np.asarray(polygon, dtype=np.float64) * (width, height)).ravel().tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, height, width))).astype(bool)


def _grid(cells: int, device: torch.device) -> Tensor:
    return torch.arange(cells + 1, dtype=torch.float64, device=device) / cells


def _centres(edges: Tensor) -> Tensor:
    return (edges[..., :-1] + edges[..., 1:]) / 2


def _inside(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Points ``[..., K]`` in the intervals ``[low, high)`` ``[..., M]`` -> float64 ``[..., K, M]``."""
    points = points[..., :, None]
    return ((low[..., None, :] <= points) & (points < high[..., None, :])).to(torch.float64)


def _overlap(low: Tensor, high: Tensor, edges: Tensor) -> Tensor:
    """Length that the intervals ``[..., K]`` share with each cell between edges -> ``[..., K, cells]``."""
    upper = torch.minimum(high[..., :, None], edges[..., None, 1:])
    lower = torch.maximum(low[..., :, None], edges[..., None, :-1])
    return (upper - lower).clamp_(min=0)
