"""Probes of one vector: box regression and logistic regression, on scikit-learn's own estimators.

All of them standardise the vector's columns, and their ``strength`` multiplies half the squared weights beside the
*mean* loss over rows, as that of the probes of pairs does.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from grounding.errors import BadInput


class _RowProbe(BaseEstimator):
    """Learned: ``model_``, the fitted pipeline."""

    strength: float

    @abstractmethod
    def _model(self, rows: int) -> Any:
        """An unfitted scikit-learn estimator for so many rows."""

    def _fitted(self, X: np.ndarray, y: np.ndarray) -> Pipeline:
        if not self.strength > 0:
            raise BadInput(f"strength {self.strength} is out of range; accepted: more than 0")
        return make_pipeline(StandardScaler(), self._model(len(X))).fit(X, y)


class _BoxProbe(RegressorMixin, _RowProbe):
    """Regression of boxes as centre and size, relative to their image.

    Learned besides: ``mean_`` ``[4]`` of the boxes in training, ``variance_`` of the residuals there.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Learn from rows ``[n, D]`` and boxes_cxcywh ``[n, 4]``."""
        self.model_ = self._fitted(X, y)
        self.mean_ = y.mean(0)
        self.variance_ = float(max(((self.model_.predict(X) - y) ** 2).mean(), 1e-6))
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Boxes_cxcywh ``[n, 4]``."""
        check_is_fitted(self)
        return self.model_.predict(X)

    def log_loss(self, X: np.ndarray, y: np.ndarray) -> float:
        """Mean over rows of the negative log density (nats) of the boxes' four numbers, normal round what is predicted
        with the variance of training."""
        squares = ((self.predict(X) - y) ** 2).sum(1)
        return float((squares / self.variance_ / 2).mean() + 2 * np.log(2 * np.pi * self.variance_))


class RidgeBoxProbe(_BoxProbe):
    """Least squares with a penalty: linear."""

    def __init__(self, strength: float = 0.01):
        self.strength = strength

    def _model(self, rows: int) -> Ridge:
        return Ridge(alpha=self.strength * rows)


class PerceptronBoxProbe(_BoxProbe):
    """A multilayer perceptron with ReLU, squared loss and Adam."""

    def __init__(self, hidden: tuple[int, ...] = (64,), strength: float = 0.01, max_epochs: int = 100, seed: int = 0):
        self.hidden = hidden
        self.strength = strength
        self.max_epochs = max_epochs
        self.seed = seed

    def _model(self, rows: int) -> MLPRegressor:
        batch = min(rows, max(16, min(200, rows // 32)))
        # A fixed number of epochs: stopping early would hold out rows of its own, which know no groups.
        return MLPRegressor(
            hidden_layer_sizes=self.hidden, alpha=self.strength * batch, batch_size=batch, learning_rate_init=3e-3,
            max_iter=self.max_epochs, tol=0.0, n_iter_no_change=self.max_epochs, random_state=self.seed,
        )  # fmt: skip

    def _fitted(self, X: np.ndarray, y: np.ndarray) -> Pipeline:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is a setting
            return super()._fitted(X, y)


class LogisticRowProbe(ClassifierMixin, _RowProbe):
    """Logistic regression of two classes. Learned besides: ``classes_``."""

    def __init__(self, strength: float = 0.01):
        self.strength = strength

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Learn from rows ``[n, D]`` and labels ``[n]``. Raises BadInput for one class."""
        self.classes_ = np.unique(y)
        if len(self.classes_) != 2:
            raise BadInput(f"y holds {len(self.classes_)} class(es); accepted: two")
        self.model_ = self._fitted(X, y)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Log odds of the second class, ``[n]``."""
        check_is_fitted(self)
        return self.model_.decision_function(X)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The likelier class, ``[n]``."""
        return self.classes_[(self.decision_function(X) > 0).astype(int)]

    def log_loss(self, X: np.ndarray, y: np.ndarray) -> float:
        """Mean negative log likelihood of labels y ``[n]``, in nats."""
        return float(log_loss(y, self.model_.predict_proba(X)[:, 1], labels=self.classes_))

    def _model(self, rows: int) -> LogisticRegression:
        return LogisticRegression(C=1 / (self.strength * rows), max_iter=1000)
