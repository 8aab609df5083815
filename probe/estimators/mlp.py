"""The MLP probe on [p; r; p * r]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

from grounding.errors import BadInput
from probe.estimators.base import Batch, PairProbe
from probe.estimators.chunks import Chunks
from probe.estimators.perceptron import Perceptrons, Rows
from probe.estimators.spectral import cross_moment_axes
from probe.estimators.training import Schedule, train
from probe.features import PairFeatures

_CHUNK = 16_384  # pairs scored at once


class MLPProbe(PairProbe):
    """A multilayer perceptron with ReLU on [p; r; p * r], trained by AdamW on mini-batches of blocks.

    An elementwise product means nothing unless coordinate i of a phrase goes with coordinate i of a region, which
    holds in a shared residual stream at best. So the product is taken along the singular axes of the labels' cross
    moment on the training pairs (``cross_moment_axes``), to which widths and rotations are indifferent;
    ``aligned=False`` multiplies the rows as they are, which must then be equally wide.

    hidden: units of each hidden layer. strength: decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).
    With a validation split (``fit_together``) the epoch of the lowest validation loss is kept, and training ends
    when ``patience`` epochs have not improved on it; without, the last of ``max_epochs`` is kept.

    Learned besides: ``coefs_`` and ``intercepts_`` a layer as in scikit-learn's MLPClassifier, for rows
    [p; r; p * r]; ``phrase_axes_`` ``[Dp, N]`` and ``region_axes_`` ``[Dr, N]`` or None; ``n_iter_``, the epoch kept.
    """

    stops_early = True

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

    def _decide(self, pairs: PairFeatures) -> np.ndarray:
        scores = np.empty(len(pairs))
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
            left, _, right = cross_moment_axes(Chunks(batch))
            axes = left, right
        rows = Rows.of(batch, axes, self.batch_blocks)
        validation = None if held_out is None else Rows.of(held_out, axes, self.batch_blocks)
        generator = torch.Generator().manual_seed(self.seed)
        network = Perceptrons(self.hidden, rows, generator)
        decay = torch.tensor([p.strength for p in probes], dtype=torch.float32, device=batch.target.device)
        schedule = Schedule(self.learning_rate, self.max_epochs, self.patience)
        kept = train(network, rows, validation, decay, schedule, generator)
        for job, probe in enumerate(probes):
            probe.coefs_ = [weights[job].cpu().numpy() for weights in kept.weights]
            probe.intercepts_ = [bias[job, 0].cpu().numpy() for bias in kept.biases]
            probe.loss_, probe.n_iter_ = float(kept.loss[job]), int(kept.epoch[job])
            probe.phrase_axes_ = None if axes is None else axes[0][job].cpu().numpy()
            probe.region_axes_ = None if axes is None else axes[1][job].cpu().numpy()

    def _check(self, batch: Batch) -> None:
        if not self.hidden or any(units < 1 for units in self.hidden):
            raise BadInput(f"hidden {self.hidden} is not a list of layers; accepted: one or more, each 1 or more")
        for name, least in (("batch_blocks", 1), ("max_epochs", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} {getattr(self, name)} is too small; accepted: {least} or more")
        if not self.learning_rate > 0:
            raise BadInput(f"learning_rate {self.learning_rate} is out of range; accepted: more than 0")
        if not self.aligned and batch.phrase.width != batch.region.width:
            widths = batch.phrase.width, batch.region.width
            raise BadInput(f"aligned False cannot multiply rows of widths {widths}; accepted: equal ones, or True")
