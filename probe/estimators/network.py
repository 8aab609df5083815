"""Multilayer perceptrons of one vector: G sites x S strengths side by side, on the same mini-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from probe.estimators.blocks import Blocks
from probe.estimators.training import Networks

# (outputs [G, S, K, b], targets [b] or [b, K]) -> summed losses [G, S]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Vectors:
    """The rows of one task at G sites: rows int64 ``[n]`` of the sites, their targets, and how they are standardised.

    target: ``[n]`` or ``[n, K]``. mean, scale: ``[G, D]``. batch_size: rows of a mini-batch.
    """

    sites: Sequence[Blocks]
    rows: np.ndarray
    target: Tensor
    mean: Tensor
    scale: Tensor
    batch_size: int

    @property
    def total(self) -> float:
        """Rows."""
        return len(self.rows)

    def batches(self, generator: torch.Generator | None = None) -> Iterator[tuple[tuple[Tensor, Tensor], float]]:
        """Standardised ``[G, D, b]`` with their targets, and b; in an order drawn, or as they come."""
        count = len(self.rows)
        order = np.arange(count) if generator is None else torch.randperm(count, generator=generator).numpy()
        for begin in range(0, count, self.batch_size):
            rows = self.rows[order[begin : begin + self.batch_size]]
            yield self._take(rows), len(rows)

    def of_groups(self, chosen: Tensor) -> Vectors:
        """Those of some sites (a mask)."""
        sites = [site for site, stays in zip(self.sites, chosen.tolist(), strict=True) if stays]
        return replace(self, sites=sites, mean=self.mean[chosen], scale=self.scale[chosen])

    def _take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        states = torch.stack([site.take(rows) for site in self.sites])
        states = ((states - self.mean[:, None]) / self.scale[:, None]).mT
        return states, self.target[torch.from_numpy(rows).to(self.target.device)]


class Network(Networks):
    """Weights ``[G, S, outputs, inputs]`` and biases ``[G, S, outputs, 1]`` a layer, ReLU between them.

    All G x S start from the same draw, so that a network does not depend on what it is trained beside.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        copies: tuple[int, int],
        loss: Loss,
        generator: torch.Generator,
        device: torch.device,
    ):
        self.loss = loss
        self.weights, self.biases = [], []
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            # Uniform with the variance of He et al. 2015, equation 10; the last layer has no ReLU behind it.
            bound = math.sqrt((6 if layer < len(sizes) - 2 else 1) / inputs)
            values = (2 * torch.rand(outputs, inputs, generator=generator) - 1) * bound
            self.weights.append(values.to(device).expand(*copies, outputs, inputs).clone().requires_grad_())
            self.biases.append(torch.zeros(*copies, outputs, 1, device=device, requires_grad=True))

    def losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Summed losses ``[G, S]`` of standardised rows ``[G, D, b]`` and their targets."""
        states, target = batch
        return self.loss(self.outputs(states), target)

    def outputs(self, states: Tensor) -> Tensor:
        """``[G, S, K, b]`` of standardised rows ``[G, D, b]``."""
        groups, strengths = self.weights[0].shape[:2]
        # One product with all strengths' weights: the rows are read once.
        values = torch.bmm(self.weights[0].flatten(1, 2), states).view(groups, strengths, -1, states.shape[2])
        values = values + self.biases[0]
        for weights, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            values = weights @ F.relu(values) + bias
        return values
