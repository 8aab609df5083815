"""The probe that is not given its input: what the share of positives alone can say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from probe.estimators.base import Batch, PairProbe
from probe.features import PairFeatures


class MajorityProbe(PairProbe):
    """Gives every pair the share of positives in training, so it predicts the majority and ranks nothing.

    scikit-learn's ``DummyClassifier(strategy="prior")`` for pairs. Its log loss is the entropy of the labels without
    the input, H_V(Y) of Xu et al. 2020 (arXiv 2002.10689, definition 2). strength changes nothing: it is there so that
    this baseline goes wherever a probe does. Learned: ``log_odds_``, those of a pair belonging.
    """

    def __init__(self, strength: float = 1.0, device: str = "cpu"):
        self.strength = strength
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags

    def _decide(self, pairs: PairFeatures) -> np.ndarray:
        return np.full(len(pairs), self.log_odds_)

    def _learn(self, probes: Sequence[Self], batch: Batch, held_out: Batch | None) -> None:
        share = float(batch.target.double().mean())
        for probe in probes:
            probe.log_odds_ = float(np.log(share) - np.log1p(-share))
            probe.loss_ = float(-share * np.log(share) - (1 - share) * np.log1p(-share))
