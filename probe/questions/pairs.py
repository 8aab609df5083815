"""Questions about pairs of a phrase and something that it may belong to: a region, a patch, a detection query."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from probe.controls import control_labels, seen_types
from probe.estimators import (
    BilinearProbe,
    ConcatenationProbe,
    MajorityProbe,
    MLPProbe,
    PairProbe,
    PhraseOnlyProbe,
    RegionOnlyProbe,
)
from probe.features import PairFeatures, read_rows
from probe.measures import LabelledSites
from probe.pairs import PairTable
from probe.position import position_only
from probe.questions.base import Judgement, Part, Question, Score
from probe.scores import SCORES, ScoredPairs, as_statistic, chance, choices, margins
from probe.settings import CONTROLS, MEASURES, PROBES, SweepSettings
from probe.splits import PARTS

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

FULL_FORM = 256 * 256  # largest bilinear form learned in full; above it, LOW_RANK
LOW_RANK = 32
_LOGISTIC = {"concatenation": ConcatenationProbe, "phrase-only": PhraseOnlyProbe, "region-only": RegionOnlyProbe}


class PairQuestion(Question):
    """Does this phrase belong to that? Items are pairs; a phrase's best-scored candidate is its choice.

    pairs: ``[n]``. places: one row a candidate, boxes ``x1, y1, x2, y2``: where the label control's random taste looks.
    """

    probes = PROBES
    controls = CONTROLS
    measures = MEASURES
    scores = SCORES

    def __init__(self, run: Run, settings: SweepSettings, pairs: PairTable, places: pd.DataFrame):
        super().__init__(run, settings)
        self.pairs, self.places = pairs, places
        self.example, self.target, self.left_out = pairs.example, pairs.label, pairs.left_out

    @abstractmethod
    def candidate_rows(self, site: SiteInfo) -> np.ndarray:
        """Float32 ``[candidates, D]`` of a site, one row for each of ``places``."""

    @abstractmethod
    def candidate_width(self, site: SiteInfo) -> int:
        """Channels of ``candidate_rows``."""

    def widths(self, site: SiteInfo) -> tuple[int, ...]:
        """Channels of phrase and candidate rows."""
        return self.run.read(site.name, "phrase", rows=np.array([0])).shape[1], self.candidate_width(site)

    def size(self, site: SiteInfo) -> int:
        """Bytes of the rows of phrases and candidates, which are not written out as pairs."""
        phrase, candidate = self.widths(site)
        return 4 * (len(self.run.phrases) * phrase + len(self.places) * candidate)

    def features(self, site: SiteInfo) -> PairFeatures:
        """Rows of phrases and candidates, and which of them each pair joins."""
        pairs = self.pairs
        phrase = read_rows(self.run, site.name, "phrase")
        features = PairFeatures(phrase, self.candidate_rows(site), pairs.phrase, pairs.region, pairs.example)
        features.require_finite(f"site {site.name!r}")
        return features

    def probe(self, name: str, widths: tuple[int, ...], seed: int) -> tuple[PairProbe, tuple[float, ...]]:
        """linear: bilinear form; mlp: perceptron on [p; r; p * r]; baselines: logistic on [p; r], p, r or nothing."""
        settings = self.settings
        if name == "linear":
            low = min(LOW_RANK, *widths) if widths[0] * widths[1] > FULL_FORM else None
            rank = low if settings.rank is None else settings.rank
            # A loss that is right to four digits is enough for choosing and for scoring.
            return BilinearProbe(rank=rank, tol=1e-4, device=settings.device), settings.linear_strengths
        if name == "mlp":
            return MLPProbe(seed=seed, device=settings.device), settings.mlp_strengths
        if name == "majority":
            return MajorityProbe(device=settings.device), (1.0,)
        return _LOGISTIC[name](tol=1e-4, device=settings.device), settings.linear_strengths

    def labelled(
        self,
        names: Sequence[str],
        features: Sequence[PairFeatures],
        split: np.ndarray,
        target: np.ndarray | None = None,
    ) -> LabelledSites:
        """What measures read: the sites of those names, with the real labels or others."""
        everything = np.ones(len(self.pairs), dtype=bool)
        label = self.target if target is None else target
        return LabelledSites(names, features, label, self.pairs.phrase, self.image(everything), split)

    def position_only(self, features: PairFeatures) -> PairFeatures:
        """Phrases as they are, and the places of candidates instead of their states."""
        return position_only(features, self.places)

    def control_target(self, seed: int) -> np.ndarray:
        """Labels by phrase type and place: ``probe.controls.control_labels``."""
        return control_labels(self.pairs, self._types(), self.places, seed)

    def check_split(self, part: np.ndarray, seed: int) -> None:
        """Control labels, where they are asked for, must be there and to be memorised."""
        if "labels" in self.settings.controls:
            self.seen_types(part)
            self.control_target(seed)

    def seen_types(self, part: np.ndarray) -> float:
        """Share of test phrases whose type occurs in train: only those labels of the control can be memorised.

        Raises BadInput where there are none.
        """
        seen = seen_types(self.pairs, self._types(), part == "train", part == "test")
        if seen == 0:
            raise BadInput(
                "control labels cannot be built: no phrase type of the test part occurs in train; "
                "split by image, or leave out the control 'labels'"
            )
        return seen

    def judge(self, probe: PairProbe, validation: Part, test: Part) -> tuple[Judgement, Judgement]:
        """Choice among a phrase's candidates, average precision, area under the ROC curve."""
        return self._judged(probe, validation), self._judged(probe, test)

    def scored(self, probe: PairProbe, part: Part) -> ScoredPairs:
        """The pairs of a part with the probe's log odds."""
        scores = probe.decision_function(part.features)
        return ScoredPairs(self.pairs.phrase[part.chosen], self.image(part.chosen), part.target, scores)

    def sizes(self, part: np.ndarray) -> dict[str, dict[str, int]]:
        """Images, phrases and pairs of each part."""
        sizes = {}
        for name in PARTS:
            mask = part == name
            phrases = len(np.unique(self.pairs.phrase[mask]))
            images = len(np.unique(self.image(mask)))
            sizes[name] = {"images": images, "phrases": phrases, "pairs": int(mask.sum())}
        return sizes

    def _judged(self, probe: PairProbe, part: Part) -> Judgement:
        pairs = self.scored(probe, part)
        scores = {name: Score(as_statistic(pairs, name), chance(pairs, name)) for name in SCORES}
        phrases, correct = choices(pairs)
        items = {"example": self.run.phrases["example"].to_numpy()[phrases], "phrase": phrases}
        return Judgement(scores, pd.DataFrame(items | {"score": margins(pairs), "correct": correct, "iou": np.nan}))

    def _types(self) -> np.ndarray:
        return self.run.phrases["type"].astype(str).to_numpy()
