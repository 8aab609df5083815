"""The study's probe of the aligner head: one linear layer on its maps, with a divergence as loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from grounding.errors import BadInput
from grounding.finetune.losses import map_divergence
from probe.lbfgs import minimise


@dataclass(frozen=True)
class HeadMaps:
    """Intermediate maps of P phrases. groups: of phrases with one number of image cells, (places int64 ``[p]``, the
    maps of ``AlignerHead.maps``, the last with a channel of its own: ``[p, cells, 4, 4, 4, 1]``)."""

    groups: list[tuple[np.ndarray, tuple[Tensor, Tensor, Tensor]]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, chosen: np.ndarray) -> HeadMaps:
        """The phrases of a mask ``[P]``, in order."""
        place = np.cumsum(chosen) - 1
        kept = []
        for rows, maps in self.groups:
            mask = chosen[rows]
            if mask.any():
                kept.append((place[rows[mask]], tuple(m[torch.from_numpy(mask)] for m in maps)))
        return HeadMaps(kept, int(chosen.sum()))  # type: ignore[arg-type]


class MapProbe(BaseEstimator):
    """Heatmap of a phrase: softmax over all cells of w' [first; second; third map], the coarser two repeated to the
    size of the third. Minimises the mean divergence from the phrase's target map + strength / 2 x the squared w, of
    maps in units of their deviation. Nothing is random.

    After Kojima et al. (arXiv 2309.02691), who probe the maps of the head in this way. Learned: ``coef_`` ``[C]``,
    ``scale_`` ``[C]``, ``loss_``.
    """

    def __init__(self, strength: float = 0.01, max_iter: int = 200, tol: float = 1e-4):
        self.strength = strength
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: HeadMaps, y: list[Tensor]) -> Self:
        """Learn from maps and, for each phrase, its target over the cells ``[cells * 64]`` (sum one)."""
        if not self.strength > 0:
            raise BadInput(f"strength {self.strength} is out of range; accepted: more than 0")
        scale = _deviations(X)
        targets = [torch.stack([y[row] for row in rows]) for rows, _ in X.groups]

        def objective(points: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
            point = points.detach()[0].requires_grad_()
            losses = [self._divergence(point / scale, m, t) for (_, m), t in zip(X.groups, targets, strict=True)]
            loss = torch.cat(losses).mean() + self.strength / 2 * (point**2).sum()
            (gradient,) = torch.autograd.grad(loss, point)
            return loss.detach()[None], gradient[None]

        found = minimise(objective, torch.zeros(1, len(scale)), self.max_iter, self.tol)
        self.scale_ = scale.numpy()
        self.coef_, self.loss_ = found.point[0].numpy(), float(found.loss[0])
        return self

    def log_maps(self, X: HeadMaps) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Log probabilities over the cells, ``[p, cells * 64]``, of each group of phrases (their places)."""
        check_is_fitted(self)
        weights = torch.from_numpy(self.coef_ / self.scale_)
        for rows, maps in X.groups:
            yield rows, _logits(weights, maps).log_softmax(1)

    def log_loss(self, X: HeadMaps, y: list[Tensor]) -> float:
        """Mean divergence of the maps from the targets, in nats."""
        losses = [
            map_divergence(torch.stack([y[row] for row in rows])[:, None], found[:, None])
            for rows, found in self.log_maps(X)
        ]
        return float(torch.cat(losses).mean())

    @staticmethod
    def _divergence(weights: Tensor, maps: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        return map_divergence(target[:, None], _logits(weights, maps).log_softmax(1)[:, None])


def _logits(weights: Tensor, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``[p, cells * 64]``: a linear layer and repeating commute, so the coarse maps are never written out large."""
    first, second, third = (m @ w for m, w in zip(maps, weights.split([m.shape[-1] for m in maps]), strict=True))
    return (first[..., None, None] + second[..., None] + third).flatten(1)


def _deviations(X: HeadMaps) -> Tensor:
    """Deviation of each channel over all phrases and cells, 1 where it is constant: ``[C]``."""
    found = []
    for number in range(3):
        rows = [maps[number].flatten(0, -2) for _, maps in X.groups]
        count = sum(len(r) for r in rows)
        mean = torch.stack([r.sum(0, dtype=torch.float64) for r in rows]).sum(0) / count
        squares = torch.stack([((r - mean) ** 2).sum(0, dtype=torch.float64) for r in rows]).sum(0)
        deviation = (squares / count).sqrt()
        found.append(torch.where(deviation > 1e-6, deviation, 1.0))
    return torch.cat(found).float()
