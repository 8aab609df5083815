"""J perceptrons over pairs of phrase and region rows, trained side by side as one batched problem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from probe.estimators.base import Batch, Grid
from probe.estimators.site_rows import SiteRows
from probe.estimators.training import Networks


@dataclass(frozen=True)
class Rows:
    """What the networks read: phrase ``[J, P, Dp]``, region ``[J, R, Dr]``, and the factors of their product,
    left ``[J, P, N]`` and right ``[J, R, N]``; a mini-batch is of ``batch_blocks`` blocks of pairs."""

    phrase: SiteRows
    region: SiteRows
    left: SiteRows
    right: SiteRows
    grid: Grid
    batch_blocks: int

    @classmethod
    def of(cls, batch: Batch, axes: tuple[Tensor, Tensor] | None, batch_blocks: int) -> Rows:
        """The rows of a batch; the factors are their coordinates on ``axes``, or the rows themselves."""
        left, right = batch.phrase, batch.region
        if axes is not None:
            left, right = left.along(axes[0]), right.along(axes[1])
        return cls(batch.phrase, batch.region, left, right, batch.grid, batch_blocks)

    @property
    def total(self) -> float:
        """Pairs."""
        return float(self.grid.count.sum())

    def batches(self, generator: torch.Generator | None = None) -> Iterator[tuple[tuple[Rows, Tensor], float]]:
        """Numbers of blocks, and their pairs; in an order drawn, which is the same for every job, or as they come."""
        count = len(self.grid.phrases)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for blocks in order.to(self.grid.count.device).split(self.batch_blocks):
            yield (self, blocks), float(self.grid.count[blocks].sum())

    def of_groups(self, chosen: Tensor) -> Rows:
        """Those of some jobs (a mask)."""
        phrase, region, left, right = (
            part.of_jobs(chosen) for part in (self.phrase, self.region, self.left, self.right)
        )
        return Rows(phrase, region, left, right, self.grid, self.batch_blocks)


class Perceptrons(Networks):
    """Weights ``[J, inputs, units]`` and biases ``[J, 1, units]`` a layer, ReLU between them.

    All J start from the same draw, so that a network does not depend on what it is trained beside.
    """

    def __init__(self, hidden: tuple[int, ...], rows: Rows, generator: torch.Generator):
        jobs = rows.phrase.jobs
        self.inputs = [values.width for values in (rows.phrase, rows.region, rows.left)]
        device = rows.grid.count.device
        sizes = [(sum(self.inputs), hidden[0]), *zip(hidden, (*hidden[1:], 1), strict=True)]

        def draw(rows: int, columns: int, bound: float) -> Tensor:
            values = (2 * torch.rand(rows, columns, generator=generator) - 1) * bound
            return values.to(device).expand(jobs, rows, columns).clone().requires_grad_()

        # Uniform with the variance of He et al. 2015, equation 10; the last layer has no ReLU behind it.
        self.weights = [draw(rows, columns, math.sqrt(6 / rows)) for rows, columns in sizes[:-1]]
        self.weights.append(draw(*sizes[-1], math.sqrt(1 / sizes[-1][0])))
        self.biases = [torch.zeros(jobs, 1, columns, device=device, requires_grad=True) for _, columns in sizes]

    def losses(self, batch: tuple[Rows, Tensor]) -> Tensor:
        """Summed log loss over some blocks of pairs, ``[J]``."""
        rows, blocks = batch
        grid = rows.grid
        scores = self.scores(rows, grid.phrases[blocks], grid.regions[blocks])
        return (grid.count[blocks] * F.softplus(scores) - grid.positive[blocks] * scores).sum((1, 2, 3))

    def scores(self, rows: Rows, phrases: Tensor, regions: Tensor) -> Tensor:
        """Log odds ``[J, e, m, k]`` of phrases ``[e, m]`` with regions ``[e, k]``."""
        jobs, (blocks, m), k = rows.phrase.jobs, phrases.shape, regions.shape[1]
        from_phrase, from_region, from_product = self.weights[0].split(self.inputs, 1)
        left = rows.left.take(phrases.ravel()).view(jobs, blocks, m, -1)
        right = rows.right.take(regions.ravel()).view(jobs, blocks, k, -1)
        product = left[:, :, :, None] * right[:, :, None]  # [J, e, m, k, N]
        state = (product.view(jobs, -1, product.shape[4]) @ from_product).view(jobs, blocks, m, k, -1)
        # The parts of the first layer that read one row alone are computed once a row, not once a pair.
        phrase = rows.phrase.take(phrases.ravel()) @ from_phrase + self.biases[0]
        region = rows.region.take(regions.ravel()) @ from_region
        state = state + phrase.view(jobs, blocks, m, 1, -1) + region.view(jobs, blocks, 1, k, -1)
        state = state.view(jobs, blocks * m * k, -1)
        for weights, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            state = torch.baddbmm(bias, F.relu(state), weights)
        return state.view(jobs, blocks, m, k)
