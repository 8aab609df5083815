"""Training of many networks side by side: mini-batches, AdamW, and of each network the best epoch on rows held out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

TOLERANCE = 1e-4  # nats; a smaller gain does not count as an improvement (as in MLPClassifier)


@dataclass(frozen=True)
class Schedule:
    """How to train; as the parameters of the estimators."""

    learning_rate: float
    max_epochs: int
    patience: int


class Examples(Protocol):
    """What G groups of networks are trained on."""

    @property
    def total(self) -> float:
        """How many examples there are."""

    def batches(self, generator: torch.Generator | None = None) -> Iterator[tuple[Any, float]]:
        """All of them once in mini-batches, with the examples of each: in an order drawn, or as they come."""

    def of_groups(self, chosen: Tensor) -> Self:
        """Those of some groups (a mask ``[G]``)."""


class Networks(ABC):
    """Networks that do not depend on each other: G groups of one, or of some that read the same. Their numbers ``[G]``
    or ``[G, S]`` are the first axes of ``weights`` and ``biases``, a tensor a layer."""

    weights: list[Tensor]
    biases: list[Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        """All weights, then all biases."""
        return [*self.weights, *self.biases]

    @abstractmethod
    def losses(self, batch: Any) -> Tensor:
        """Summed losses of a mini-batch, ``[G]`` or ``[G, S]``."""

    def keep(self, chosen: Tensor) -> None:
        """Go on with some groups only (a mask ``[G]``)."""
        self.weights = [values.detach()[chosen].requires_grad_() for values in self.weights]
        self.biases = [values.detach()[chosen].requires_grad_() for values in self.biases]


@dataclass(frozen=True)
class Kept:
    """The best parameters: weights and biases as in Networks, and of each network the loss and the epoch (int64)."""

    weights: list[Tensor]
    biases: list[Tensor]
    loss: Tensor
    epoch: Tensor


def train(
    networks: Networks,
    examples: Examples,
    held_out: Examples | None,
    decay: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> Kept:
    """Train by AdamW (Loshchilov and Hutter 2019, algorithm 2) with a decay of the weights for each network.

    decay: ``[G]`` or ``[G, S]``. With ``held_out`` each network keeps its epoch of the lowest loss there, and is done
    once ``patience`` epochs have not lowered it by TOLERANCE; groups leave when all of theirs are. Without, each keeps
    the last of ``max_epochs``.
    """
    optimiser = _adam(networks, schedule)
    best = [values.detach().clone() for values in networks.parameters]
    lowest, epoch_of_best = torch.full_like(decay, math.inf), torch.zeros_like(decay, dtype=torch.int64)
    groups = torch.arange(len(decay), device=decay.device)
    goal, waited = lowest.clone(), torch.zeros_like(epoch_of_best)
    for epoch in range(1, schedule.max_epochs + 1):
        loss = _epoch(networks, examples, optimiser, 1 - schedule.learning_rate * decay, generator)
        if held_out is None:
            lowest, epoch_of_best = loss, torch.full_like(epoch_of_best, epoch)
            continue
        loss = _mean_loss(networks, held_out)
        going = waited < schedule.patience
        here = ((loss < lowest[groups]) & going).nonzero(as_tuple=True)
        there = groups[here[0]], *here[1:]
        lowest[there], epoch_of_best[there] = loss[here], epoch
        for kept, values in zip(best, networks.parameters, strict=True):
            kept[there] = values.detach()[here]
        improved = (loss < goal - TOLERANCE) & going
        goal, waited = torch.where(improved, loss, goal), torch.where(improved, 0, waited + 1)
        staying = (waited < schedule.patience).view(len(groups), -1).any(1)
        if not staying.any():
            break
        if not staying.all():
            groups, goal, waited, decay = (values[staying] for values in (groups, goal, waited, decay))
            examples, held_out = examples.of_groups(staying), held_out.of_groups(staying)
            optimiser = _without(networks, optimiser, staying, schedule)
    if held_out is None:
        best = [values.detach() for values in networks.parameters]
    layers = len(networks.weights)
    return Kept(best[:layers], best[layers:], lowest, epoch_of_best)


def _adam(networks: Networks, schedule: Schedule) -> torch.optim.Adam:
    """torch takes one decay for all of a tensor; ours is applied before its step, as AdamW has it."""
    return torch.optim.Adam(networks.parameters, lr=schedule.learning_rate, fused=True)


def _without(networks: Networks, optimiser: torch.optim.Adam, staying: Tensor, schedule: Schedule) -> torch.optim.Adam:
    """Lets groups go, and gives an optimiser that goes on with the moments of the others."""
    moments = [optimiser.state[values] for values in networks.parameters]
    networks.keep(staying)
    going_on = _adam(networks, schedule)
    for values, state in zip(networks.parameters, moments, strict=True):
        going_on.state[values] = {name: m if name == "step" else m[staying] for name, m in state.items()}
    return going_on


def _epoch(
    networks: Networks,
    examples: Examples,
    optimiser: torch.optim.Optimizer,
    shrink: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """One pass over the examples; the mean loss of each network on the way. shrink: factors of the weights."""
    total = torch.zeros_like(shrink)
    for batch, count in examples.batches(generator):
        losses = networks.losses(batch)
        # Each network's loss depends on its own parameters alone, so that one sum serves all.
        gradients = torch.autograd.grad(losses.sum() / count, networks.parameters)
        for values, gradient in zip(networks.parameters, gradients, strict=True):
            values.grad = gradient
        with torch.no_grad():
            for weights in networks.weights:
                weights *= shrink[..., None, None]
        optimiser.step()
        total += losses.detach()
    return total / examples.total


@torch.no_grad()
def _mean_loss(networks: Networks, examples: Examples) -> Tensor:
    """Mean loss of each network over all examples."""
    return torch.stack([networks.losses(batch) for batch, _ in examples.batches()]).sum(0) / examples.total
