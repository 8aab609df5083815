"""The question: does this phrase belong to this region? Pairs and their answers, from a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from grounding.errors import BadInput

if TYPE_CHECKING:
    from extract.reader import Run

BOX = ["x1", "y1", "x2", "y2"]


@dataclass(frozen=True)
class PairTable:
    """n pairs of a phrase and a candidate region, the same for every site.

    phrase, region, example: int64 ``[n]``, row numbers in the run's tables. label: bool ``[n]``, belongs or not.
    left_out: phrases without a choice to make (no region of their own, or no candidate that is not theirs).
    """

    phrase: np.ndarray
    region: np.ndarray
    example: np.ndarray
    label: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, chosen: np.ndarray) -> PairTable:
        """The pairs of a boolean mask or index array."""
        return PairTable(
            self.phrase[chosen], self.region[chosen], self.example[chosen], self.label[chosen], self.left_out
        )


def alignment_pairs(run: Run, iou: float = 0.5) -> PairTable:
    """Every phrase with every stored region of its example, in both tables' order.

    A pair is positive when the region has an IoU of at least ``iou`` with any of the phrase's own annotated
    regions in the same image; regions of the other candidate images are negatives. Phrases whose candidates
    are all positive or all negative are left out and counted: there is nothing to choose.

    Raises BadInput when ``iou`` is outside (0, 1] or when no phrase is left.
    """
    if not 0 < iou <= 1:
        raise BadInput(f"iou {iou} is not a threshold; accepted: more than 0, at most 1")
    phrases = pd.DataFrame({"phrase": np.arange(len(run.phrases)), "example": run.phrases["example"].to_numpy()})
    regions = pd.DataFrame({"region": np.arange(len(run.regions)), "example": run.regions["example"].to_numpy()})
    pairs = phrases.merge(regions, on="example").sort_values(["phrase", "region"], kind="stable")
    phrase, region = pairs["phrase"].to_numpy(), pairs["region"].to_numpy()
    label = _positive_pairs(run.regions, len(run.phrases), iou)
    belongs = np.isin(phrase * len(run.regions) + region, label)
    positives = np.bincount(phrase[belongs], minlength=len(run.phrases))
    candidates = np.bincount(phrase, minlength=len(run.phrases))
    usable = (positives > 0) & (positives < candidates)
    if not usable.any():
        raise BadInput(
            f"no phrase of the run ({len(run.phrases)} phrases, {len(run.regions)} regions) has both a region of its "
            "own and another candidate: there is one class only; extract with annotated regions and extra boxes"
        )
    kept = usable[phrase]
    return PairTable(
        phrase=phrase[kept],
        region=region[kept],
        example=pairs["example"].to_numpy()[kept],
        label=belongs[kept],
        left_out=int((~usable).sum()),
    )


def _positive_pairs(regions: pd.DataFrame, n_phrases: int, iou: float) -> np.ndarray:
    """Keys ``phrase * n_regions + region`` of the pairs that overlap enough."""
    boxes = torch.from_numpy(regions[BOX].to_numpy(dtype=np.float32, copy=True))
    owner, image = regions["phrase"].to_numpy(), regions["image_index"].to_numpy()
    if len(owner) and owner.max() >= n_phrases:
        raise BadInput(f"regions name phrase {owner.max()}, but the run has {n_phrases} phrases")
    found = [np.empty(0, dtype=np.int64)]
    for rows in regions.groupby("example", sort=True).indices.values():
        own = rows[owner[rows] >= 0]
        overlap = box_iou(boxes[own], boxes[rows]).numpy() >= iou
        first, second = np.nonzero(overlap & (image[own][:, None] == image[rows][None, :]))
        found.append(owner[own[first]].astype(np.int64) * len(regions) + rows[second])
    return np.unique(np.concatenate(found))
