"""Choosing how strongly to regularise, on a validation split, for many sites together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from grounding.errors import BadInput
from probe.estimators import PairProbe, Task, VectorProbe, fit_grid, fit_together


@dataclass(frozen=True)
class Chosen:
    """A fitted probe of the best strength, and its log loss (nats) on the validation split."""

    probe: Any
    validation_loss: float


def fit_all(
    probes: Sequence[Any], features: Sequence[Any], y: np.ndarray, held_out: tuple[Sequence[Any], np.ndarray]
) -> None:
    """Fit one probe a site on the same answers: probes of pairs as one batched problem, others one by one."""
    if isinstance(probes[0], PairProbe):
        fit_together(probes, features, y, held_out)
        return
    for probe, X in zip(probes, features, strict=True):
        probe.fit(X, y)


def choose_strength(
    prototype: Any,
    train: Sequence[Any],
    y: np.ndarray,
    validation: Sequence[Any],
    y_validation: np.ndarray,
    strengths: Sequence[float],
) -> list[Chosen]:
    """The best fit of each site along a path from the strongest penalty to the weakest.

    Each fit starts from the one before where the probe can (``warm_start``), and a site leaves the path when its
    validation loss rises, so that weak penalties, which take longest, are paid for only where they help. Probes of
    vectors are fitted with all strengths together, and chosen from along the same path.
    Raises BadInput for an empty list or strengths that are not positive.
    """
    if not len(strengths) or min(strengths) <= 0:
        raise BadInput(f"strengths {list(strengths)} cannot be used; accepted: one or more numbers above 0")
    if isinstance(prototype, VectorProbe):
        return _choose_in_grid(prototype, train, y, validation, y_validation, strengths)
    settings = {"warm_start": True} if "warm_start" in prototype.get_params() else {}
    probes = [clone(prototype).set_params(**settings) for _ in train]
    best: list[Chosen | None] = [None] * len(probes)
    active = list(range(len(probes)))
    for strength in sorted(set(strengths), reverse=True):
        for site in active:
            probes[site].set_params(strength=strength)
        held_out = ([validation[site] for site in active], y_validation)
        fit_all([probes[site] for site in active], [train[site] for site in active], y, held_out)
        improved = []
        for site in active:
            loss = probes[site].log_loss(validation[site], y_validation)
            earlier = best[site]
            if earlier is None or loss < earlier.validation_loss:
                # Fitting replaces what was learned and never changes it in place: a shallow copy is enough.
                best[site] = Chosen(copy.copy(probes[site]), loss)
                improved.append(site)
        active = improved
        if not active:
            break
    return [chosen for chosen in best if chosen is not None]


def _choose_in_grid(
    prototype: VectorProbe,
    train: Sequence[np.ndarray],
    y: np.ndarray,
    validation: Sequence[np.ndarray],
    y_validation: np.ndarray,
    strengths: Sequence[float],
) -> list[Chosen]:
    """As ``choose_strength``, of probes of vectors ``[n, D]``."""
    path = sorted(set(strengths), reverse=True)
    used = np.arange(len(y) + len(y_validation)) < len(y)
    task = Task(np.concatenate([y, y_validation]), used, held_out=~used)
    rows = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    chosen = []
    for (probes,), X in zip(fit_grid(prototype, rows, [task], path), validation, strict=True):
        best = Chosen(probes[0], probes[0].log_loss(X, y_validation))
        for probe in probes[1:]:
            loss = probe.log_loss(X, y_validation)
            if loss >= best.validation_loss:
                break
            best = Chosen(probe, loss)
        chosen.append(best)
    return chosen
