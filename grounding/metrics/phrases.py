"""One row a phrase, whichever way a model grounds it: ranked boxes and heatmaps end in the same table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Phrase, PhrasePrediction, Region
from grounding.metrics.areas import Area, draw_regions, outline_area
from grounding.metrics.boxes import MODES, PROTOCOLS, area_ious, hits, pad_boxes, ranked_ious, to_canvas
from grounding.metrics.heatmaps import (
    THRESHOLDS,
    by_protocol,
    pointing,
    published_coverage,
    region_boxes,
    resize_published,
    threshold_ious,
    truth_coverage,
)

TRUTHS = ("boxes", "outlines")
_CHUNK = 4_000_000  # heatmap cells, or pixels, in one block of phrases
_IOUS = {"all": "iou", "any": "iou_any", "merged": "iou_merged"}  # protocol -> column
_PREDICTED = ("predicted_x1", "predicted_y1", "predicted_x2", "predicted_y2", "predicted_image_index")


@dataclass(frozen=True)
class PhraseItem:
    """A phrase, its example, what a model predicted for it (ranked boxes, or a heatmap), and on what canvas."""

    example: Example
    phrase: Phrase
    prediction: PhrasePrediction
    canvas_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Measure:
    """How phrases are measured.

    mode: ``corrected``, or ``paper``, the original's arithmetic on a canvas of ``canvas_size`` pixels
    (height, width of all candidates, stacked; by default that of each prediction); see ``boxes`` and ``heatmaps``.
    truth: what protocol ``all`` and pointing compare with. ``boxes``: the union of the truth boxes, which serves
    both families of models alike. ``outlines``: of the masks, else polygons, else boxes; ``paper`` knows
    polygons only, and compares predicted boxes with boxes. ``any`` and ``merged`` always take boxes.
    Raises BadInput for unknown names and an impossible canvas size.
    """

    mode: str = "corrected"
    truth: str = "boxes"
    canvas_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_choice("mode", self.mode, MODES)
        if self.truth not in TRUTHS:
            raise unknown_choice("truth", self.truth, TRUTHS)
        if self.canvas_size is not None and min(self.canvas_size) < 1:
            raise BadInput(
                f"canvas_size {self.canvas_size} is too small; accepted: (height, width) in pixels of the stacked "
                "candidates, 1 or more"
            )

    def canvas_of(self, item: PhraseItem) -> tuple[int, int]:
        """Canvas that a phrase is measured on (``_blocks`` are of one); (0, 0) where none matters. Raises BadInput."""
        if self.mode != "paper":
            return 0, 0
        size = self.canvas_size or item.canvas_size
        if size is None:
            raise BadInput(
                f"example {item.example.id!r}: its prediction has no canvas_size, which mode 'paper' needs; accepted: "
                "(height, width) in pixels of the stacked candidates"
            )
        return size


def phrase_table(
    items: Sequence[PhraseItem], threshold: float | None = None, measure: Measure | None = None
) -> pd.DataFrame:
    """One row a phrase, in order. ``threshold`` (share of a heatmap's maximum) is needed where there are heatmaps.

    Columns: phrase, example, type, image_index; region_size (its regions' share of the image); iou (protocol all),
    iou_any, iou_merged; hit (iou >= 0.5); pointing (is the best box's centre, or the heatmap's peak, in the truth:
    0..1); predicted_x1, _y1, _x2, _y2, relative to candidate predicted_image_index: the best-ranked box, or the box
    round the thresholded heatmap (NaN and -1 where a model offers no box; IoU and pointing are then 0).
    """
    scores = phrase_scores(items, threshold, measure)
    table = {
        "phrase": [item.phrase.id for item in items],
        "example": [item.example.id for item in items],
        "type": [item.phrase.type for item in items],
        "image_index": np.array([item.phrase.image_index for item in items], dtype=np.int64),
        "region_size": _region_sizes(items),
        **{name: scores[name] for name in (*_IOUS.values(), "pointing")},
        "hit": hits(torch.from_numpy(scores["iou"])).numpy(),
        **{name: scores[name] for name in _PREDICTED},
    }
    return pd.DataFrame(table)


def phrase_scores(
    items: Sequence[PhraseItem],
    threshold: float | None = None,
    measure: Measure | None = None,
    protocols: Sequence[str] = PROTOCOLS,
) -> dict[str, np.ndarray]:
    """What ``phrase_table`` measures, by the names of its columns: float64 ``[P]`` (the candidate's index int64).

    protocols: the IoUs to measure, others are left out: ``("all",)`` takes less than half the time of all of them.
    """
    measure = measure or Measure()
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise unknown_choice("protocol", protocol, PROTOCOLS)
    names = (*(_IOUS[protocol] for protocol in protocols), "pointing", *_PREDICTED)
    scores = torch.zeros(len(items), len(names), dtype=torch.float64)
    for numbers in _blocks(items, measure):
        block = [items[number] for number in numbers]
        if block[0].prediction.heatmap is None:
            scores[numbers] = _score_boxes(block, measure, protocols)
        elif threshold is None:
            raise BadInput(f"example {block[0].example.id!r} has heatmaps: a threshold is needed, in [0, 1)")
        else:
            scores[numbers] = _score_heatmaps(block, threshold, measure, protocols)
    columns = dict(zip(names, scores.T.numpy(), strict=True))
    return columns | {_PREDICTED[-1]: columns[_PREDICTED[-1]].astype(np.int64)}


def heatmap_curves(
    items: Sequence[PhraseItem],
    protocol: str = "all",
    thresholds: Sequence[float] = THRESHOLDS,
    measure: Measure | None = None,
) -> np.ndarray:
    """IoU of every heatmap at every threshold, float64 ``[P, T]``; BadInput if an item has ranked boxes."""
    measure = measure or Measure()
    if protocol not in PROTOCOLS:
        raise unknown_choice("protocol", protocol, PROTOCOLS)
    boxed = [item.phrase.id for item in items if item.prediction.heatmap is None]
    if boxed:
        raise BadInput(f"phrase {boxed[0]!r} has ranked boxes and no heatmap: there is nothing to threshold")
    curves = np.zeros((len(items), len(thresholds)))
    for numbers in _blocks(items, measure):
        block = [items[number] for number in numbers]
        heatmaps, truth = _heatmaps(block), _Truth.of(block, measure)
        curves[numbers] = _heatmap_ious(heatmaps, truth, thresholds, measure, [protocol])[protocol].numpy()
    return curves


@dataclass(frozen=True)
class _Truth:
    """What P phrases are compared with: boxes ``[P, G, 4]`` in candidate ``index`` ``[P]`` of ``n_images``."""

    items: Sequence[PhraseItem]
    boxes: Tensor
    index: Tensor
    n_images: Tensor
    outlines: dict[int, Area]  # of the phrases (by number) whose outlines replace their boxes

    @classmethod
    def of(cls, items: Sequence[PhraseItem], measure: Measure) -> _Truth:
        boxes = _truth_boxes(items)
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


def _truth_boxes(items: Sequence[PhraseItem]) -> Tensor:
    """float64 ``[P, G, 4]``, as ``pad_boxes``."""
    for item in items:
        if not item.phrase.regions:
            raise BadInput(f"phrase {item.phrase.id!r} has no truth boxes; accepted: at least one")
    return pad_boxes([np.array([region.box for region in item.phrase.regions]) for item in items])


def _region_sizes(items: Sequence[PhraseItem]) -> np.ndarray:
    """Share of the image that each phrase's boxes cover together: float64 ``[P]``."""
    blocks = [items[begin : begin + 1000] for begin in range(0, len(items), 1000)]
    return np.concatenate([np.zeros(0), *(Area.of_boxes(_truth_boxes(block)).total().numpy() for block in blocks)])


def _score_boxes(items: Sequence[PhraseItem], measure: Measure, protocols: Sequence[str]) -> Tensor:
    """Columns ``[P, protocols + 6]`` of phrases with ranked boxes."""
    truth = _Truth.of(items, measure)
    ranked = [_best_box(item.prediction) for item in items]
    box = torch.tensor([best for best, _ in ranked], dtype=torch.float64)[:, None]  # [P, 1, 4]
    index = torch.tensor([candidate for _, candidate in ranked])
    elsewhere = index != truth.index
    centre = (box[..., :2] + box[..., 2:]) / 2
    pointed = Area.of_boxes(truth.boxes).holds(centre)[:, 0]
    if measure.mode == "paper":
        sizes = torch.tensor(measure.canvas_of(items[0])).expand(len(items), 2)
        on_canvas = to_canvas(box, index.clamp(min=0)[:, None], truth.n_images[:, None])
        ious = {p: ranked_ious(on_canvas, truth.on_canvas(), p, "paper", sizes)[:, 0] for p in protocols}
    else:
        other = elsewhere[:, None]
        ious = {p: ranked_ious(box, truth.boxes, p, other_image=other)[:, 0] for p in protocols}
    for number, area in truth.outlines.items():
        pointed[number] = area.holds(centre[number])[0]
        if measure.mode == "corrected" and "all" in ious:
            ious["all"][number] = 0.0 if elsewhere[number] else area_ious(box[number], area)[0]
    pointed = pointed.masked_fill(elsewhere, 0.0)
    box = box[:, 0].masked_fill((index < 0)[:, None], torch.nan)
    return _columns(list(ious.values()), pointed, box, index)


def _score_heatmaps(
    items: Sequence[PhraseItem], threshold: float, measure: Measure, protocols: Sequence[str]
) -> Tensor:
    """Columns ``[P, protocols + 6]`` of phrases whose heatmaps have one shape."""
    truth, heatmaps = _Truth.of(items, measure), _heatmaps(items)
    height, width = heatmaps.shape[2:]
    inside = Area.of_boxes(truth.boxes).holds_centres(height, width)
    for number, area in truth.outlines.items():
        inside[number] = area.holds_centres(height, width)
    ious = _heatmap_ious(heatmaps, truth, [threshold], measure, protocols)
    return _columns(
        [ious[p][:, 0] for p in protocols], pointing(heatmaps, truth.index, inside), *region_boxes(heatmaps, threshold)
    )


def _heatmap_ious(
    heatmaps: Tensor, truth: _Truth, thresholds: Sequence[float], measure: Measure, protocols: Sequence[str]
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


def _best_box(prediction: PhrasePrediction) -> tuple[list[float], int]:
    if prediction.boxes is None or prediction.image_index is None or not len(prediction.boxes):
        return [0.0] * 4, -1
    return np.asarray(prediction.boxes[0], dtype=np.float64).tolist(), int(prediction.image_index[0])


def _heatmaps(items: Sequence[PhraseItem]) -> Tensor:
    return torch.as_tensor(np.stack([np.asarray(item.prediction.heatmap, np.float32) for item in items]))


def _columns(ious: Sequence[Tensor], pointed: Tensor, box: Tensor, index: Tensor) -> Tensor:
    """In the order of the columns of ``phrase_scores``."""
    return torch.cat([torch.stack([*ious, pointed], 1), box, index[:, None].to(torch.float64)], 1)


def _blocks(items: Sequence[PhraseItem], measure: Measure) -> Iterator[list[int]]:
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
