"""The contract that all probes share, and the batch in which probes of many sites are trained together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from grounding.errors import BadInput
from probe.estimators.site_rows import SiteRows, row_moments, site_rows
from probe.features import PairFeatures, used_rows

ArrayOrPairs = np.ndarray | PairFeatures


class PairProbe(ClassifierMixin, BaseEstimator, ABC):
    """A binary classifier of pairs with scikit-learn's contract.

    X is a ``PairFeatures`` or an array ``[n, D]`` (the first D // 2 columns are the phrase, the others the region).
    Phrase and region rows are standardised with the mean and deviation of the rows that occur in training.

    Learned by every probe: ``classes_`` (the second one is "belongs"), ``n_features_in_``, ``phrase_mean_``,
    ``phrase_scale_`` ``[Dp]``, ``region_mean_``, ``region_scale_`` ``[Dr]``, ``loss_`` (what was minimised).

    stops_early: whether it looks at pairs held out to know when to stop.
    """

    strength: float
    device: str
    stops_early = False

    def fit(self, X: ArrayOrPairs, y: np.ndarray) -> Self:
        """Learn from pairs X and labels y ``[n]`` of two classes. Raises BadInput for anything else."""
        fit_together([self], [X], y)
        return self

    def decision_function(self, X: ArrayOrPairs) -> np.ndarray:
        """Log odds that each pair belongs, float64 ``[n]``."""
        check_is_fitted(self)
        pairs = self._as_pairs(X, reset=False)
        scores = []
        for part in pairs.in_memory():
            part.require_finite()
            scores.append(self._decide(self._standardised(part)))
        return np.concatenate(scores)

    @abstractmethod
    def _decide(self, pairs: PairFeatures) -> np.ndarray:
        """Log odds ``[n]`` of standardised pairs."""

    def predict_proba(self, X: ArrayOrPairs) -> np.ndarray:
        """Probability of each class, ``[n, 2]``."""
        positive = expit(self.decision_function(X))
        return np.stack([1 - positive, positive], 1)

    def predict(self, X: ArrayOrPairs) -> np.ndarray:
        """The likelier class of each pair, ``[n]``."""
        likely = self.decision_function(X) > 0
        return self.classes_[likely.astype(int)]

    def log_loss(self, X: ArrayOrPairs, y: np.ndarray) -> float:
        """Mean negative log likelihood of labels y ``[n]``, in nats."""
        sign = np.where(np.asarray(y) == self.classes_[1], 1.0, -1.0)
        return float(np.logaddexp(0, -sign * self.decision_function(X)).mean())

    @abstractmethod
    def _learn(self, probes: Sequence[Self], batch: Batch, held_out: Batch | None) -> None:
        """Train ``probes`` (equal but for ``strength``) on their slices of ``batch``; set what they learned."""

    def _standardised(self, pairs: PairFeatures) -> PairFeatures:
        """Pairs in the units of training; float64, so that a score does not depend on its neighbours."""
        return PairFeatures(
            (np.asarray(pairs.phrase, dtype=np.float64) - self.phrase_mean_) / self.phrase_scale_,
            (np.asarray(pairs.region, dtype=np.float64) - self.region_mean_) / self.region_scale_,
            pairs.phrase_row,
            pairs.region_row,
            pairs.block,
        )

    def _as_pairs(self, X: ArrayOrPairs, reset: bool) -> PairFeatures:
        if not isinstance(X, PairFeatures):
            return PairFeatures.from_array(validate_data(self, X, dtype=np.float32, reset=reset))
        widths = (X.phrase.shape[1], X.region.shape[1])
        if reset:
            self.n_features_in_ = sum(widths)
        elif widths != (len(self.phrase_mean_), len(self.region_mean_)):
            raise BadInput(
                f"X has widths {widths}, but {type(self).__name__} was fitted on "
                f"{(len(self.phrase_mean_), len(self.region_mean_))}"
            )
        return X

    def _encode(self, y: np.ndarray) -> np.ndarray:
        """Labels as 0 and 1; sets ``classes_``."""
        y = np.asarray(y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise BadInput(
                "Only binary classification is supported. "
                f"The target has {len(self.classes_)} classes; accepted: belongs or not"
            )
        if len(self.classes_) < 2:
            raise BadInput(f"y holds one class only ({self.classes_[0]}); a probe needs positives and negatives")
        return codes

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


@dataclass(frozen=True)
class Batch:
    """J sites' features of the same n pairs, standardised, on the training device.

    phrase: rows ``[J, P, Dp]``, region: ``[J, R, Dr]``, only those that occur. phrase_row, region_row: int64 ``[n]``.
    block: int64 ``[n]``. target: float ``[n]``, 0 or 1.
    """

    phrase: SiteRows
    region: SiteRows
    phrase_row: Tensor
    region_row: Tensor
    block: Tensor
    target: Tensor

    @cached_property
    def grid(self) -> Grid:
        """The pairs laid out as a padded grid a block."""
        return Grid.build(self)


@dataclass(frozen=True)
class Grid:
    """Pairs as E blocks of at most m phrases by k regions, so that matrix products replace gathers.

    phrases: int64 ``[E, m]`` and regions: ``[E, k]``, rows of the batch (padding repeats row 0).
    count: float ``[E, m, k]``, how many pairs a cell holds (0 in padding); positive: the sum of their targets.
    """

    phrases: Tensor
    regions: Tensor
    count: Tensor
    positive: Tensor

    @classmethod
    def build(cls, batch: Batch) -> Grid:
        """Lay out the pairs of a batch."""
        device = batch.target.device
        block = pd.factorize(batch.block.cpu().numpy())[0]
        places, tables = [], []
        for rows in (batch.phrase_row.cpu().numpy(), batch.region_row.cpu().numpy()):
            inverse, members = pd.factorize(block * (rows.max() + 1) + rows, sort=True)
            owner, member = np.divmod(members, rows.max() + 1)
            place = np.arange(len(members)) - np.searchsorted(owner, np.arange(block.max() + 1))[owner]
            table = np.zeros((block.max() + 1, place.max() + 1), dtype=np.int64)
            table[owner, place] = member
            places.append(place[inverse])
            tables.append(table)
        shape = (len(tables[0]), tables[0].shape[1], tables[1].shape[1])
        cell = np.ravel_multi_index((block, places[0], places[1]), shape)
        size = int(np.prod(shape))
        count = np.bincount(cell, minlength=size).reshape(shape)
        positive = np.bincount(cell, batch.target.cpu().numpy(), minlength=size).reshape(shape)
        return cls(
            torch.from_numpy(tables[0]).to(device),
            torch.from_numpy(tables[1]).to(device),
            torch.from_numpy(count).to(device, torch.float32),
            torch.from_numpy(positive).to(device, torch.float32),
        )


def fit_together(
    probes: Sequence[PairProbe],
    features: Sequence[ArrayOrPairs],
    y: np.ndarray,
    held_out: tuple[Sequence[PairFeatures], np.ndarray] | None = None,
) -> None:
    """Fit one probe a site as one batched problem; the result is that of fitting each alone.

    probes: of one class and equal but for ``strength``. features: one a probe, of equal widths and the same pairs.
    y: labels ``[n]``. held_out: features and labels of a validation split, for probes that stop early.

    Raises BadInput when the pairs or widths differ, or the labels are not of two classes.
    """
    first = probes[0]
    pairs = [probe._as_pairs(X, reset=True) for probe, X in zip(probes, features, strict=True)]
    if not isinstance(features[0], PairFeatures):
        _, y = validate_data(first, features[0], y, dtype=np.float32)
    elif np.shape(y) != (len(pairs[0]),):
        raise BadInput(f"y has shape {np.shape(y)} for {len(pairs[0])} pairs; accepted: one label each")
    _check_alike(probes, pairs)
    codes = first._encode(y)
    for probe, rows in zip(probes, pairs, strict=True):
        probe.classes_ = first.classes_
        probe.phrase_mean_, probe.phrase_scale_ = row_moments(rows.phrase, used_rows(rows.phrase_row)[0])
        probe.region_mean_, probe.region_scale_ = row_moments(rows.region, used_rows(rows.region_row)[0])
        if not (np.isfinite(probe.phrase_mean_).all() and np.isfinite(probe.region_mean_).all()):
            rows.require_finite()
    batch = _batch(probes, pairs, codes)
    validation = None
    if held_out is not None and first.stops_early:
        validation = _batch(probes, held_out[0], np.asarray(held_out[1]) == first.classes_[1])
    first._learn(probes, batch, validation)


def _check_alike(probes: Sequence[PairProbe], pairs: Sequence[PairFeatures]) -> None:
    settings = [{k: v for k, v in probe.get_params().items() if k != "strength"} for probe in probes]
    if any(type(probe) is not type(probes[0]) for probe in probes) or any(s != settings[0] for s in settings):
        raise BadInput("probes fitted together must be of one class and differ only in strength")
    for other in pairs[1:]:
        same = np.array_equal(other.phrase_row, pairs[0].phrase_row)
        same = same and np.array_equal(other.region_row, pairs[0].region_row)
        if not same or (other.phrase.shape, other.region.shape) != (pairs[0].phrase.shape, pairs[0].region.shape):
            raise BadInput("sites fitted together must have the same pairs and widths")


def _batch(probes: Sequence[PairProbe], pairs: Sequence[PairFeatures], target: np.ndarray) -> Batch:
    device = torch.device(probes[0].device)
    phrase_used, phrase_row = used_rows(pairs[0].phrase_row)
    region_used, region_row = used_rows(pairs[0].region_row)
    phrase_units = [p.phrase_mean_ for p in probes], [p.phrase_scale_ for p in probes]
    region_units = [p.region_mean_ for p in probes], [p.region_scale_ for p in probes]
    block = pairs[0].phrase_row if pairs[0].block is None else pairs[0].block
    return Batch(
        phrase=site_rows([x.phrase for x in pairs], phrase_used, *phrase_units, device),
        region=site_rows([x.region for x in pairs], region_used, *region_units, device),
        phrase_row=torch.from_numpy(phrase_row).to(device),
        region_row=torch.from_numpy(region_row).to(device),
        block=torch.from_numpy(np.asarray(block, dtype=np.int64)).to(device),
        target=torch.from_numpy(np.asarray(target)).to(device, torch.float32),
    )
