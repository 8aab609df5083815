"""The boxes of phrases, in the forms in which questions compare answers with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.metrics.boxes import pad_boxes, to_canvas
from probe.pairs import BOX

if TYPE_CHECKING:
    from extract.reader import Run


def annotated_phrases(run: Run) -> np.ndarray:
    """Row numbers of the phrases that have a region. Raises BadInput where none has."""
    owner = run.regions["phrase"].to_numpy()
    phrases = np.unique(owner[owner >= 0])
    if not len(phrases):
        raise BadInput(f"no phrase of the run ({len(run.phrases)} phrases) has a region; extract annotated examples")
    return phrases


def phrase_boxes(run: Run, phrases: np.ndarray, canvas: bool = False) -> Tensor:
    """Boxes of phrases that have any, float64 ``[P, G, 4]`` xyxy, the first one repeated to fill up.

    Relative to their candidate image or, with ``canvas``, to all candidates stacked.
    """
    rows = run.regions[run.regions["phrase"].isin(phrases)]
    own = rows.groupby("phrase", sort=True)[BOX]
    boxes = pad_boxes([group.to_numpy(np.float64, copy=True) for _, group in own])
    if not canvas:
        return boxes
    index = torch.from_numpy(run.phrases["image_index"].to_numpy()[phrases])
    examples = run.phrases["example"].to_numpy()[phrases]
    images = torch.from_numpy(run.examples["n_images"].to_numpy()[examples])
    return to_canvas(boxes, index[:, None], images[:, None])


def single_images(run: Run) -> bool:
    """Whether every example is of one image, so that a box in it says all of where a phrase is."""
    return bool((run.examples["n_images"] == 1).all())
