"""Predictions against the truth of their phrases, block by block: IoUs of ranked boxes and of thresholded heatmaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.examples import Region
from grounding.metrics.areas import Area, draw_regions, outline_area
from grounding.metrics.boxes import area_ious, pad_boxes, ranked_ious, to_canvas
from grounding.metrics.heatmaps import (
    by_protocol,
    published_coverage,
    resize_published,
    threshold_ious,
    truth_coverage,
)
from grounding.metrics.measure import Measure, PhraseItem

_CHUNK = 4_000_000  # heatmap cells, or pixels, in one block of phrases


@dataclass(frozen=True)
class Truth:
    """What P phrases are compared with: boxes ``[P, G, 4]`` in candidate ``index`` ``[P]`` of ``n_images``."""

    items: Sequence[PhraseItem]
    boxes: Tensor
    index: Tensor
    n_images: Tensor
    outlines: dict[int, Area]  # of the phrases (by number) whose outlines replace their boxes

    @classmethod
    def of(cls, items: Sequence[PhraseItem], measure: Measure) -> Truth:
        boxes = truth_boxes(items)
        index = torch.tensor([item.phrase.image_index for item in items])
        n_images = torch.tensor([len(item.example.images) for item in items])
        areas: dict[int, Area | None] = {}
        if measure.truth == "outlines":
            areas = {number: outline_area(item.phrase.regions) for number, item in enumerate(items)}
        outlines = {number: area for number, area in areas.items() if area is not None}
        return cls(items, boxes, index, n_images, outlines)

    def on_canvas(self) -> Tensor:
        """Boxes ``[P, G, 4]`` relative to the stacked canvas."""
        return to_canvas(self.boxes, self.index[:, None], self.n_images[:, None])


def truth_boxes(items: Sequence[PhraseItem]) -> Tensor:
    """float64 ``[P, G, 4]``, as ``pad_boxes``."""
    for item in items:
        if not item.phrase.regions:
            raise BadInput(f"phrase {item.phrase.id!r} has no truth boxes; accepted: at least one")
    return pad_boxes([np.array([region.box for region in item.phrase.regions]) for item in items])


def stacked_boxes(items: Sequence[PhraseItem], most: int | None = None) -> tuple[Tensor, Tensor]:
    """Ranked boxes float64 ``[P, K, 4]``, each in its own candidate ``[P, K]``; -1 where a phrase has fewer than K.

    most: only that many of the best.
    """
    ranked = [_ranked(item, most) for item in items]
    count = max((len(index) for _, index in ranked), default=0)
    boxes, index = np.zeros((len(items), max(count, 1), 4)), np.full((len(items), max(count, 1)), -1)
    for number, (own, candidates) in enumerate(ranked):
        boxes[number, : len(own)], index[number, : len(own)] = own, candidates
    return torch.from_numpy(boxes), torch.from_numpy(index)


def _ranked(item: PhraseItem, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    prediction = item.prediction
    if prediction.boxes is None or prediction.image_index is None:
        return np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    return np.asarray(prediction.boxes[:most], np.float64), np.asarray(prediction.image_index[:most])


def box_ious(
    boxes: Tensor, index: Tensor, truth: Truth, measure: Measure, protocols: Sequence[str]
) -> dict[str, Tensor]:
    """IoU ``[P, K]`` by protocol of the boxes of ``stacked_boxes``; 0 where there is none."""
    elsewhere = index != truth.index[:, None]
    if measure.mode == "paper":
        sizes = torch.tensor(measure.canvas_of(truth.items[0])).expand(len(boxes), 2)
        on_canvas = to_canvas(boxes, index.clamp(min=0), truth.n_images[:, None])
        found = {p: ranked_ious(on_canvas, truth.on_canvas(), p, "paper", sizes, index < 0) for p in protocols}
    else:
        found = {p: ranked_ious(boxes, truth.boxes, p, other_image=elsewhere) for p in protocols}
        for number, area in truth.outlines.items():
            if "all" in found:
                found["all"][number] = area_ious(boxes[number], area).masked_fill(elsewhere[number], 0.0)
    return found


def heatmap_ious(
    heatmaps: Tensor, truth: Truth, thresholds: Sequence[float], measure: Measure, protocols: Sequence[str]
) -> dict[str, Tensor]:
    """IoU ``[P, T]`` by protocol (those asked for, at least), of heatmaps ``[P, N, h, w]``."""
    index, union_only = truth.index, tuple(protocols) == ("all",)
    if measure.mode == "paper":
        size = measure.canvas_of(truth.items[0])
        heatmaps = resize_published(heatmaps.flatten(1, 2), size)[:, None]
        coverage = published_coverage(truth.on_canvas(), size, union_only)
        index = torch.zeros_like(index)
        for number in truth.outlines:
            mask = draw_regions(_polygons_on_canvas(truth.items[number]), *size)
            coverage[number, 0] = torch.as_tensor(mask).to(coverage.dtype)
    else:
        height, width = heatmaps.shape[2:]
        coverage = truth_coverage(truth.boxes, height, width, union_only)
        for number, area in truth.outlines.items():
            coverage[number, 0] = area.coverage(height, width)
    return by_protocol(threshold_ious(heatmaps, index, coverage, thresholds))


def _polygons_on_canvas(item: PhraseItem) -> list[Region]:
    """A phrase's regions without masks, in coordinates of the stacked canvas."""
    n, i = len(item.example.images), item.phrase.image_index
    moved = []
    for region in item.phrase.regions:
        x1, y1, x2, y2 = region.box
        polygons = tuple(tuple((x, (i + y) / n) for x, y in polygon) for polygon in region.polygons)
        box = (x1, (i + y1) / n, x2, (i + y2) / n)
        moved.append(replace(region, box=box, polygons=polygons, mask_rle=None))
    return moved


def stacked_heatmaps(items: Sequence[PhraseItem]) -> Tensor:
    """The heatmaps of P phrases, which are of one shape: float32 ``[P, N, h, w]``."""
    return torch.as_tensor(np.stack([np.asarray(item.prediction.heatmap, np.float32) for item in items]))


def blocks(items: Sequence[PhraseItem], measure: Measure) -> Iterator[list[int]]:
    """Numbers of items that are scored together: one kind, heatmap shape and canvas, few enough for memory."""

    def kind(number: int) -> tuple[tuple[int, ...], tuple[int, int]]:
        heatmap = items[number].prediction.heatmap
        return () if heatmap is None else heatmap.shape, measure.canvas_of(items[number])

    def regions(number: int) -> int:
        return len(items[number].phrase.regions)

    ordered = sorted(range(len(items)), key=lambda number: (kind(number), regions(number)))  # little padding
    for (shape, canvas), same in groupby(ordered, key=kind):
        numbers = list(same)
        most = regions(numbers[-1])
        pixels = max(int(np.prod(canvas)), int(np.prod(shape[1:])))
        cells = int(np.prod(shape)) + (2 + most) * pixels if shape else 0
        step = max(1, _CHUNK // (cells + 4 * (1 + most) ** 2))
        for begin in range(0, len(numbers), step):
            yield numbers[begin : begin + step]
