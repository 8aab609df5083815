"""Probes that are linear in something, with logistic loss: the bilinear form, and the concatenation as a control.

They minimise mean log loss + strength / 2 x the squared weights (the intercept is free), that is scikit-learn's
``LogisticRegression`` with C = 1 / (strength x n).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grounding.errors import BadInput
from probe.estimators.base import ArrayOrPairs, Batch, PairProbe
from probe.estimators.spectral import cross_moment_axes
from probe.lbfgs import minimise

_CHUNK = 65_536  # pairs scored at once


class _LogisticProbe(PairProbe):
    """Fitting by batched L-BFGS; a subclass says how its flat weights ``[J, q + 1]`` score pairs.

    Learned besides: ``weights_`` float32 ``[q + 1]`` (the intercept last), ``n_iter_``.
    """

    max_iter: int
    tol: float
    warm_start: bool

    @abstractmethod
    def _start(self, batch: Batch) -> Tensor:
        """Weights to begin from, ``[J, q]``."""

    def _squared_norm(self, weights: Tensor, batch: Batch) -> Tensor:
        """What the strength multiplies, of weights ``[A, q]``: ``[A]``."""
        return (weights**2).sum(1)

    @abstractmethod
    def _scorer(self, batch: Batch) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
        """Scores of weights ``[A, q]`` for problems ``[A]`` as ``[A, cells]``; count and positives ``[cells]``."""

    def _learn(self, probes: Sequence[Self], batch: Batch, held_out: Batch | None) -> None:
        _check_positive(strength=[probe.strength for probe in probes], tol=[self.tol])
        strength = torch.tensor([p.strength for p in probes], dtype=torch.float32, device=batch.target.device)
        score, count, positive = self._scorer(batch)
        total = count.sum()

        def objective(point: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
            point = point.detach().requires_grad_()
            scores = score(point[:, :-1], problems) + point[:, -1:]
            losses = (count * F.softplus(scores) - positive * scores).sum(1) / total
            losses = losses + strength[problems] / 2 * self._squared_norm(point[:, :-1], batch)
            (gradient,) = torch.autograd.grad(losses.sum(), point)
            return losses.detach(), gradient

        start = self._begin(probes, batch)
        found = minimise(objective, start, self.max_iter, self.tol)
        for probe, point, loss, steps in zip(probes, found.point, found.loss, found.iterations, strict=True):
            probe.weights_ = point.cpu().numpy()
            probe.loss_, probe.n_iter_ = float(loss), int(steps)

    def _begin(self, probes: Sequence[Self], batch: Batch) -> Tensor:
        """Where each probe starts ``[J, q + 1]``: what it learned before (warm start), or fresh with the log odds."""
        fresh = self._start(batch)
        log_odds = torch.logit(batch.target.mean()).expand(len(probes), 1)
        start = torch.cat([fresh, log_odds], 1)
        for job, probe in enumerate(probes):
            learned = getattr(probe, "weights_", None)
            if self.warm_start and learned is not None and len(learned) == start.shape[1]:
                start[job] = torch.from_numpy(learned)
        return start

    @property
    def intercept_(self) -> float:
        """Log odds of a pair whose other terms are zero."""
        return float(self.weights_[-1])


class BilinearProbe(_LogisticProbe):
    """Linear in phrase (x) region: log odds = p' W r + b, the linear alignment probe.

    rank: None learns W in full (a convex problem); a number learns W = U V' with that many columns, from a
    spectral start. strength: L2 penalty on W, in the same unit for any rank. max_iter, tol: of ``lbfgs.minimise``.
    warm_start: begin from the weights of the last fit. Nothing is random. Learned: ``coef_`` W ``[Dp, Dr]``.
    """

    def __init__(
        self,
        rank: int | None = None,
        strength: float = 0.01,
        max_iter: int = 200,
        tol: float = 1e-5,
        warm_start: bool = False,
        device: str = "cpu",
    ):
        self.rank = rank
        self.strength = strength
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # on scikit-learn's blobs, which have no interaction to find
        return tags

    @property
    def coef_(self) -> np.ndarray:
        """W, float32 ``[Dp, Dr]``, for standardised phrase and region rows."""
        wide, tall = len(self.phrase_mean_), len(self.region_mean_)
        weights = self.weights_[:-1]
        if self.rank is None:
            return weights.reshape(wide, tall)
        left, right = self._factors(torch.from_numpy(weights)[None], wide, tall)
        return (left[0] @ right[0].mT).numpy()

    def decision_function(self, X: ArrayOrPairs) -> np.ndarray:
        """p' W r + b for each pair, float64 ``[n]``."""
        pairs = self._standardised(X)
        projected = pairs.phrase @ self.coef_  # [P, Dr]
        scores = np.empty(len(pairs))
        for begin in range(0, len(pairs), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            rows = projected[pairs.phrase_row[part]], pairs.region[pairs.region_row[part]]
            scores[part] = np.einsum("nd,nd->n", *rows)
        return scores + self.intercept_

    def _start(self, batch: Batch) -> Tensor:
        jobs, _, wide = batch.phrase.shape
        tall = batch.region.shape[2]
        if self.rank is None:
            return batch.target.new_zeros(jobs, wide * tall)
        if not 1 <= self.rank <= min(wide, tall):
            raise BadInput(f"rank {self.rank} is out of range; accepted: 1 to {min(wide, tall)}, or None")
        # U = V = 0 is a saddle: begin along the main axes of the steepest way down from W = 0.
        left, sizes, right = cross_moment_axes(batch)
        root = sizes[:, None, : self.rank].sqrt()
        factors = left[:, :, : self.rank] * root, right[:, :, : self.rank] * root
        return torch.cat([factor.reshape(jobs, -1) for factor in factors], 1)

    def _squared_norm(self, weights: Tensor, batch: Batch) -> Tensor:
        """The squared Frobenius norm of W, also when it is given as U V'."""
        if self.rank is None:
            return super()._squared_norm(weights, batch)
        left, right = self._factors(weights, batch.phrase.shape[2], batch.region.shape[2])
        return ((left.mT @ left) * (right.mT @ right)).sum((1, 2))

    def _factors(self, weights: Tensor, wide: int, tall: int) -> tuple[Tensor, Tensor]:
        """U ``[A, Dp, rank]`` and V ``[A, Dr, rank]`` of flat weights."""
        left, right = weights.tensor_split([wide * weights.shape[1] // (wide + tall)], 1)
        return left.reshape(len(weights), wide, -1), right.reshape(len(weights), tall, -1)

    def _scorer(self, batch: Batch) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
        grid = batch.grid
        blocks, phrases = grid.phrases.shape
        wide, tall = batch.phrase.shape[2], batch.region.shape[2]
        phrase_rows = _for_problems(batch.phrase[:, grid.phrases.ravel()])  # [J, E m, Dp]
        region_rows = _for_problems(batch.region[:, grid.regions.ravel()])  # [J, E k, Dr]

        def score(weights: Tensor, problems: Tensor) -> Tensor:
            left, right = phrase_rows(problems), region_rows(problems)
            if self.rank is None:
                left = left @ weights.view(-1, wide, tall)
            else:
                first, second = self._factors(weights, wide, tall)
                left, right = left @ first, right @ second
            left = left.reshape(len(weights) * blocks, phrases, -1)
            right = right.reshape(len(weights) * blocks, grid.regions.shape[1], -1)
            return torch.bmm(left, right.mT).view(len(weights), -1)

        return score, grid.count.ravel(), grid.positive.ravel()


class ConcatenationProbe(_LogisticProbe):
    """Logistic regression on [p; r]: a control. The phrase's term is the same for all of its candidates, so this
    can prefer some regions to others (those that look annotated), but never one phrase's to another's.

    reads: which parts it sees. strength, max_iter, tol, warm_start, device: as for BilinearProbe.
    """

    reads: tuple[str, ...] = ("phrase", "region")

    def __init__(
        self,
        strength: float = 0.01,
        max_iter: int = 200,
        tol: float = 1e-5,
        warm_start: bool = False,
        device: str = "cpu",
    ):
        self.strength = strength
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.device = device

    @property
    def coef_(self) -> np.ndarray:
        """Weights of what is read, float32 ``[Dp + Dr]`` (or one of them), for standardised rows."""
        return self.weights_[:-1]

    def decision_function(self, X: ArrayOrPairs) -> np.ndarray:
        """w' [p; r] + b for each pair, float64 ``[n]``."""
        pairs = self._standardised(X)
        scores = np.full(len(pairs), self.intercept_, dtype=np.float64)
        begin = 0
        for part in self.reads:
            rows: np.ndarray = getattr(pairs, part)
            weights = self.coef_[begin : begin + rows.shape[1]]
            scores += (rows @ weights)[getattr(pairs, f"{part}_row")]
            begin += rows.shape[1]
        return scores

    def _start(self, batch: Batch) -> Tensor:
        width = sum(getattr(batch, part).shape[2] for part in self.reads)
        return batch.target.new_zeros(len(batch.phrase), width)

    def _scorer(self, batch: Batch) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
        parts = [(_for_problems(getattr(batch, part)), getattr(batch, f"{part}_row")) for part in self.reads]
        widths = [getattr(batch, part).shape[2] for part in self.reads]

        def score(weights: Tensor, problems: Tensor) -> Tensor:
            terms = [
                (rows(problems) @ share[:, :, None])[:, :, 0].index_select(1, places)
                for (rows, places), share in zip(parts, weights.split(widths, 1), strict=True)
            ]
            return torch.stack(terms).sum(0)

        return score, torch.ones_like(batch.target), batch.target


class PhraseOnlyProbe(ConcatenationProbe):
    """Logistic regression on the phrase alone: a control that cannot choose between regions at all."""

    reads = ("phrase",)


class RegionOnlyProbe(ConcatenationProbe):
    """Logistic regression on the region alone: a control that finds regions that belong to anything."""

    reads = ("region",)


def _for_problems(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Rows ``[J, ...]`` of the asked problems; the last answer is kept, for problems finish rarely."""
    last: list[tuple[Tensor, Tensor]] = [(torch.arange(len(rows), device=rows.device), rows)]

    def select(problems: Tensor) -> Tensor:
        if len(problems) == len(rows):
            return rows
        if not torch.equal(last[0][0], problems):
            last[0] = (problems, rows[problems])
        return last[0][1]

    return select


def _check_positive(**values: Any) -> None:
    for name, numbers in values.items():
        for number in numbers:
            if not number > 0:
                raise BadInput(f"{name} {number} is out of range; accepted: more than 0")
