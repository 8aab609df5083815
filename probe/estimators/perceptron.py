"""J perceptrons over pairs of phrase and region rows, trained side by side as one batched problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from probe.estimators.base import Batch, Grid
from probe.estimators.site_rows import SiteRows

TOLERANCE = 1e-4  # nats; a smaller gain does not count as an improvement (as in MLPClassifier)


@dataclass(frozen=True)
class Rows:
    """What the networks read: phrase ``[J, P, Dp]``, region ``[J, R, Dr]``, and the factors of their product,
    left ``[J, P, N]`` and right ``[J, R, N]``."""

    phrase: SiteRows
    region: SiteRows
    left: SiteRows
    right: SiteRows
    grid: Grid

    @classmethod
    def of(cls, batch: Batch, axes: tuple[Tensor, Tensor] | None) -> Rows:
        """The rows of a batch; the factors are their coordinates on ``axes``, or the rows themselves."""
        left, right = batch.phrase, batch.region
        if axes is not None:
            left, right = left.along(axes[0]), right.along(axes[1])
        return cls(batch.phrase, batch.region, left, right, batch.grid)

    def take(self, jobs: Tensor) -> Rows:
        """Those of some jobs (a mask)."""
        phrase, region, left, right = (part.of_jobs(jobs) for part in (self.phrase, self.region, self.left, self.right))
        return Rows(phrase, region, left, right, self.grid)


class Perceptrons:
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

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    def take(self, jobs: Tensor) -> None:
        """Go on with some jobs only (a mask)."""
        self.weights = [values.detach()[jobs].requires_grad_() for values in self.weights]
        self.biases = [values.detach()[jobs].requires_grad_() for values in self.biases]

    def loss(self, rows: Rows, blocks: Tensor) -> Tensor:
        """Summed log loss over some blocks of pairs, ``[J]``."""
        grid = rows.grid
        scores = self.scores(rows, grid.phrases[blocks], grid.regions[blocks])
        losses = grid.count[blocks] * F.softplus(scores) - grid.positive[blocks] * scores
        return losses.sum((1, 2, 3))

    @torch.no_grad()
    def mean_loss(self, rows: Rows, batch_blocks: int) -> Tensor:
        """Mean log loss over all pairs, ``[J]``."""
        numbers = torch.arange(len(rows.grid.phrases), device=rows.grid.count.device)
        losses = [self.loss(rows, blocks) for blocks in numbers.split(batch_blocks)]
        return torch.stack(losses).sum(0) / rows.grid.count.sum()

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


class AdamW:
    """Adam (Kingma and Ba 2015, algorithm 1) with a decay ``[J]`` of the weights of each job (Loshchilov and Hutter
    2019, algorithm 2); torch's own takes one decay for all and cannot let jobs go."""

    def __init__(self, network: Perceptrons, learning_rate: float, decay: Tensor):
        self.network, self.learning_rate, self.decay = network, learning_rate, decay
        self.first = [torch.zeros_like(values) for values in network.parameters]
        self.second = [torch.zeros_like(values) for values in network.parameters]
        self.steps = 0

    def take(self, jobs: Tensor) -> None:
        """Go on with some jobs only (a mask)."""
        self.decay = self.decay[jobs]
        self.first, self.second = [m[jobs] for m in self.first], [v[jobs] for v in self.second]

    def step(self, loss: Tensor) -> None:
        """Descend the sum of the losses ``[J]``; each depends on its own job's parameters alone."""
        gradients = torch.autograd.grad(loss.sum(), self.network.parameters)
        self.steps += 1
        # Both bias corrections, folded into the step length.
        length = self.learning_rate * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        with torch.no_grad():
            for weights in self.network.weights:
                weights *= 1 - self.learning_rate * self.decay.view(-1, 1, 1)
            moments = zip(self.network.parameters, gradients, self.first, self.second, strict=True)
            for values, gradient, first, second in moments:
                first.lerp_(gradient, 0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                values.addcdiv_(first, second.sqrt().add_(1e-8), value=-length)


@dataclass(frozen=True)
class Kept:
    """The best parameters of each job: weights and biases as in Perceptrons, loss ``[J]``, epoch int64 ``[J]``."""

    weights: list[Tensor]
    biases: list[Tensor]
    loss: Tensor
    epoch: Tensor


def train(
    network: Perceptrons,
    optimiser: AdamW,
    rows: Rows,
    validation: Rows | None,
    generator: torch.Generator,
    *,
    batch_blocks: int,
    max_epochs: int,
    patience: int,
) -> Kept:
    """Train on mini-batches of blocks, in an order drawn from ``generator`` and the same for every job.

    With ``validation``, each job keeps its epoch of the lowest validation loss and leaves once ``patience`` epochs
    have not lowered it by TOLERANCE; without, each keeps the last of ``max_epochs``.
    """
    device = rows.grid.count.device
    best = [values.detach().clone() for values in network.parameters]
    lowest = torch.full((rows.phrase.jobs,), math.inf, device=device)
    epoch_of_best = torch.zeros(rows.phrase.jobs, dtype=torch.int64, device=device)
    jobs = torch.arange(rows.phrase.jobs, device=device)
    goal, waited = lowest.clone(), torch.zeros_like(jobs)
    for epoch in range(1, max_epochs + 1):
        order = torch.randperm(len(rows.grid.phrases), generator=generator).to(device)
        loss = _epoch(network, optimiser, rows, order.split(batch_blocks))
        if validation is not None:
            loss = network.mean_loss(validation, batch_blocks)
        better = loss < lowest[jobs] if validation is not None else torch.ones_like(loss, dtype=torch.bool)
        for kept, values in zip(best, network.parameters, strict=True):
            kept[jobs[better]] = values.detach()[better]
        lowest[jobs[better]], epoch_of_best[jobs[better]] = loss[better], epoch
        if validation is None:
            continue
        waited = torch.where(loss < goal - TOLERANCE, 0, waited + 1)
        goal = torch.where(waited == 0, loss, goal)
        going = waited < patience
        if not going.any():
            break
        if not going.all():
            jobs, goal, waited = jobs[going], goal[going], waited[going]
            rows, validation = rows.take(going), validation.take(going)
            network.take(going)
            optimiser.take(going)
    layers = len(network.weights)
    return Kept(best[:layers], best[layers:], lowest, epoch_of_best)


def _epoch(network: Perceptrons, optimiser: AdamW, rows: Rows, batches: tuple[Tensor, ...]) -> Tensor:
    """One pass over the blocks; mean loss over their pairs, ``[J]``."""
    losses = []
    for blocks in batches:
        loss = network.loss(rows, blocks)
        optimiser.step(loss / rows.grid.count[blocks].sum())
        losses.append(loss.detach())
    return torch.stack(losses).sum(0) / rows.grid.count.sum()
