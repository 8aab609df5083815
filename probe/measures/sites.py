"""Sites with labels in their parts: what every measure reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.metrics.intervals import bootstrap
from probe.estimators import PairProbe
from probe.features import PairFeatures
from probe.scores import ScoredPairs, as_statistic, chance
from probe.selection import Chosen, choose_strength


@dataclass(frozen=True)
class Measured:
    """What a measure found: a tidy table, and, where it has them, the pieces that its rows sum up."""

    table: pd.DataFrame
    details: pd.DataFrame | None = None


@dataclass(frozen=True)
class LabelledSites:
    """n pairs at each of some sites of equal widths.

    names: of the sites. features: one a site. label: bool ``[n]``. phrase: int ``[n]``, whose candidate a pair is.
    image: ``[n]`` labels, never split apart. part: ``[n]`` strings, train, validation or test.
    """

    names: Sequence[str]
    features: Sequence[PairFeatures]
    label: np.ndarray
    phrase: np.ndarray
    image: np.ndarray
    part: np.ndarray

    def fit(self, prototype: PairProbe, strengths: Sequence[float], train: np.ndarray | None = None) -> list[Chosen]:
        """A probe a site, its strength chosen on the validation part. train: mask ``[n]``, default the train part."""
        train = self.part == "train" if train is None else train
        held_out = self.part == "validation"
        return choose_strength(
            prototype, self._at(train), self.label[train], self._at(held_out), self.label[held_out], strengths
        )

    def scored(self, site: int, probe: PairProbe) -> ScoredPairs:
        """A site's test part as a fitted probe scores it."""
        asked = self.part == "test"
        scores = probe.decision_function(self.features[site][asked])
        return ScoredPairs(self.phrase[asked], self.image[asked], self.label[asked], scores)

    def bits(self, site: int, probe: PairProbe, asked: np.ndarray) -> np.ndarray:
        """-log2 of the probability that a fitted probe gives the label of each pair of a mask: float64 ``[asked]``."""
        sign = np.where(self.label[asked] == probe.classes_[1], 1.0, -1.0)
        return np.logaddexp(0, -sign * probe.decision_function(self.features[site][asked])) / np.log(2)

    def score_rows(
        self, site: int, chosen: Chosen, scores: Sequence[str], resamples: int, seed: int
    ) -> list[dict[str, Any]]:
        """A row a score of a fitted probe on test: site, strength, validation loss, value, 95 % interval, chance."""
        pairs = self.scored(site, chosen.probe)
        common = {"site": self.names[site], "strength": chosen.probe.strength}
        common["validation_loss"] = chosen.validation_loss
        found = bootstrap({score: as_statistic(pairs, score) for score in scores}, resamples, seed)
        return [
            common
            | {"score": score, "value": each.value, "low": each.low, "high": each.high, "chance": chance(pairs, score)}
            for score, each in found.items()
        ]

    def table(self, rows: list[dict[str, Any]]) -> pd.DataFrame:
        """Rows as a table, ordered by site and otherwise as they came."""
        order = {name: number for number, name in enumerate(self.names)}
        return pd.DataFrame(sorted(rows, key=lambda row: order[row["site"]]))

    def _at(self, mask: np.ndarray) -> list[PairFeatures]:
        return [rows[mask] for rows in self.features]


def nested_portions(
    image: np.ndarray, train: np.ndarray, fractions: Sequence[float], seed: int = 0
) -> list[np.ndarray]:
    """Growing portions of the train part, each whole images and within the next: masks ``[n]``.

    image: ``[n]`` labels; train: mask ``[n]``. Images come in a random order of ``seed``; a portion holds the first
    ``ceil(fraction x images)``. Fractions that round to the same images as the one before are left out.
    Raises BadInput for fractions outside (0, 1] or that do not rise.
    """
    if not fractions or min(fractions) <= 0 or max(fractions) > 1 or list(fractions) != sorted(set(fractions)):
        raise BadInput(f"fractions {list(fractions)} cannot be used; accepted: rising numbers above 0 and at most 1")
    names = np.unique(image[train])
    order = np.random.default_rng(seed).permutation(len(names))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    place = np.full(len(image), len(names))
    place[train] = rank[np.searchsorted(names, image[train])]
    # Rounding first, since 0.07 x 100 is a little more than 7.
    sizes = {int(np.ceil(round(fraction * len(names), 9))) for fraction in fractions}
    return [place < size for size in sorted(sizes)]
