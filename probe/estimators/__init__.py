"""Probes with scikit-learn's estimator contract, which can be fitted one at a time or many sites together."""

from probe.estimators.base import PairProbe, fit_together
from probe.estimators.logistic import BilinearProbe, ConcatenationProbe, PhraseOnlyProbe, RegionOnlyProbe
from probe.estimators.majority import MajorityProbe
from probe.estimators.mlp import MLPProbe

__all__ = [
    "BilinearProbe",
    "ConcatenationProbe",
    "MLPProbe",
    "MajorityProbe",
    "PairProbe",
    "PhraseOnlyProbe",
    "RegionOnlyProbe",
    "fit_together",
]
