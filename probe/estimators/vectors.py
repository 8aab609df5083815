"""The contract of probes that read one vector an example, and the grid in which many of them are trained together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from grounding.errors import BadInput
from probe.estimators.blocks import ArrayOrRows, Blocks, moments, row_chunks
from probe.stored import StoredRows

_LEAST_VARIANCE = 1e-6  # of residuals, where a density would be endless


@dataclass(frozen=True)
class Task:
    """What is to be learned at every site.

    y: ``[n]`` (of a regression also ``[n, m]``). rows: bool ``[n]``, those that are trained on (None for all).
    held_out: bool ``[n]``, those on which probes that stop early look when to (all tasks have them or none).
    Other rows of y are not looked at. seed: of probes that draw numbers (None keeps the prototype's).
    """

    y: np.ndarray
    rows: np.ndarray | None = None
    held_out: np.ndarray | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Grid:
    """L sites x T tasks x S strengths on the training device.

    sites: L x ``[n, D]``. weight: float32 ``[T, n]``, 1 / (rows trained on) or 0. target: class numbers int64
    ``[T, n]`` or values float32 ``[T, n, m]``. mean, scale: float32 ``[L, T, D]``, of the rows trained on.
    strength: float32 ``[S]``. held_out: bool ``[T, n]`` or None.
    """

    sites: list[Blocks]
    weight: Tensor
    target: Tensor
    mean: Tensor
    scale: Tensor
    strength: Tensor
    held_out: Tensor | None = None

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """(site, task, strength) of every problem, in the order in which they are numbered."""
        return iter(np.ndindex(len(self.sites), len(self.weight), len(self.strength)))  # type: ignore[arg-type]


class VectorProbe(BaseEstimator, ABC):
    """An estimator of vectors X ``[n, D]`` (an array, or StoredRows of a run) with scikit-learn's contract.

    Rows are standardised with the mean and deviation of those trained on. Learned by every probe: ``n_features_in_``,
    ``mean_``, ``scale_`` ``[D]``, ``loss_`` (what was minimised), ``n_iter_``.
    """

    strength: float
    device: str

    def fit(self, X: ArrayOrRows, y: np.ndarray) -> Self:
        """Learn from vectors X and targets y ``[n]``. Raises BadInput for targets of the wrong kind."""
        if not isinstance(X, StoredRows):
            X, y = validate_data(self, X, y, dtype=np.float32, **self._validation())
        _fit([[[self]]], [X], [Task(y)], [self.strength])
        return self

    def _validation(self) -> dict[str, Any]:
        """Further arguments of scikit-learn's ``validate_data``."""
        return {}

    @abstractmethod
    def _read_targets(self, tasks: Sequence[Task], rows: np.ndarray, probes: Sequence[Self]) -> np.ndarray:
        """Targets as in Grid, of the rows bool ``[T, n]``; what they tell (classes) is set on the probes."""

    @abstractmethod
    def _learn(self, probes: Sequence[Self], grid: Grid) -> None:
        """Train ``probes``, one a cell of ``grid`` and equal but for strength and seed; set what they learned."""

    def _standardised(self, X: ArrayOrRows) -> Iterator[np.ndarray]:
        """X in the units of training, float64, a chunk at a time."""
        check_is_fitted(self)
        if isinstance(X, StoredRows):
            if X.shape[1] != self.n_features_in_:
                raise BadInput(
                    f"X has width {X.shape[1]}, but {type(self).__name__} was fitted on {self.n_features_in_}"
                )
        else:
            X = validate_data(self, X, dtype=np.float32, reset=False)
        for rows in row_chunks(X):
            yield (rows.astype(np.float64) - self.mean_) / self.scale_

    @abstractmethod
    def _raw(self, standard: np.ndarray) -> np.ndarray:
        """Outputs ``[n, K]`` of standardised rows ``[n, D]``."""

    def _outputs(self, X: ArrayOrRows) -> np.ndarray:
        """Outputs of X, float64 ``[n, K]``."""
        return np.concatenate([self._raw(standard) for standard in self._standardised(X)])


class VectorClassifier(ClassifierMixin, VectorProbe):
    """A probe of two classes or more: their log odds (two), or scores whose softmax is their probability.

    Learned besides: ``classes_`` ``[K]``.
    """

    def decision_function(self, X: ArrayOrRows) -> np.ndarray:
        """Log odds of the second of two classes, float64 ``[n]``; scores of three or more, ``[n, K]``."""
        found = self._outputs(X)
        return found[:, 0] if found.shape[1] == 1 else found

    def predict_proba(self, X: ArrayOrRows) -> np.ndarray:
        """Probability of each class, ``[n, K]``."""
        found = self._outputs(X)
        return np.hstack([expit(-found), expit(found)]) if found.shape[1] == 1 else softmax(found, axis=1)

    def predict(self, X: ArrayOrRows) -> np.ndarray:
        """The likeliest class of each row, ``[n]``."""
        found = self._outputs(X)
        return self.classes_[(found[:, 0] > 0).astype(int) if found.shape[1] == 1 else found.argmax(1)]

    def log_loss(self, X: ArrayOrRows, y: np.ndarray) -> float:
        """Mean negative log likelihood of labels y ``[n]``, in nats."""
        found = self._outputs(X)
        scores = np.hstack([np.zeros_like(found), found]) if found.shape[1] == 1 else found
        return float(-log_softmax(scores, axis=1)[np.arange(len(scores)), np.searchsorted(self.classes_, y)].mean())

    def _read_targets(self, tasks: Sequence[Task], rows: np.ndarray, probes: Sequence[Self]) -> np.ndarray:
        for task in tasks:
            check_classification_targets(task.y)
        found = [np.unique(np.asarray(task.y)[used]) for task, used in zip(tasks, rows, strict=True)]
        classes = found[0]
        if len(classes) < 2:
            raise BadInput(f"y holds one class only ({classes[0]}); a probe needs two classes or more")
        if any(not np.array_equal(classes, other) for other in found[1:]):
            raise BadInput("tasks trained together have different classes; accepted: the same in the rows of each")
        for task in tasks:
            if task.held_out is not None and not np.isin(np.asarray(task.y)[task.held_out], classes).all():
                raise BadInput(
                    "rows held out have classes that those trained on lack; accepted: classes seen in training"
                )
        for probe in probes:
            probe.classes_ = classes
        return np.stack([np.searchsorted(classes, np.asarray(task.y)).clip(max=len(classes) - 1) for task in tasks])


class VectorRegressor(RegressorMixin, VectorProbe):
    """A probe of one number or several, y ``[n]`` or ``[n, m]``.

    Learned besides: ``target_mean_`` ``[m]``, of y in training; ``variance_``, the mean square of the residuals there
    (of the rows held out, where the epoch was chosen on some).
    """

    @property
    @abstractmethod
    def variance_(self) -> float:
        """Mean square of the residuals."""

    def predict(self, X: ArrayOrRows) -> np.ndarray:
        """Float64, of the shape of y in training."""
        found = self._outputs(X)
        return found[:, 0] if self._single else found

    def log_loss(self, X: ArrayOrRows, y: np.ndarray) -> float:
        """Mean over rows of the negative log density of y ``[n, m]`` (nats), normal round what is predicted with
        ``variance_``."""
        squares = ((self._outputs(X) - np.asarray(y).reshape(len(y), -1)) ** 2).sum(1).mean()
        variance = max(self.variance_, _LEAST_VARIANCE)
        return float(squares / variance / 2 + len(self.target_mean_) / 2 * np.log(2 * np.pi * variance))

    def _validation(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _read_targets(self, tasks: Sequence[Task], rows: np.ndarray, probes: Sequence[Self]) -> np.ndarray:
        for probe in probes:
            probe._single = np.ndim(tasks[0].y) == 1
        return np.stack([np.asarray(task.y, dtype=np.float32).reshape(rows.shape[1], -1) for task in tasks])

    def _centre(self, probes: Sequence[Self], grid: Grid) -> Tensor:
        """Means of y in training ``[T, m]``, which are set on the probes too."""
        centre = torch.einsum("tn,tnm->tm", grid.weight, grid.target)
        for (_, task, _), probe in zip(grid.cells(), probes, strict=True):
            probe.target_mean_ = centre[task].cpu().numpy()
        return centre

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def fit_grid(
    prototype: VectorProbe, sites: Sequence[ArrayOrRows], tasks: Sequence[Task], strengths: Sequence[float]
) -> list[list[list[VectorProbe]]]:
    """Fit a clone of the prototype for every site, task and strength, all together: ``found[site][task][strength]``.

    sites: arrays ``[n, D]`` or StoredRows, of equal shapes. Rows of a site are read once for all of its tasks and
    strengths. Each result is that of fitting alone on the rows of its task.
    Raises BadInput for shapes that differ, rows that are not finite, targets of the wrong kind, no task or strength.
    """
    if not len(sites) or not len(tasks) or not len(strengths):
        raise BadInput(
            f"{len(sites)} sites, {len(tasks)} tasks, {len(strengths)} strengths; accepted: 1 or more of each"
        )
    drawn = "seed" in prototype.get_params()
    probes = [
        [
            [
                clone(prototype).set_params(
                    strength=strength, **({"seed": task.seed} if drawn and task.seed is not None else {})
                )
                for strength in strengths
            ]
            for task in tasks
        ]
        for _ in sites
    ]
    _fit(probes, sites, tasks, strengths)
    return probes


def _fit(
    probes: list[list[list[VectorProbe]]],
    sites: Sequence[ArrayOrRows],
    tasks: Sequence[Task],
    strengths: Sequence[float],
) -> None:
    """Fit ``probes[site][task][strength]``."""
    for strength in strengths:
        if not strength > 0:
            raise BadInput(f"strength {strength} is out of range; accepted: more than 0")
    shapes = [site.shape for site in sites]
    if len(set(shapes)) != 1:
        raise BadInput(f"sites fitted together have shapes {sorted(set(shapes))}; accepted: one shape")
    rows, held_out = _masks(tasks, shapes[0][0])
    every = [probe for site in probes for task in site for probe in task]
    first = every[0]
    target = torch.from_numpy(first._read_targets(tasks, rows, every)).to(first.device)
    weight = torch.from_numpy((rows / rows.sum(1, keepdims=True)).astype(np.float32)).to(first.device)
    blocks = [Blocks(site, first.device) for site in sites]
    mean, scale = (torch.stack(found) for found in zip(*(moments(site, weight) for site in blocks), strict=True))
    every_strength = torch.tensor(strengths, dtype=torch.float32, device=first.device)
    seen = None if held_out is None else torch.from_numpy(held_out).to(first.device)
    grid = Grid(blocks, weight, target, mean, scale, every_strength, seen)
    for (number, column, _), probe in zip(grid.cells(), every, strict=True):
        probe.n_features_in_ = shapes[0][1]
        probe.mean_, probe.scale_ = mean[number, column].cpu().numpy(), scale[number, column].cpu().numpy()
    first._learn(every, grid)


def _masks(tasks: Sequence[Task], count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows that each task trains on, bool ``[T, n]``, and those held out of it, if any."""
    rows = np.stack([np.ones(count, bool) if task.rows is None else task.rows for task in tasks])
    for task, used in zip(tasks, rows, strict=True):
        if len(task.y) != count or not used.any():
            raise BadInput(f"y has {len(task.y)} targets, {used.sum()} of them used, for {count} rows of X")
    held_out = [task.held_out for task in tasks if task.held_out is not None]
    if not held_out:
        return rows, None
    if len(held_out) < len(tasks) or not np.any(held_out, axis=1).all():
        raise BadInput(f"{len(held_out)} of {len(tasks)} tasks have rows held out; accepted: all with some, or none")
    return rows, np.stack(held_out)
