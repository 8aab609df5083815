"""One row a phrase, whichever way a model grounds it: ranked boxes and heatmaps end in the same table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.areas import Area
from grounding.metrics.boxes import PROTOCOLS, hits
from grounding.metrics.heatmaps import THRESHOLDS, pointing, region_boxes
from grounding.metrics.measure import Measure, PhraseItem
from grounding.metrics.phrase_ious import (
    Truth,
    blocks,
    box_ious,
    heatmap_ious,
    stacked_boxes,
    stacked_heatmaps,
    truth_boxes,
)

IOU_COLUMNS = {"all": "iou", "any": "iou_any", "merged": "iou_merged"}  # protocol -> column
PREDICTED_COLUMNS = ("predicted_x1", "predicted_y1", "predicted_x2", "predicted_y2", "predicted_image_index")


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
        **{name: scores[name] for name in (*IOU_COLUMNS.values(), "pointing")},
        "hit": hits(torch.from_numpy(scores["iou"])).numpy(),
        **{name: scores[name] for name in PREDICTED_COLUMNS},
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
    names = (*(IOU_COLUMNS[protocol] for protocol in protocols), "pointing", *PREDICTED_COLUMNS)
    scores = torch.zeros(len(items), len(names), dtype=torch.float64)
    for numbers in blocks(items, measure):
        block = [items[number] for number in numbers]
        if block[0].prediction.heatmap is None:
            scores[numbers] = _score_boxes(block, measure, protocols)
        elif threshold is None:
            raise BadInput(f"example {block[0].example.id!r} has heatmaps: a threshold is needed, in [0, 1)")
        else:
            scores[numbers] = _score_heatmaps(block, threshold, measure, protocols)
    columns = dict(zip(names, scores.T.numpy(), strict=True))
    return columns | {PREDICTED_COLUMNS[-1]: columns[PREDICTED_COLUMNS[-1]].astype(np.int64)}


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
    for numbers in blocks(items, measure):
        block = [items[number] for number in numbers]
        heatmaps, truth = stacked_heatmaps(block), Truth.of(block, measure)
        curves[numbers] = heatmap_ious(heatmaps, truth, thresholds, measure, [protocol])[protocol].numpy()
    return curves


def _region_sizes(items: Sequence[PhraseItem]) -> np.ndarray:
    """Share of the image that each phrase's boxes cover together: float64 ``[P]``."""
    blocks = [items[begin : begin + 1000] for begin in range(0, len(items), 1000)]
    return np.concatenate([np.zeros(0), *(Area.of_boxes(truth_boxes(block)).total().numpy() for block in blocks)])


def _score_boxes(items: Sequence[PhraseItem], measure: Measure, protocols: Sequence[str]) -> Tensor:
    """Columns ``[P, protocols + 6]`` of phrases with ranked boxes."""
    truth = Truth.of(items, measure)
    box, index = stacked_boxes(items, most=1)  # [P, 1, 4] and [P, 1]
    ious = box_ious(box, index, truth, measure, protocols)
    centre = (box[..., :2] + box[..., 2:]) / 2
    pointed = Area.of_boxes(truth.boxes).holds(centre)[:, 0]
    for number, area in truth.outlines.items():
        pointed[number] = area.holds(centre[number])[0]
    pointed = pointed.masked_fill(index[:, 0] != truth.index, 0.0)
    box = box[:, 0].masked_fill(index < 0, torch.nan)
    return _columns([ious[protocol][:, 0] for protocol in protocols], pointed, box, index[:, 0])


def _score_heatmaps(
    items: Sequence[PhraseItem], threshold: float, measure: Measure, protocols: Sequence[str]
) -> Tensor:
    """Columns ``[P, protocols + 6]`` of phrases whose heatmaps have one shape."""
    truth, heatmaps = Truth.of(items, measure), stacked_heatmaps(items)
    height, width = heatmaps.shape[2:]
    inside = Area.of_boxes(truth.boxes).holds_centres(height, width)
    for number, area in truth.outlines.items():
        inside[number] = area.holds_centres(height, width)
    ious = heatmap_ious(heatmaps, truth, [threshold], measure, protocols)
    return _columns(
        [ious[p][:, 0] for p in protocols], pointing(heatmaps, truth.index, inside), *region_boxes(heatmaps, threshold)
    )


def _columns(ious: Sequence[Tensor], pointed: Tensor, box: Tensor, index: Tensor) -> Tensor:
    """In the order of the columns of ``phrase_scores``."""
    return torch.cat([torch.stack([*ious, pointed], 1), box, index[:, None].to(torch.float64)], 1)
