"""Probes that are linear in something, with logistic loss: the bilinear form, and the concatenation as a control.

They minimise mean log loss + strength / 2 x the squared weights (the intercept is free), that is scikit-learn's
``LogisticRegression`` with C = 1 / (strength x n).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grounding.errors import BadInput
from probe.estimators.base import Batch, PairProbe
from probe.estimators.chunks import Chunks
from probe.estimators.spectral import cross_moment_axes
from probe.features import PairFeatures
from probe.lbfgs import minimise

_CHUNK = 65_536  # pairs scored at once


class _LogisticProbe(PairProbe):
    """Fitting by batched L-BFGS; a subclass says how its flat weights ``[J, q + 1]`` score pairs.

    Learned besides: ``weights_`` float32 ``[q + 1]`` (the intercept last), ``n_iter_``.
    """

    max_iter: int
    tol: float
    warm_start: bool

    reads: tuple[str, ...] = ("phrase", "region")

    @abstractmethod
    def _start(self, chunks: Chunks) -> Tensor:
        """Weights to begin from, ``[J, q]``."""

    def _squared_norm(self, weights: Tensor, batch: Batch) -> Tensor:
        """What the strength multiplies, of weights ``[A, q]``: ``[A]``."""
        return (weights**2).sum(1)

    @abstractmethod
    def _score(self, weights: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Scores by weights ``[A, q]`` of all pairs of phrases ``[A, e, m, Dp]`` and regions ``[A, e, k, Dr]`` of a
        block, ``[A, e, m, k]`` (1 in place of what is not read)."""

    def _learn(self, probes: Sequence[Self], batch: Batch, held_out: Batch | None) -> None:
        _check_positive(strength=[probe.strength for probe in probes], tol=[self.tol])
        strength = torch.tensor([p.strength for p in probes], dtype=torch.float32, device=batch.target.device)
        chunks = Chunks(batch, self.reads)

        def objective(point: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
            point = point.detach().requires_grad_()
            penalty = strength[problems] / 2 * self._squared_norm(point[:, :-1], batch)
            (gradient,) = torch.autograd.grad(penalty.sum(), point)
            losses = penalty.detach()
            for chunk in chunks.of(problems):
                scores = self._score(point[:, :-1], chunk.rows) + point[:, -1, None, None, None]
                cells = chunk.count * F.softplus(scores) - chunk.positive * scores
                part = cells.sum((1, 2, 3)) / len(batch.target)
                gradient += torch.autograd.grad(part.sum(), point)[0]
                losses = losses + part.detach()
            return losses, gradient

        start = self._begin(probes, chunks)
        found = minimise(objective, start, self.max_iter, self.tol)
        for probe, point, loss, steps in zip(probes, found.point, found.loss, found.iterations, strict=True):
            probe.weights_ = point.cpu().numpy()
            probe.loss_, probe.n_iter_ = float(loss), int(steps)

    def _begin(self, probes: Sequence[Self], chunks: Chunks) -> Tensor:
        """Where each probe starts ``[J, q + 1]``: what it learned before (warm start), or fresh with the log odds."""
        fresh = self._start(chunks)
        log_odds = torch.logit(chunks.batch.target.mean()).expand(len(probes), 1)
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

    def _decide(self, pairs: PairFeatures) -> np.ndarray:
        """p' W r + b for each pair."""
        projected = pairs.phrase @ self.coef_  # [P, Dr]
        scores = np.empty(len(pairs))
        for begin in range(0, len(pairs), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            rows = projected[pairs.phrase_row[part]], pairs.region[pairs.region_row[part]]
            scores[part] = np.einsum("nd,nd->n", *rows)
        return scores + self.intercept_

    def _start(self, chunks: Chunks) -> Tensor:
        batch = chunks.batch
        jobs, wide, tall = batch.phrase.jobs, batch.phrase.width, batch.region.width
        if self.rank is None:
            return batch.target.new_zeros(jobs, wide * tall)
        if not 1 <= self.rank <= min(wide, tall):
            raise BadInput(f"rank {self.rank} is out of range; accepted: 1 to {min(wide, tall)}, or None")
        # U = V = 0 is a saddle: begin along the main axes of the steepest way down from W = 0.
        left, sizes, right = cross_moment_axes(chunks)
        root = sizes[:, None, : self.rank].sqrt()
        factors = left[:, :, : self.rank] * root, right[:, :, : self.rank] * root
        return torch.cat([factor.reshape(jobs, -1) for factor in factors], 1)

    def _squared_norm(self, weights: Tensor, batch: Batch) -> Tensor:
        """The squared Frobenius norm of W, also when it is given as U V'."""
        if self.rank is None:
            return super()._squared_norm(weights, batch)
        left, right = self._factors(weights, batch.phrase.width, batch.region.width)
        return ((left.mT @ left) * (right.mT @ right)).sum((1, 2))

    def _factors(self, weights: Tensor, wide: int, tall: int) -> tuple[Tensor, Tensor]:
        """U ``[A, Dp, rank]`` and V ``[A, Dr, rank]`` of flat weights."""
        left, right = weights.tensor_split([wide * weights.shape[1] // (wide + tall)], 1)
        return left.reshape(len(weights), wide, -1), right.reshape(len(weights), tall, -1)

    def _score(self, weights: Tensor, rows: dict[str, Tensor]) -> Tensor:
        phrase, region = rows["phrase"], rows["region"]
        jobs, blocks, phrases, wide = phrase.shape
        tall = region.shape[3]
        left, right = phrase.flatten(1, 2), region.flatten(1, 2)
        if self.rank is None:
            left = left @ weights.view(-1, wide, tall)
        else:
            first, second = self._factors(weights, wide, tall)
            left, right = left @ first, right @ second
        left = left.view(jobs * blocks, phrases, -1)
        return torch.bmm(left, right.view(jobs * blocks, region.shape[2], -1).mT).view(jobs, blocks, phrases, -1)


class ConcatenationProbe(_LogisticProbe):
    """Logistic regression on [p; r]: a control. The phrase's term is the same for all of its candidates, so this
    can prefer some regions to others (those that look annotated), but never one phrase's to another's.

    strength, max_iter, tol, warm_start, device: as for BilinearProbe.
    """

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

    def _decide(self, pairs: PairFeatures) -> np.ndarray:
        """w' [p; r] + b for each pair."""
        scores = np.full(len(pairs), self.intercept_, dtype=np.float64)
        begin = 0
        for part in self.reads:
            rows: np.ndarray = getattr(pairs, part)
            weights = self.coef_[begin : begin + rows.shape[1]]
            scores += (rows @ weights)[getattr(pairs, f"{part}_row")]
            begin += rows.shape[1]
        return scores

    def _start(self, chunks: Chunks) -> Tensor:
        width = sum(getattr(chunks.batch, view).width for view in self.reads)
        return chunks.batch.target.new_zeros(chunks.batch.phrase.jobs, width)

    def _score(self, weights: Tensor, rows: dict[str, Tensor]) -> Tensor:
        shares = weights.split([rows[view].shape[3] for view in self.reads], 1)
        terms = {
            view: torch.einsum("aexd,ad->aex", rows[view], share)
            for view, share in zip(self.reads, shares, strict=True)
        }
        scores = weights.new_zeros(1)
        if "phrase" in terms:
            scores = scores + terms["phrase"][..., None]
        if "region" in terms:
            scores = scores + terms["region"][:, :, None]
        return scores


class PhraseOnlyProbe(ConcatenationProbe):
    """Logistic regression on the phrase alone: a control that cannot choose between regions at all."""

    reads = ("phrase",)


class RegionOnlyProbe(ConcatenationProbe):
    """Logistic regression on the region alone: a control that finds regions that belong to anything."""

    reads = ("region",)


def _check_positive(**values: Any) -> None:
    for name, numbers in values.items():
        for number in numbers:
            if not number > 0:
                raise BadInput(f"{name} {number} is out of range; accepted: more than 0")
