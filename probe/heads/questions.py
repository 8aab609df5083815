"""What maps of phrases are asked, and the truth on their own grid.

A map has a value for every image token; cells become places of candidates through the token grid alone, as in
``grounding.metrics.heatmaps``: nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.metrics.areas import Area
from grounding.metrics.boxes import pad_boxes
from grounding.metrics.heatmaps import THRESHOLDS, pointing, threshold_ious, truth_coverage

if TYPE_CHECKING:
    from extract.reader import Run

SCOPES = ("canvas", "candidate")
_CHUNK = 4_000_000  # cells of one head's maps that are scored together


@dataclass(frozen=True)
class Block:
    """P phrases whose maps have one shape, examples whole.

    phrase, example: int64 ``[P]``, rows of the run's tables. images: candidates N. grid: (rows, columns) of tokens on
    the canvas. index: int64 ``[P]``, the candidate that the phrase is annotated in. coverage: ``[P, 1, h, w]``, share
    of each of its cells that the union of the phrase's boxes covers; inside: ``[P, h, w]``, is a cell's centre in it?
    """

    phrase: np.ndarray
    example: np.ndarray
    images: int
    grid: tuple[int, int]
    index: Tensor
    coverage: Tensor
    inside: Tensor

    def candidates(self, cells: np.ndarray) -> Tensor:
        """Maps ``[P, C, rows * columns]`` of the canvas as ``[P, C, N, h, w]``.

        Where N does not divide the rows, each is cut into N, so that a row on a border falls to both its candidates.
        """
        canvas = torch.from_numpy(cells).unflatten(-1, self.grid)
        if self.grid[0] % self.images:
            canvas = canvas.repeat_interleave(self.images, 2)
        return canvas.unflatten(2, (self.images, -1))

    def score(self, maps: Tensor, scope: str, thresholds: tuple[float, ...] = THRESHOLDS) -> tuple[Tensor, Tensor]:
        """IoU under each threshold, ``[P, T]``, and pointing, ``[P]`` (ties count by their share inside).

        maps: ``[P, N, h, w]``. scope: ``canvas``, or ``candidate``, which looks at the right one alone. What is below
        zero counts as zero; a map without a positive value says nothing, and counts as even.
        """
        index = self.index
        if scope == "candidate":
            maps, index = maps[torch.arange(len(maps)), index][:, None], torch.zeros_like(index)
        maps = maps.float().clamp(min=0)
        maps = torch.where(maps.amax((1, 2, 3), keepdim=True) > 0, maps, 1.0)
        return threshold_ious(maps, index, self.coverage, thresholds)[:, 0], pointing(maps, index, self.inside)


def blocks(run: Run) -> list[Block]:
    """The phrases of a run that have regions, by the shape of their maps. Raises BadInput where none has any."""
    boxes = _boxes(run)
    if not boxes:
        raise BadInput(f"run {str(run.path)!r} has no phrase with a region: there is nothing to score maps against")
    phrases = run.phrases.iloc[sorted(boxes)]
    shape = run.examples[["n_images", "grid_rows", "grid_columns"]].iloc[phrases["example"]].set_axis(phrases.index)
    found = []
    for (images, rows, columns), same in phrases.groupby([shape[name] for name in shape], sort=True):
        height = rows if rows % images else rows // images
        for part in _whole_examples(same, max(1, _CHUNK // (rows * columns))):
            truth = pad_boxes([boxes[row] for row in part.index])
            found.append(
                Block(
                    phrase=part.index.to_numpy(),
                    example=part["example"].to_numpy(),
                    images=int(images),
                    grid=(int(rows), int(columns)),
                    index=torch.from_numpy(part["image_index"].to_numpy().copy()),
                    coverage=truth_coverage(truth, height, columns, union_only=True),
                    inside=Area.of_boxes(truth).holds_centres(height, columns),
                )
            )
    return found


def _boxes(run: Run) -> dict[int, np.ndarray]:
    """Row of each phrase with annotated regions -> its boxes ``[G, 4]``."""
    owned = run.regions[run.regions["phrase"] >= 0]
    return {int(row): part[["x1", "y1", "x2", "y2"]].to_numpy(copy=True) for row, part in owned.groupby("phrase")}


def _whole_examples(phrases: pd.DataFrame, most: int) -> Iterator[pd.DataFrame]:
    """Phrases in parts of about ``most``; those of an example stay together."""
    number = pd.factorize(phrases["example"])[0]
    per_example = np.bincount(number)
    part = (np.cumsum(per_example) - per_example)[number] // most
    for _, same in phrases.groupby(part):
        yield same
