"""Grounding under every setting that results may hang on: protocol, number of ranked boxes, heatmap threshold.

Kojima et al. (arXiv 2309.02691) name the sensitivity to both as a limitation of their study.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from grounding.metrics.boxes import PROTOCOLS
from grounding.metrics.measure import Measure, PhraseItem
from grounding.metrics.phrase_ious import Truth, blocks, box_ious, heatmap_ious, stacked_boxes, stacked_heatmaps

RANKS: tuple[int | None, ...] = (1, 5, 10, None)  # None: all boxes
SENSITIVITY_THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
SETTING = ("protocol", "boxes", "threshold")


def sensitivity_table(
    items: Sequence[PhraseItem],
    measure: Measure | None = None,
    thresholds: Sequence[float] = SENSITIVITY_THRESHOLDS,
) -> pd.DataFrame:
    """One row a phrase and setting: ranked boxes under every protocol and rank, heatmaps also under every threshold.

    Columns: phrase, example, protocol (all, any, merged), boxes (best of the first 1, 5, 10 or all; '' for heatmaps),
    threshold (of heatmaps, share of their maximum; NaN for boxes), iou. Heatmaps are taken a block at a time, and
    only their IoUs are kept. The original never looked at ``all`` with all boxes, so ``paper`` leaves that out.
    """
    measure = measure or Measure()
    parts = [pd.DataFrame(columns=["number", *SETTING, "iou"])]
    for numbers in blocks(items, measure):
        block = [items[number] for number in numbers]
        boxed = block[0].prediction.heatmap is None
        parts += _of_boxes(block, numbers, measure) if boxed else _of_heatmaps(block, numbers, measure, thresholds)
    table = pd.concat(parts[1:] or parts, ignore_index=True).sort_values("number", kind="stable", ignore_index=True)
    number = table.pop("number").to_numpy(np.int64)  # as the phrases are, whatever the blocks
    names = pd.DataFrame({"phrase": [i.phrase.id for i in items], "example": [i.example.id for i in items]})
    return pd.concat([names.iloc[number].reset_index(drop=True), table], axis=1)


def _of_boxes(block: Sequence[PhraseItem], numbers: Sequence[int], measure: Measure) -> list[pd.DataFrame]:
    ious = box_ious(*stacked_boxes(block), Truth.of(block, measure), measure, PROTOCOLS)
    parts = []
    for protocol, of_box in ious.items():
        best = torch.cummax(of_box, 1).values
        for rank in RANKS:
            if measure.mode == "paper" and protocol == "all" and rank is None:
                continue
            place = best.shape[1] if rank is None else min(rank, best.shape[1])
            parts.append(_part(numbers, best[:, place - 1], protocol, "all" if rank is None else str(rank), np.nan))
    return parts


def _of_heatmaps(
    block: Sequence[PhraseItem], numbers: Sequence[int], measure: Measure, thresholds: Sequence[float]
) -> list[pd.DataFrame]:
    if not thresholds:
        return []
    ious = heatmap_ious(stacked_heatmaps(block), Truth.of(block, measure), thresholds, measure, PROTOCOLS)
    return [
        _part(numbers, ious[protocol][:, place], protocol, "", threshold)
        for protocol in PROTOCOLS
        for place, threshold in enumerate(thresholds)
    ]


def _part(numbers: Sequence[int], iou: torch.Tensor, protocol: str, boxes: str, threshold: float) -> pd.DataFrame:
    setting = {"protocol": protocol, "boxes": boxes, "threshold": threshold}
    return pd.DataFrame({"number": numbers, **setting, "iou": iou.numpy()})
