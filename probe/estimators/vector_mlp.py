"""MLP probes of one vector, of any depth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grounding.errors import BadInput
from grounding.values import check_counts
from probe.estimators.network import Network, Vectors
from probe.estimators.training import Schedule, train
from probe.estimators.vectors import Grid, VectorClassifier, VectorProbe, VectorRegressor

_PARAMETERS = {"cpu": 2**20, "cuda": 2**27}  # trained at once: on a processor, what its cache holds with their moments


class _MLP(VectorProbe):
    """ReLU between layers, AdamW on mini-batches. The strengths of a task share their batches and where they start.

    hidden: units of each hidden layer. strength: decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).
    With held-out rows (``Task.held_out``) the epoch of the lowest loss there is kept, and training ends when
    ``patience`` epochs have not improved on it; without, the last of ``max_epochs`` is kept. seed: of the start and of
    the order of rows.

    Learned besides: ``coefs_`` and ``intercepts_`` a layer as in scikit-learn's MLPClassifier, for standardised rows;
    ``n_iter_``, the epoch kept.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (100,),
        strength: float = 0.01,
        learning_rate: float = 1e-3,
        batch_size: int = 200,
        max_epochs: int = 40,
        patience: int = 4,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.hidden = hidden
        self.strength = strength
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.seed = seed
        self.device = device

    def _raw(self, standard: np.ndarray) -> np.ndarray:
        state = standard @ self.coefs_[0] + self.intercepts_[0]
        for weights, bias in zip(self.coefs_[1:], self.intercepts_[1:], strict=True):
            state = np.maximum(state, 0) @ weights + bias
        return state

    @abstractmethod
    def _loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Summed losses ``[G, S]`` of outputs ``[G, S, K, b]``; target: ``[b]`` or ``[b, K]``."""

    @abstractmethod
    def _columns(self, grid: Grid) -> int:
        """Outputs K."""

    def _learn(self, probes: Sequence[Self], grid: Grid) -> None:
        self._check()
        cells = np.empty((len(grid.sites), len(grid.weight), len(grid.strength)), dtype=object)
        for cell, probe in zip(grid.cells(), probes, strict=True):
            cells[cell] = probe
        sizes = [grid.mean.shape[2], *self.hidden, self._columns(grid)]
        parameters = len(grid.strength) * sum(a * b for a, b in pairwise(sizes))
        together = max(1, _PARAMETERS.get(grid.mean.device.type, 2**20) // parameters)
        for task in range(len(grid.weight)):
            for begin in range(0, len(grid.sites), together):
                part = slice(begin, begin + together)
                self._train(cells[part, task], grid, part, task, sizes)

    def _train(self, probes: np.ndarray, grid: Grid, sites: slice, task: int, sizes: Sequence[int]) -> None:
        """Train ``probes`` ``[G, S]`` of one task at some sites."""
        schedule = Schedule(self.learning_rate, self.max_epochs, self.patience)
        standardisation = grid.mean[sites, task], grid.scale[sites, task]
        blocks = grid.sites[sites]

        def examples(rows: Tensor) -> Vectors:
            numbers = rows.nonzero()[:, 0].cpu().numpy()
            return Vectors(blocks, numbers, grid.target[task], *standardisation, self.batch_size)

        held_out = None if grid.held_out is None else examples(grid.held_out[task])
        generator = torch.Generator().manual_seed(probes[0, 0].seed)
        network = Network(sizes, probes.shape, self._loss, generator, grid.mean.device)
        rows = examples(grid.weight[task] > 0)
        decay = grid.strength.expand(probes.shape)
        kept = train(network, rows, held_out, decay, schedule, generator)
        for cell, probe in np.ndenumerate(probes):
            probe.coefs_ = [weights[cell].mT.cpu().numpy() for weights in kept.weights]
            probe.intercepts_ = [bias[cell][:, 0].cpu().numpy() for bias in kept.biases]
            probe.loss_, probe.n_iter_ = float(kept.loss[cell]), int(kept.epoch[cell])

    def _check(self) -> None:
        if not self.hidden or any(units < 1 for units in self.hidden):
            raise BadInput(f"hidden {self.hidden} is not a list of layers; accepted: one or more, each 1 or more")
        check_counts(batch_size=self.batch_size, max_epochs=self.max_epochs, patience=self.patience)
        if not self.learning_rate > 0:
            raise BadInput(f"learning_rate {self.learning_rate} is out of range; accepted: more than 0")


class MLPClassifierProbe(VectorClassifier, _MLP):
    """A multilayer perceptron with cross entropy, of two classes or more. Parameters: see ``_MLP``."""

    def _columns(self, grid: Grid) -> int:
        return len(self.classes_) if len(self.classes_) > 2 else 1

    def _loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.shape[2] == 1:
            outputs = outputs[:, :, 0]
            return (F.softplus(outputs) - target * outputs).sum(2)
        likelihood = outputs.log_softmax(2)
        return -likelihood.gather(2, target.expand(*outputs.shape[:2], 1, -1))[:, :, 0].sum(2)


class MLPRegressorProbe(VectorRegressor, _MLP):
    """A multilayer perceptron with half the squared error, summed over the columns of y. Parameters: see ``_MLP``."""

    @property
    def variance_(self) -> float:
        """Mean square of the residuals, over the rows that ``loss_`` is of."""
        return 2 * self.loss_ / len(self.target_mean_)

    def _learn(self, probes: Sequence[Self], grid: Grid) -> None:
        self._centre(probes, grid)
        super()._learn(probes, grid)

    def _columns(self, grid: Grid) -> int:
        return grid.target.shape[2]

    def _loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs - target.mT).square().sum((2, 3)) / 2
