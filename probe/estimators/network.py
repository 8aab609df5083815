"""Multilayer perceptrons of one vector: G sites x S strengths side by side, on the same mini-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from probe.estimators.blocks import Blocks
from probe.estimators.perceptron import TOLERANCE

# (outputs [G, S, K, b], targets [b] or [b, K]) -> summed losses [G, S]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How to train; as the parameters of the estimators."""

    learning_rate: float
    batch_size: int
    max_epochs: int
    patience: int


@dataclass(frozen=True)
class Examples:
    """The rows of one task at G sites: rows int64 ``[n]`` of the sites, their targets, and how they are standardised.

    target: ``[n]`` or ``[n, K]``. mean, scale: ``[G, D]``.
    """

    sites: Sequence[Blocks]
    rows: np.ndarray
    target: Tensor
    mean: Tensor
    scale: Tensor

    def take(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Standardised ``[G, D, b]`` and targets of some of the rows."""
        rows = self.rows[chosen]
        states = torch.stack([site.take(rows) for site in self.sites])
        states = ((states - self.mean[:, None]) / self.scale[:, None]).mT
        return states, self.target[torch.from_numpy(rows).to(self.target.device)]


class Network:
    """Weights ``[G, S, outputs, inputs]`` and biases ``[G, S, outputs, 1]`` a layer, ReLU between them.

    All G x S start from the same draw, so that a network does not depend on what it is trained beside.
    """

    def __init__(self, sizes: Sequence[int], copies: tuple[int, int], generator: torch.Generator, device: torch.device):
        self.weights, self.biases = [], []
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            # Uniform with the variance of He et al. 2015, equation 10; the last layer has no ReLU behind it.
            bound = math.sqrt((6 if layer < len(sizes) - 2 else 1) / inputs)
            values = (2 * torch.rand(outputs, inputs, generator=generator) - 1) * bound
            self.weights.append(values.to(device).expand(*copies, outputs, inputs).clone().requires_grad_())
            self.biases.append(torch.zeros(*copies, outputs, 1, device=device, requires_grad=True))

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    def outputs(self, states: Tensor) -> Tensor:
        """``[G, S, K, b]`` of standardised rows ``[G, D, b]``."""
        groups, strengths = self.weights[0].shape[:2]
        # One product with all strengths' weights: the rows are read once.
        values = torch.bmm(self.weights[0].flatten(1, 2), states).view(groups, strengths, -1, states.shape[2])
        values = values + self.biases[0]
        for weights, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            values = weights @ F.relu(values) + bias
        return values


@dataclass(frozen=True)
class Kept:
    """The best parameters: weights and biases as in Network, loss ``[G, S]``, epoch int64 ``[G, S]``."""

    weights: list[Tensor]
    biases: list[Tensor]
    loss: Tensor
    epoch: Tensor


def train(
    network: Network,
    loss_of: Loss,
    examples: Examples,
    held_out: Examples | None,
    decay: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> Kept:
    """Train by AdamW (Loshchilov and Hutter 2019, algorithm 2) with a decay ``[S]`` of the weights for each strength.

    With ``held_out`` each network keeps its epoch of the lowest loss there, and training ends once none of them has
    lowered it by TOLERANCE for ``patience`` epochs of its own; without, each keeps the last of ``max_epochs``.
    """
    # torch takes one decay for all of a tensor; ours is applied before its step, as the algorithm has it.
    optimiser = torch.optim.Adam(network.parameters, lr=schedule.learning_rate, fused=True)
    shrink = 1 - schedule.learning_rate * decay.view(1, -1, 1, 1)
    best = [values.detach().clone() for values in network.parameters]
    copies = network.weights[0].shape[:2]
    lowest = torch.full(copies, math.inf, device=decay.device)
    goal, waited, epoch_of_best = lowest.clone(), torch.zeros_like(lowest), torch.zeros_like(lowest, dtype=torch.int64)
    for epoch in range(1, schedule.max_epochs + 1):
        loss = _epoch(network, loss_of, examples, optimiser, shrink, schedule, generator)
        if held_out is None:
            lowest, epoch_of_best = loss, torch.full_like(epoch_of_best, epoch)
            continue
        loss = mean_loss(network, loss_of, held_out, schedule.batch_size)
        better = (loss < lowest) & (waited < schedule.patience)
        for kept, values in zip(best, network.parameters, strict=True):
            kept[better] = values.detach()[better]
        lowest, epoch_of_best = torch.where(better, loss, lowest), torch.where(better, epoch, epoch_of_best)
        going = waited < schedule.patience
        improved = loss < goal - TOLERANCE
        goal = torch.where(improved & going, loss, goal)
        waited = torch.where(improved & going, 0, waited + 1)
        if (waited >= schedule.patience).all():
            break
    if held_out is None:
        best = [values.detach() for values in network.parameters]
    layers = len(network.weights)
    return Kept(best[:layers], best[layers:], lowest, epoch_of_best)


def _epoch(
    network: Network,
    loss_of: Loss,
    examples: Examples,
    optimiser: torch.optim.Optimizer,
    shrink: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """One pass over the rows in an order drawn from ``generator``; mean loss ``[G, S]`` on the way."""
    order = torch.randperm(len(examples.rows), generator=generator).numpy()
    total = torch.zeros(network.weights[0].shape[:2], device=shrink.device)
    for begin in range(0, len(order), schedule.batch_size):
        states, target = examples.take(order[begin : begin + schedule.batch_size])
        losses = loss_of(network.outputs(states), target)
        # Each network's loss depends on its own parameters alone, so that one sum serves all.
        gradients = torch.autograd.grad(losses.sum() / states.shape[2], network.parameters)
        for values, gradient in zip(network.parameters, gradients, strict=True):
            values.grad = gradient
        with torch.no_grad():
            for weights in network.weights:
                weights *= shrink
        optimiser.step()
        total += losses.detach()
    return total / len(order)


@torch.no_grad()
def mean_loss(network: Network, loss_of: Loss, examples: Examples, batch_size: int) -> Tensor:
    """Mean loss over all rows, ``[G, S]``."""
    total = torch.zeros(network.weights[0].shape[:2], device=examples.mean.device)
    for begin in range(0, len(examples.rows), batch_size):
        states, target = examples.take(np.arange(begin, min(begin + batch_size, len(examples.rows))))
        total += loss_of(network.outputs(states), target)
    return total / len(examples.rows)
