"""Probes with scikit-learn's estimator contract, which can be fitted one at a time or many sites together."""

from probe.estimators.base import PairProbe, fit_together
from probe.estimators.linear import LogisticProbe, RidgeProbe, decide_together
from probe.estimators.logistic import BilinearProbe, ConcatenationProbe, PhraseOnlyProbe, RegionOnlyProbe
from probe.estimators.majority import MajorityProbe
from probe.estimators.mlp import MLPProbe
from probe.estimators.vector_mlp import MLPClassifierProbe, MLPRegressorProbe
from probe.estimators.vectors import Task, VectorClassifier, VectorProbe, VectorRegressor, fit_grid

__all__ = [
    "BilinearProbe",
    "ConcatenationProbe",
    "LogisticProbe",
    "MLPClassifierProbe",
    "MLPProbe",
    "MLPRegressorProbe",
    "MajorityProbe",
    "PairProbe",
    "PhraseOnlyProbe",
    "RegionOnlyProbe",
    "RidgeProbe",
    "Task",
    "VectorClassifier",
    "VectorProbe",
    "VectorRegressor",
    "decide_together",
    "fit_grid",
    "fit_together",
]
