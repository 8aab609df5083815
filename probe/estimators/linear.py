"""Probes that are linear in one vector: logistic regression of two classes or more, and ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from grounding.errors import BadInput
from probe.estimators.blocks import ArrayOrRows, cross_moment, gram, row_chunks
from probe.estimators.softmax import KroneckerInverse, SoftmaxObjective, class_frequency
from probe.estimators.vectors import Grid, VectorClassifier, VectorProbe, VectorRegressor
from probe.lbfgs import minimise


class _Linear(VectorProbe):
    """Learned: ``coef_`` float32 ``[K, D]`` for standardised rows, ``intercept_`` ``[K]`` (K is 1 for two classes)."""

    def _raw(self, standard: np.ndarray) -> np.ndarray:
        return standard @ np.atleast_2d(self.coef_).T + self.intercept_


class LogisticProbe(VectorClassifier, _Linear):
    """Logistic regression; of three classes or more, multinomial.

    Minimises mean log loss + strength / 2 x the squared weights (the intercept is free), that is scikit-learn's
    ``LogisticRegression`` with C = 1 / (strength x n) on standardised rows, by L-BFGS. max_iter, tol: of
    ``lbfgs.minimise``. Nothing is random.
    """

    def __init__(self, strength: float = 0.01, max_iter: int = 200, tol: float = 1e-5, device: str = "cpu"):
        self.strength = strength
        self.max_iter = max_iter
        self.tol = tol
        self.device = device

    def _learn(self, probes: Sequence[Self], grid: Grid) -> None:
        for name in ("tol", "max_iter"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name} {getattr(self, name)} is out of range; accepted: more than 0")
        columns = len(self.classes_) if len(self.classes_) > 2 else 1
        objective = SoftmaxObjective(grid, columns)
        start = torch.zeros(len(probes), columns, grid.mean.shape[2] + 1, device=grid.mean.device)
        frequency = class_frequency(grid, columns)
        start[:, :, -1] = (frequency.log() if columns > 1 else frequency.logit())[objective.task]
        precondition = KroneckerInverse(objective) if KroneckerInverse.worthwhile(grid) else None
        found = minimise(objective, start.flatten(1), self.max_iter, self.tol, precondition=precondition)
        points = found.point.view(start.shape).cpu().numpy()
        for probe, point, loss, steps in zip(probes, points, found.loss, found.iterations, strict=True):
            probe.coef_, probe.intercept_ = point[:, :-1], point[:, -1]
            probe.loss_, probe.n_iter_ = float(loss), int(steps)


class RidgeProbe(VectorRegressor, _Linear):
    """Least squares with a penalty.

    Minimises half the mean squared error (summed over the columns of y) + strength / 2 x the squared weights (the
    intercept is free), that is scikit-learn's ``Ridge`` with alpha = strength x n on standardised rows, in closed form.
    """

    def __init__(self, strength: float = 0.01, device: str = "cpu"):
        self.strength = strength
        self.device = device

    def _learn(self, probes: Sequence[Self], grid: Grid) -> None:
        centre = self._centre(probes, grid)
        away = grid.target - centre[:, None]
        spread = torch.einsum("tn,tnm->t", grid.weight, away**2)
        # Tasks that train on the same rows share what is made of those alone.
        same = torch.unique(grid.weight, dim=0, return_inverse=True)[1].tolist()
        remaining = iter(probes)
        for site, rows in enumerate(grid.sites):
            decomposed: dict[int, tuple[Tensor, Tensor]] = {}
            for task, group in enumerate(same):
                standardisation = grid.weight[task], grid.mean[site, task], grid.scale[site, task]
                if group not in decomposed:
                    decomposed[group] = torch.linalg.eigh(gram(rows, *standardisation, torch.float64))
                sizes, axes = decomposed[group]
                moment = cross_moment(rows, *standardisation, away[task])
                turned = axes.mT @ moment
                for strength in grid.strength:
                    weights = axes @ (turned / (sizes.clamp_min(0) + strength)[:, None])
                    probe = next(remaining)
                    coef, intercept = weights.mT.float().cpu().numpy(), centre[task].cpu().numpy()
                    probe.coef_, probe.intercept_ = (coef[0], intercept[0]) if self._single else (coef, intercept)
                    probe.loss_, probe.n_iter_ = float(spread[task] - (moment * weights).sum()) / 2, 1

    @property
    def variance_(self) -> float:
        """Mean square of the residuals in training."""
        return (2 * self.loss_ - self.strength * float((self.coef_**2).sum())) / len(self.target_mean_)


def decide_together(probes: Sequence[LogisticProbe], X: ArrayOrRows) -> list[np.ndarray]:
    """``decision_function`` of many probes of one site, which reads and multiplies its rows once for all of them.

    Raises BadInput for probes of different widths.
    """
    if len({probe.n_features_in_ for probe in probes}) != 1:
        raise BadInput("probes that decide together must have been fitted on rows of one width")
    folded = [probe.coef_.astype(np.float64) / probe.scale_ for probe in probes]
    offset = [
        probe.intercept_ - weights @ probe.mean_.astype(np.float64)
        for probe, weights in zip(probes, folded, strict=True)
    ]
    weights, level = np.concatenate(folded), np.concatenate(offset)
    scores = np.concatenate([block.astype(np.float64) @ weights.T + level for block in row_chunks(X)])
    parts = np.split(scores, np.cumsum([len(probe.coef_) for probe in probes])[:-1], axis=1)
    return [part[:, 0] if part.shape[1] == 1 else part for part in parts]
