"""Heatmaps of phrases against their boxes: IoU at a threshold chosen on validation, recall, pointing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from grounding.metrics.boxes import hits
from grounding.metrics.heatmaps import THRESHOLDS, choose_threshold, pointing, threshold_ious
from grounding.metrics.intervals import Statistic
from probe.questions.base import Judgement, Score

SCORES = ("iou", "recall", "pointing")


@dataclass(frozen=True)
class Heatmaps:
    """P heatmaps of any sizes, cell by cell, those of a phrase behind one another.

    counts: int64 ``[P]``, cells of each. value: ``[n]``, 0 or more, some of each phrase above 0. coverage: ``[n]``,
    share of the cell that the truth covers. inside: ``[n]``, whether its centre is in the truth. phrase, example:
    int64 ``[P]``, row numbers. image: ``[P]`` labels.
    """

    counts: np.ndarray
    value: np.ndarray
    coverage: np.ndarray
    inside: np.ndarray
    phrase: np.ndarray
    example: np.ndarray
    image: np.ndarray

    def curves(self) -> np.ndarray:
        """IoU at every threshold of ``THRESHOLDS``: float64 ``[P, T]``."""
        found = np.zeros((len(self.counts), len(THRESHOLDS)))
        for rows, cells in self._alike():
            maps, coverage = (torch.from_numpy(v[cells][:, None, None]) for v in (self.value, self.coverage))
            index = torch.zeros(len(rows), dtype=torch.int64)
            found[rows] = threshold_ious(maps, index, coverage)[:, 0].numpy()
        return found

    def pointed(self) -> np.ndarray:
        """Is the peak in the truth, 0..1: float64 ``[P]``."""
        found = np.zeros(len(self.counts))
        for rows, cells in self._alike():
            maps, inside = torch.from_numpy(self.value[cells][:, None, None]), torch.from_numpy(self.inside[cells])
            found[rows] = pointing(maps, torch.zeros(len(rows), dtype=torch.int64), inside[:, None].double()).numpy()
        return found

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each phrase, the share of its cells that the truth covers, and of those whose centre is in it: ``[P]``."""
        starts = np.cumsum(self.counts) - self.counts
        covered = np.add.reduceat(self.coverage, starts) / self.counts
        return covered, np.add.reduceat(self.inside.astype(float), starts) / self.counts

    def _alike(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return alike(self.counts)


def alike(counts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Phrases of equally many cells, ``[p]``, and their cells ``[p, cells]``; counts: cells of each, ``[P]``."""
    starts = np.cumsum(counts) - counts
    sizes = np.unique(counts)
    groups = [np.flatnonzero(counts == size) for size in sizes]
    return [(rows, starts[rows, None] + np.arange(size)) for rows, size in zip(groups, sizes, strict=True)]


def highest_iou(counts: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """IoU of the best choice of cells for each phrase, ``[P]``: what the grid allows, whatever is known.

    counts: ``[P]``, cells of each phrase. coverage: ``[n]``, share of each cell that the truth covers.
    """
    best = np.zeros(len(counts))
    for rows, cells in alike(counts):
        cover = -np.sort(-coverage[cells], axis=1)
        shared = cover.cumsum(1)
        best[rows] = (shared / (np.arange(1, cells.shape[1] + 1) + shared[:, -1:] - shared)).max(1)
    return best


def judge_heatmaps(validation: Heatmaps, test: Heatmaps) -> tuple[Judgement, Judgement]:
    """Scores and items of both, at the threshold of the best mean IoU on validation."""
    curves = validation.curves()
    threshold = choose_threshold(curves, "validation", "iou").value
    column = THRESHOLDS.index(threshold)
    return _judged(validation, curves[:, column]), _judged(test, test.curves()[:, column])


def _judged(maps: Heatmaps, iou: np.ndarray) -> Judgement:
    recall = hits(torch.from_numpy(iou)).numpy().astype(float)
    pointed = maps.pointed()
    covered, inside = maps.shares()  # a blind map holds all cells alike
    blind = {"iou": covered, "recall": hits(torch.from_numpy(covered)).numpy(), "pointing": inside}
    values = {"iou": iou, "recall": recall, "pointing": pointed}
    scores = {n: Score(Statistic.mean(v, maps.image), float(np.mean(blind[n]))) for n, v in values.items()}
    columns = {"example": maps.example, "phrase": maps.phrase, "score": _peaks(maps), "correct": pointed, "iou": iou}
    return Judgement(scores, pd.DataFrame(columns))


def _peaks(maps: Heatmaps) -> np.ndarray:
    return np.maximum.reduceat(maps.value, np.cumsum(maps.counts) - maps.counts)
