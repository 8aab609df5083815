"""The MLP probe on [p; r; p * r]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grounding.errors import BadInput
from probe.estimators.base import ArrayOrPairs, Batch, Grid, PairProbe
from probe.estimators.spectral import cross_moment_axes

_CHUNK = 16_384  # pairs scored at once


class MLPProbe(PairProbe):
    """A multilayer perceptron with ReLU on [p; r; p * r], trained by AdamW on mini-batches of blocks.

    An elementwise product means nothing unless coordinate i of a phrase goes with coordinate i of a region, which
    holds in a shared residual stream at best. So the product is taken along the singular axes of the labels' cross
    moment on the training pairs (``cross_moment_axes``), to which widths and rotations are indifferent;
    ``aligned=False`` multiplies the rows as they are, which must then be equally wide.

    hidden: units of each hidden layer. strength: decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).
    With a validation split (``fit_together``) the epoch of the lowest validation loss is kept, and training ends
    ``patience`` epochs after no site improves; without, all ``max_epochs`` are used.

    Learned besides: ``coefs_`` and ``intercepts_`` a layer as in scikit-learn's MLPClassifier, for rows
    [p; r; p * r]; ``phrase_axes_`` ``[Dp, N]`` and ``region_axes_`` ``[Dr, N]`` or None; ``n_iter_``, the epoch kept.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (32,),
        strength: float = 0.01,
        learning_rate: float = 3e-3,
        batch_blocks: int = 16,
        max_epochs: int = 40,
        patience: int = 4,
        aligned: bool = True,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.hidden = hidden
        self.strength = strength
        self.learning_rate = learning_rate
        self.batch_blocks = batch_blocks
        self.max_epochs = max_epochs
        self.patience = patience
        self.aligned = aligned
        self.seed = seed
        self.device = device

    def decision_function(self, X: ArrayOrPairs) -> np.ndarray:
        """Log odds of each pair, float32 ``[n]``."""
        pairs = self._standardised(X)
        scores = np.empty(len(pairs), dtype=np.float32)
        phrase, region = pairs.phrase, pairs.region
        left, right = phrase, region
        if self.phrase_axes_ is not None:
            left, right = phrase @ self.phrase_axes_, region @ self.region_axes_
        from_phrase, from_region, from_product = np.split(
            self.coefs_[0], [phrase.shape[1], phrase.shape[1] + region.shape[1]]
        )
        phrase_part, region_part = phrase @ from_phrase, region @ from_region + self.intercepts_[0]
        for begin in range(0, len(pairs), _CHUNK):
            chosen = slice(begin, begin + _CHUNK)
            p, r = pairs.phrase_row[chosen], pairs.region_row[chosen]
            state = phrase_part[p] + region_part[r] + (left[p] * right[r]) @ from_product
            for weights, bias in zip(self.coefs_[1:], self.intercepts_[1:], strict=True):
                state = np.maximum(state, 0) @ weights + bias
            scores[chosen] = state[:, 0]
        return scores

    def _learn(self, probes: Sequence[Self], batch: Batch, held_out: Batch | None) -> None:
        self._check(batch)
        axes = None
        if self.aligned:
            left, _, right = cross_moment_axes(batch)
            axes = left, right
        rows = _Rows.of(batch, axes)
        validation = None if held_out is None else _Rows.of(held_out, axes)
        generator = torch.Generator().manual_seed(self.seed)
        network = _Network(self.hidden, rows, generator)
        optimiser = torch.optim.Adam(network.parameters, lr=self.learning_rate)
        decay = torch.tensor([p.strength for p in probes], dtype=torch.float32, device=batch.target.device)
        keep = _Best(network, len(probes))
        for _ in range(self.max_epochs):
            order = torch.randperm(len(rows.grid.phrases), generator=generator).to(batch.target.device)
            loss = self._epoch(network, optimiser, rows, order, decay)
            if validation is None:
                keep.note(loss, always=True)
            elif keep.note(network.mean_loss(validation), always=False) >= self.patience:
                break
        keep.give_to(probes)
        for job, probe in enumerate(probes):
            probe.phrase_axes_ = None if axes is None else axes[0][job].cpu().numpy()
            probe.region_axes_ = None if axes is None else axes[1][job].cpu().numpy()

    def _epoch(
        self, network: _Network, optimiser: torch.optim.Optimizer, rows: _Rows, order: Tensor, decay: Tensor
    ) -> Tensor:
        """One pass over the blocks in that order; mean training loss ``[J]``."""
        pairs = rows.grid.count.sum()
        total = torch.zeros(len(decay), device=decay.device)
        for blocks in order.split(self.batch_blocks):
            optimiser.zero_grad(set_to_none=True)
            loss = network.loss(rows, blocks)
            (loss.sum() * len(order) / (pairs * len(blocks))).backward()
            optimiser.step()
            with torch.no_grad():
                for weights in network.weights:
                    weights *= 1 - self.learning_rate * decay.view(-1, 1, 1)
            total += loss.detach()
        return total / pairs

    def _check(self, batch: Batch) -> None:
        if not self.hidden or any(units < 1 for units in self.hidden):
            raise BadInput(f"hidden {self.hidden} is not a list of layers; accepted: one or more, each 1 or more")
        for name, least in (("batch_blocks", 1), ("max_epochs", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} {getattr(self, name)} is too small; accepted: {least} or more")
        if not self.learning_rate > 0:
            raise BadInput(f"learning_rate {self.learning_rate} is out of range; accepted: more than 0")
        if not self.aligned and batch.phrase.shape[2] != batch.region.shape[2]:
            widths = batch.phrase.shape[2], batch.region.shape[2]
            raise BadInput(f"aligned False cannot multiply rows of widths {widths}; accepted: equal ones, or True")


@dataclass(frozen=True)
class _Rows:
    """What the network reads: phrase ``[J, P, Dp]``, region ``[J, R, Dr]``, and the factors of their product
    ``[J, P, N]`` and ``[J, R, N]``."""

    phrase: Tensor
    region: Tensor
    left: Tensor
    right: Tensor
    grid: Grid

    @classmethod
    def of(cls, batch: Batch, axes: tuple[Tensor, Tensor] | None) -> _Rows:
        """The rows of a batch, with the factors along ``axes`` where there are any."""
        left, right = (batch.phrase, batch.region) if axes is None else (batch.phrase @ axes[0], batch.region @ axes[1])
        return cls(batch.phrase, batch.region, left, right, batch.grid)


class _Network:
    """J perceptrons side by side: weights ``[J, inputs, units]`` and biases ``[J, 1, units]`` a layer.

    All J start from the same draw, so that a probe does not depend on what it is trained beside.
    """

    def __init__(self, hidden: tuple[int, ...], rows: _Rows, generator: torch.Generator):
        jobs = len(rows.phrase)
        self.inputs = [values.shape[2] for values in (rows.phrase, rows.region, rows.left)]
        device = rows.phrase.device
        sizes = [(sum(self.inputs), hidden[0]), *zip(hidden, (*hidden[1:], 1), strict=True)]

        def draw(rows: int, columns: int, bound: float) -> Tensor:
            values = (2 * torch.rand(rows, columns, generator=generator) - 1) * bound
            return values.to(device).expand(jobs, rows, columns).clone().requires_grad_()

        # The bound is that of MLPClassifier and torch: He et al. 2015, equation 10, for a uniform draw.
        self.weights = [draw(rows, columns, math.sqrt(6 / rows)) for rows, columns in sizes[:-1]]
        self.weights.append(draw(*sizes[-1], math.sqrt(1 / sizes[-1][0])))
        self.biases = [torch.zeros(jobs, 1, columns, device=device, requires_grad=True) for _, columns in sizes]
        self.parameters = [*self.weights, *self.biases]

    def loss(self, rows: _Rows, blocks: Tensor) -> Tensor:
        """Summed log loss over some blocks of pairs, ``[J]``."""
        grid = rows.grid
        scores = self.scores(rows, grid.phrases[blocks], grid.regions[blocks])
        losses = grid.count[blocks] * F.softplus(scores) - grid.positive[blocks] * scores
        return losses.sum((1, 2, 3))

    def scores(self, rows: _Rows, phrases: Tensor, regions: Tensor) -> Tensor:
        """Log odds ``[J, e, m, k]`` of phrases ``[e, m]`` with regions ``[e, k]``."""
        jobs, (blocks, m), k = len(rows.phrase), phrases.shape, regions.shape[1]
        from_phrase, from_region, from_product = self.weights[0].split(self.inputs, 1)
        left, right = rows.left[:, phrases], rows.right[:, regions]  # [J, e, m, N], [J, e, k, N]
        product = left[:, :, :, None] * right[:, :, None]  # [J, e, m, k, N]
        state = (product.view(jobs, -1, product.shape[4]) @ from_product).view(jobs, blocks, m, k, -1)
        phrase = rows.phrase[:, phrases.ravel()] @ from_phrase + self.biases[0]
        region = rows.region[:, regions.ravel()] @ from_region
        state = state + phrase.view(jobs, blocks, m, 1, -1) + region.view(jobs, blocks, 1, k, -1)
        state = state.view(jobs, blocks * m * k, -1)
        for weights, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            state = torch.baddbmm(bias, F.relu(state), weights)
        return state.view(jobs, blocks, m, k)

    @torch.no_grad()
    def mean_loss(self, rows: _Rows) -> Tensor:
        """Mean log loss over all pairs, ``[J]``."""
        grid = rows.grid
        numbers = torch.arange(len(grid.phrases), device=grid.phrases.device)
        return torch.stack([self.loss(rows, part) for part in numbers.split(128)]).sum(0) / grid.count.sum()


class _Best:
    """The parameters of each job at its lowest loss so far."""

    def __init__(self, network: _Network, jobs: int):
        self.network = network
        self.kept = [values.detach().clone() for values in network.parameters]
        self.loss = torch.full((jobs,), math.inf, device=self.kept[0].device)
        self.epoch = torch.zeros(jobs, dtype=torch.int64, device=self.kept[0].device)
        self.seen = 0

    def note(self, loss: Tensor, always: bool) -> int:
        """Keep the parameters of the jobs that improved (or of all); epochs since any job improved."""
        self.seen += 1
        better = torch.ones_like(loss, dtype=torch.bool) if always else loss < self.loss
        for kept, values in zip(self.kept, self.network.parameters, strict=True):
            kept[better] = values.detach()[better]
        self.loss = torch.where(better, loss, self.loss)
        self.epoch = torch.where(better, self.seen, self.epoch)
        return self.seen - int(self.epoch.max())

    def give_to(self, probes: Sequence[MLPProbe]) -> None:
        """Set what each probe learned."""
        layers = len(self.network.biases)
        arrays = [values.cpu().numpy() for values in self.kept]
        for job, probe in enumerate(probes):
            probe.coefs_ = [weights[job] for weights in arrays[:layers]]
            probe.intercepts_ = [bias[job, 0] for bias in arrays[-layers:]]
            probe.loss_, probe.n_iter_ = float(self.loss[job]), int(self.epoch[job])
