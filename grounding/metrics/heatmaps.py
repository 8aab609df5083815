"""How well heatmaps ground phrases: IoU of {heatmap / maximum > threshold} with the truth, and pointing.

The heatmap's cells above the threshold, in every candidate image, are the predicted region. Each candidate has
area 1; the truth lies in one of them. All thresholds come from one pass over the cells (each is put into the
bin of the thresholds that it passes, bins are summed up from the top), which is exact, not an approximation.

``corrected`` works on the heatmap's own grid, with the exact share of every cell that the truth covers.
``paper`` (Kojima et al., arXiv 2309.02691, published code) resizes heatmaps to the canvas's pixels first.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.areas import Area
from grounding.metrics.boxes import hits, merged_boxes

THRESHOLDS = tuple(step / 100 for step in range(100))
CRITERIA = ("recall", "iou")
_BINS = 1024  # narrower than thresholds are apart
_CHUNK = 1_000_000  # cells of heatmaps and truths that are counted at a time: a processor's cache holds them


@dataclass(frozen=True)
class Threshold:
    """A threshold that was chosen: its value, on which split, from how many phrases, by which criterion."""

    value: float
    split: str
    n: int
    criterion: str


def check_threshold(threshold: Threshold | float) -> float:
    """The number; BadInput unless it is in [0, 1), the range of thresholds that a heatmap's peak passes."""
    value = threshold.value if isinstance(threshold, Threshold) else float(threshold)
    if not 0 <= value < 1:
        raise BadInput(f"threshold {value} is out of range; accepted: 0 <= threshold < 1")
    return value


def check_tuning_split(split: str) -> None:
    """BadInput for a test split (``test``, ``testA``, ``flickr_test`` ...): nothing is tuned on test."""
    if re.search(r"(?<![a-z])test", split, re.IGNORECASE):
        raise BadInput(f"split {split!r} is a test split; thresholds are tuned on any other one")


def threshold_ious(
    heatmaps: Tensor, image_index: Tensor, coverage: Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> Tensor:
    """IoU of each phrase's thresholded heatmap with each of its M truths, float64 ``[P, M, T]``.

    heatmaps: ``[P, N, h, w]`` over N candidates. image_index: int64 ``[P]``, the candidate of the truth.
    coverage: ``[P, M, h, w]``, share of each cell of that candidate that the truth covers: 0..1, or bool.
    A cell is in where ``heatmap / maximum > threshold``, compared in the heatmap's own precision.
    """
    levels = torch.tensor(thresholds, dtype=heatmaps.dtype, device=heatmaps.device)
    count = _count_each if len(levels) < 4 else _count_binned
    step = max(1, _CHUNK // (heatmaps[:1].numel() + coverage[:1].numel() + 1))
    parts = zip(heatmaps.split(step), image_index.split(step), coverage.flatten(2).split(step), strict=True)
    return torch.cat([_ious(*count(*part, levels), part[2]) for part in parts])


def _ious(cells: Tensor, shared: Tensor, coverage: Tensor) -> Tensor:
    """From cells ``[P, 1, T]`` and shared ones ``[P, M, T]``."""
    return shared / (cells + _sums(coverage)[..., None] - shared)


def _sums(coverage: Tensor) -> Tensor:
    """Sums of shares ``[..., cells]``, or how many are True: float64 ``[...]``."""
    return coverage.count_nonzero(-1).double() if coverage.dtype == torch.bool else coverage.double().sum(-1)


def _count_each(heatmaps: Tensor, index: Tensor, coverage: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Cells ``[P, 1, T]`` above each level and truth ``[P, M, T]`` in them, level by level (best for few)."""
    cells, shared = [], []
    for level in levels.cpu().numpy():
        above, own = _marked(heatmaps, index, partial(_passes, level))
        cells.append(above)
        shared.append(_sums(coverage * own.flatten(1)[:, None]))
    return torch.stack(cells, -1)[:, None], torch.stack(shared, -1)


def _passes(level: np.floating, heatmap: Any, maximum: Any) -> Any:
    return heatmap / maximum > level


def _marked(heatmaps: Tensor, index: Tensor, mark: Callable[[Any, Any], Any]) -> tuple[Tensor, Tensor]:
    """How many cells ``mark(heatmap, its maximum)`` marks, float64 ``[P]``, and which of candidate ``index``, bool."""
    return (_marked_in_cache if heatmaps.device.type == "cpu" else _marked_at_once)(heatmaps, index, mark)


def _marked_in_cache(heatmaps: Tensor, index: Tensor, mark: Callable[[Any, Any], Any]) -> tuple[Tensor, Tensor]:
    """Heatmap by heatmap, since one fits a processor's cache, and by numpy, which compares faster than torch there."""
    count = np.zeros(len(heatmaps))
    own = np.zeros((len(heatmaps), *heatmaps.shape[2:]), dtype=bool)
    for p, (heatmap, candidate) in enumerate(zip(heatmaps.numpy(), index.tolist(), strict=True)):
        marked = mark(heatmap, heatmap.max())
        count[p], own[p] = np.count_nonzero(marked), marked[candidate]
    return torch.from_numpy(count), torch.from_numpy(own)


def _marked_at_once(heatmaps: Tensor, index: Tensor, mark: Callable[[Any, Any], Any]) -> tuple[Tensor, Tensor]:
    """All together, where they are."""
    marked = mark(heatmaps, heatmaps.amax((1, 2, 3), keepdim=True))
    return marked.count_nonzero((1, 2, 3)).double(), _of_candidate(marked, index)


def _of_candidate(cells: Tensor, index: Tensor) -> Tensor:
    """``[P, N, h, w]`` -> ``[P, h, w]`` of candidate ``index`` ``[P]``."""
    return cells[torch.arange(len(cells), device=cells.device), index]


def _count_binned(heatmaps: Tensor, index: Tensor, coverage: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The same in one pass over the cells, however many levels."""
    order, number = levels.argsort(), len(levels)
    passed = _levels_below(heatmaps / heatmaps.amax((1, 2, 3), keepdim=True), levels[order])
    if coverage.dtype == torch.bool and passed.shape[1] == 1:  # one count: cells outside of the truth, and inside
        sides = _from_top(torch.add(passed.flatten(2), coverage, alpha=number + 1), None, number, 2)
        cells, shared = sides.sum(2)[:, :1], sides[:, :, 1]
    else:
        own = _of_candidate(passed, index).flatten(1)[:, None].expand_as(coverage)
        cells = _from_top(passed.flatten(1)[:, None], None, number)[:, :, 0]
        shared = _from_top(own, coverage.to(torch.float64), number)[:, :, 0]
    back = order.argsort()
    return cells[..., back], shared[..., back]


def _levels_below(values: Tensor, levels: Tensor) -> Tensor:
    """How many of the ascending ``levels`` are below each value of 0..1, int32: what ``torch.bucketize`` gives.

    A table of narrow bins says it up to one level, and a comparison with that one settles it: no search.
    """
    edges = torch.arange(_BINS + 1, dtype=levels.dtype, device=levels.device) / _BINS
    least = torch.bucketize(edges, levels, out_int32=True)  # of the bin's lower edge
    if int(least.diff().max()) > 1 or not bool((levels[0] >= 0) & (levels[-1] < 1)):
        return torch.bucketize(values, levels, out_int32=True)
    following = torch.cat([levels, levels.new_tensor([torch.inf])])[least]
    places = (values * _BINS).to(torch.int32).flatten()  # a power of two: the product is exact
    passes = following.index_select(0, places) < values.flatten()
    return least.index_select(0, places).add_(passes).view(values.shape)


def _from_top(places: Tensor, weights: Tensor | None, levels: int, sides: int = 1) -> Tensor:
    """Sum of the weights ``[P, M, cells]`` (1 each for None) of cells that pass level 0..T-1 -> ``[P, M, sides, T]``.

    places: int32 ``[P, M, cells]``, how many levels a cell passes; T + 1 more for each side before its own.
    """
    width = sides * (levels + 1)
    phrases, truths = places.shape[:2]
    rows = torch.arange(phrases * truths, dtype=torch.int32, device=places.device).view(phrases, truths, 1) * width
    of_cells = None if weights is None else weights.flatten()
    bins = torch.bincount((places + rows).flatten(), of_cells, rows.numel() * width)
    bins = bins.view(phrases, truths, sides, levels + 1).to(torch.float64)
    return bins.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def truth_coverage(boxes: Tensor, height: int, width: int, union_only: bool = False) -> Tensor:
    """Truths of all protocols for boxes ``[P, G, 4]``, as shares of cells: ``[P, 2 + G, height, width]``.

    In order: all (union of the boxes), merged, and each box alone (for any). union_only: the first, ``[P, 1, ...]``.
    """
    union = Area.of_boxes(boxes).coverage(height, width)[:, None]
    if union_only:
        return union
    single = Area.of_boxes(torch.cat([merged_boxes(boxes), boxes], 1)[:, :, None])  # [P, 1 + G]
    return torch.cat([union, single.coverage(height, width)], 1)


def by_protocol(ious: Tensor) -> dict[str, Tensor]:
    """Split IoUs ``[P, 2 + G, T]`` over the truths of ``truth_coverage`` into protocols, ``[P, T]`` each.

    IoUs ``[P, 1, T]``, with the union only, are of protocol all.
    """
    if ious.shape[1] == 1:
        return {"all": ious[:, 0]}
    return {"all": ious[:, 0], "merged": ious[:, 1], "any": ious[:, 2:].amax(1)}


def choose_threshold(
    ious: Tensor | np.ndarray, split: str, criterion: str = "recall", thresholds: Sequence[float] = THRESHOLDS
) -> Threshold:
    """The threshold that is best for phrases of ``split``; the first of equals.

    ious: ``[P, T]``, one column a threshold. criterion: ``recall`` (share of phrases with IoU >= 0.5) or ``iou``
    (mean). Raises BadInput for a test split, an unknown criterion, no phrases, or columns that do not fit.
    """
    check_tuning_split(split)
    if criterion not in CRITERIA:
        raise unknown_choice("criterion", criterion, CRITERIA)
    ious = torch.as_tensor(ious)
    if ious.ndim != 2 or not len(ious) or ious.shape[1] != len(thresholds):
        raise BadInput(f"ious have shape {tuple(ious.shape)}; accepted: [phrases, {len(thresholds)}], 1 or more")
    quality = hits(ious).sum(0) if criterion == "recall" else ious.mean(0)
    best = int((quality == quality.max()).nonzero()[0, 0])
    return Threshold(float(thresholds[best]), split, len(ious), criterion)


def pointing(heatmaps: Tensor, image_index: Tensor, inside: Tensor) -> Tensor:
    """Pointing game (Zhang et al., arXiv 1608.00507), float64 ``[P]``: is the peak in the truth?

    Tied peaks count by their share inside.
    heatmaps: ``[P, N, h, w]``. inside: ``[P, h, w]``, 1 where a cell's centre is in the truth, for the cells of
    candidate ``image_index`` (``Area.holds_centres``).
    """
    peaks, own = _marked(heatmaps, image_index, operator.eq)
    return (own * inside).sum((1, 2)) / peaks


def region_boxes(heatmaps: Tensor, threshold: Threshold | float) -> tuple[Tensor, Tensor]:
    """Box round the thresholded region in the candidate of the (first) peak.

    heatmaps: ``[P, N, h, w]`` -> boxes float64 ``[P, 4]`` xyxy relative to that candidate, and its index ``[P]``.
    """
    value = check_threshold(threshold)
    height, width = heatmaps.shape[2:]
    peaks = heatmaps.amax((2, 3))  # [P, N]
    index = peaks.argmax(1)
    maximum = peaks.gather(1, index[:, None])[..., None]
    own = _of_candidate(heatmaps, index) / maximum > value  # [P, h, w]
    x1, x2 = _extent(own.any(1))
    y1, y2 = _extent(own.any(2))
    return torch.stack([x1 / width, y1 / height, x2 / width, y2 / height], -1), index


def _extent(marked: Tensor) -> tuple[Tensor, Tensor]:
    """First marked cell and the end of the last one, of ``[P, cells]``."""
    cells = marked.shape[1]
    first = marked.to(torch.uint8).argmax(1)
    last = cells - marked.flip(1).to(torch.uint8).argmax(1)
    return first.to(torch.float64), last.to(torch.float64)


def resize_published(heatmaps: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps ``[P, h, w]`` at ``size`` (height, width), as the study's evaluation resizes them.

    Bilinear (align_corners False) where the target is at least as large in both dimensions, else average pooling.
    """
    height, width = heatmaps.shape[1:]
    if (height, width) == tuple(size):
        return heatmaps
    if size[0] >= height and size[1] >= width:
        return functional.interpolate(heatmaps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return functional.adaptive_avg_pool2d(heatmaps[:, None], size)[:, 0]


def published_coverage(boxes: Tensor, size: tuple[int, int], union_only: bool = False) -> Tensor:
    """Pixel masks of canvas boxes, in the order of ``truth_coverage``: bool ``[P, 2 + G, height, width]``.

    boxes: ``[P, G, 4]`` relative to the canvas; corners are rounded (half to even) to pixels, rows y1:y2.
    union_only: as there.
    """
    height, width = size
    edges = (boxes * boxes.new_tensor([width, height, width, height])).round()
    edges = torch.cat([merged_boxes(edges), edges], 1)[..., None]  # [P, 1 + G, 4, 1]
    x, y = (torch.arange(length, device=boxes.device) for length in (width, height))
    columns = (edges[..., 0, :] <= x) & (x < edges[..., 2, :])  # [P, 1 + G, width]
    rows = (edges[..., 1, :] <= y) & (y < edges[..., 3, :])
    masks = rows[..., :, None] & columns[..., None, :]
    union = masks[:, 1:].any(1, keepdim=True)
    return union if union_only else torch.cat([union, masks], 1)
