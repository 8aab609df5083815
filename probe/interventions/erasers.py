"""Removing a concept from states by an affine map: LEACE, INLP, mean projection, and a random control.

Each fit takes rows ``x`` float ``[n, D]`` with what they say of a concept, and gives an ``Eraser`` that works on states
of any shape ``[..., D]``. The mean over tokens commutes with it: what is erased from rows that are means of tokens is
erased by changing every token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from grounding.errors import BadInput

with warnings.catch_warnings():  # torch's, about how the library compiles
    warnings.simplefilter("ignore", FutureWarning)
    from concept_erasure import LeaceFitter

_TOLERANCE = 1e-6  # of singular values: directions below it hold nothing but rounding
_ROUNDS = 20  # of INLP at most
_GAIN = 0.01  # accuracy above that of the majority from which on INLP goes on


@dataclass(frozen=True)
class Eraser:
    """x -> x - left right (x - mean). left: ``[D, rank]``; right: ``[rank, D]``; mean: ``[D]``; all float64.

    removed: share of the total variance of the rows it was fitted on that is gone.
    """

    left: Tensor
    right: Tensor
    mean: Tensor
    removed: float

    @property
    def rank(self) -> int:
        """Dimensions that are removed."""
        return self.left.shape[1]

    def __call__(self, states: Tensor) -> Tensor:
        """States ``[..., D]`` without the concept, in their own dtype and on their own device."""
        left, right, mean = (part.to(states.device) for part in (self.left, self.right, self.mean))
        exact = states.double()
        return (exact - ((exact - mean) @ right.T) @ left.T).to(states.dtype)


@dataclass(frozen=True)
class Concept:
    """What n rows say of a concept. values: float ``[n, k]``, its numbers, classes as indicators.

    classes: int64 ``[n]`` by name, what a classifier may guess. numbers: float ``[n, m]`` by name, what a regression
    may.
    """

    values: np.ndarray
    classes: Mapping[str, np.ndarray]
    numbers: Mapping[str, np.ndarray]

    def __getitem__(self, rows: np.ndarray) -> Concept:
        return Concept(
            self.values[rows],
            {name: found[rows] for name, found in self.classes.items()},
            {name: found[rows] for name, found in self.numbers.items()},
        )


def leace(x: np.ndarray, concept: Concept) -> Eraser:
    """Least-squares concept erasure (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3).

    The plain projection: the library's bound on the trace mixes it with another one, after which the concept is no
    longer gone.
    """
    return _library(x, concept, "leace")


def mean_projection(x: np.ndarray, concept: Concept) -> Eraser:
    """Orthogonal projection away from the cross-covariance: for two classes, from the difference of their means."""
    return _library(x, concept, "orth")


def inlp(x: np.ndarray, concept: Concept) -> Eraser:
    """Iterative null-space projection (Ravfogel et al. 2020, arXiv 2004.07667, algorithm 1).

    In each round a logistic regression guesses every class, and whether every number is above its median; the space of
    their weights is projected away. It ends where none is more than a point better than the majority on these rows.
    """
    targets = [*concept.classes.values()]
    targets += [column > np.median(column) for found in concept.numbers.values() for column in found.T]
    targets = [target for target in targets if len(np.unique(target)) > 1]
    mean = x.mean(0)
    kept, basis = x - mean, np.zeros((x.shape[1], 0))
    for _ in range(_ROUNDS):
        weights = [found for target in targets if (found := _direction(kept, target)) is not None]
        if not weights or basis.shape[1] == x.shape[1]:
            break
        new = np.concatenate([basis, np.concatenate(weights).T], axis=1)
        left, size, _ = np.linalg.svd(new, full_matrices=False)
        basis = left[:, size > _TOLERANCE * size[0]]
        kept = (x - mean) - (x - mean) @ basis @ basis.T
    return _projection(x, basis)


def random_subspace(x: np.ndarray, rank: int, seed: int) -> Eraser:
    """The control: an orthogonal projection away from a random subspace of that rank."""
    drawn = np.random.default_rng(seed).standard_normal((x.shape[1], rank))
    return _projection(x, np.linalg.qr(drawn)[0])


ERASERS: Mapping[str, Callable[[np.ndarray, Concept], Eraser]] = {
    "leace": leace,
    "inlp": inlp,
    "mean": mean_projection,
}


def _library(x: np.ndarray, concept: Concept, method: str) -> Eraser:
    values = concept.values - concept.values.mean(0)
    scale = values.std(0)
    if not (scale > 0).any():
        raise BadInput("the concept is the same for all rows: there is nothing to erase; extract more examples")
    values = values[:, scale > 0] / scale[scale > 0]
    exact = torch.from_numpy(np.asarray(x, dtype=np.float64))
    fitter = LeaceFitter.fit(
        exact, torch.from_numpy(values), method=method, constrain_cov_trace=False, svd_tol=_TOLERANCE
    )
    found = fitter.eraser
    kept = found.proj_left.abs().amax(0) > 0  # directions below the tolerance are zero
    return _measured(exact, found.proj_left[:, kept], found.proj_right[kept], exact.mean(0))


def _direction(x: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """Weights ``[rows, D]`` of a logistic regression; None where it is hardly better than the majority."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a direction that is nearly right is projected away too
        probe = LogisticRegression(max_iter=200).fit(x, target)
    majority = np.unique(target, return_counts=True)[1].max() / len(target)
    return probe.coef_ if probe.score(x, target) > majority + _GAIN else None


def _projection(x: np.ndarray, basis: np.ndarray) -> Eraser:
    """Orthogonal projection away from the columns of ``basis [D, rank]``, about the mean of ``x``."""
    exact, left = torch.from_numpy(np.asarray(x, dtype=np.float64)), torch.from_numpy(basis)
    return _measured(exact, left, left.T, exact.mean(0))


def _measured(x: Tensor, left: Tensor, right: Tensor, mean: Tensor) -> Eraser:
    centred = x - mean
    after = centred - (centred @ right.T) @ left.T
    total = float(centred.square().sum())
    return Eraser(left, right, mean, float((total - after.square().sum()) / total) if total else 0.0)
