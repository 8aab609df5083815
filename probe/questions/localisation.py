"""Localisation: which patches does this phrase belong to? Their scores are a heatmap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import expit

from grounding.metrics.areas import Area
from probe.estimators import PairProbe
from probe.features import sites_with
from probe.pairs import BOX, PairTable
from probe.questions.base import Judgement, Part
from probe.questions.heatmaps import SCORES, Heatmaps, highest_iou, judge_heatmaps
from probe.questions.pairs import PairQuestion
from probe.questions.truth import annotated_phrases, phrase_boxes
from probe.settings import SweepSettings
from probe.tokens import ranges, read_tokens, sites_with_tokens

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

_COVERED = 0.5  # share of a patch from which on it is the phrase's


class Localisation(PairQuestion):
    """Pairs of a phrase and each image token of its example, all candidates of a game included.

    A patch is the phrase's where the phrase's boxes cover half of it or more, and where they cover none so far, the one
    that they cover most. The probabilities of a phrase's patches are its heatmap, measured as the model's own is.

    coverage, inside: ``[n]``, share of a pair's patch that the phrase's boxes cover, and whether they hold its centre.
    """

    name = "localisation"
    words = "which patches of the image does the phrase belong to, of all its candidates?"
    figure = "Mean IoU of the thresholded map of its scores with the phrase's boxes:"
    shows = "patches can be matched with the phrase at this site."
    instead = "where something lies that captions speak of may be told without the phrase."
    scores = SCORES
    own_measure = True

    def __init__(self, run: Run, settings: SweepSettings):
        self._holding = {site.name: site for site in sites_with_tokens(run, "image", self.name)}
        phrases = annotated_phrases(run)
        pairs, self.coverage, self.inside = _patch_pairs(run, phrases)
        super().__init__(run, settings, pairs, _patch_places(run))

    def sites(self) -> list[SiteInfo]:
        """Those with rows of phrases and tokens of patches, their own or their partners'."""
        return [s for s in sites_with(self.run, ("phrase",)) if {s.name, s.region_partner} & set(self._holding)]

    def candidate_rows(self, site: SiteInfo) -> np.ndarray:
        """States of all patches of all examples."""
        return read_tokens(self.run, self.image_site(site), "image")

    def candidate_width(self, site: SiteInfo) -> int:
        """Channels of the patches' tokens."""
        return self.run.read(self.image_site(site).name, "tokens", rows=np.array([0])).shape[1]

    def judge(self, probe: PairProbe, validation: Part, test: Part) -> tuple[Judgement, Judgement]:
        """IoU at the threshold that is best on validation, recall (IoU of at least 0.5), pointing."""
        return judge_heatmaps(self.heatmaps(probe, validation), self.heatmaps(probe, test))

    def heatmaps(self, probe: PairProbe, part: Part) -> Heatmaps:
        """The probe's probabilities as heatmaps, with the truth: the phrases' boxes, or a control's patches."""
        phrase, counts = np.unique(self.pairs.phrase[part.chosen], return_counts=True)  # pairs are sorted by phrase
        first = np.cumsum(counts) - counts
        real = part.real
        return Heatmaps(
            counts=counts,
            value=expit(probe.decision_function(part.features)),
            coverage=self.coverage[part.chosen] if real else part.target.astype(float),
            inside=self.inside[part.chosen] if real else part.target,
            phrase=phrase,
            example=self.run.phrases["example"].to_numpy()[phrase],
            image=self.image(part.chosen)[first],
        )

    def notes(self, part: np.ndarray) -> list[str]:
        """What the patches allow."""
        test = part == "test"
        counts = np.unique(self.pairs.phrase[test], return_counts=True)[1]
        best = highest_iou(counts, self.coverage[test]).mean()
        return [f"Whole patches cannot follow the boxes further than to a mean IoU of {best:.3f}."]

    def image_site(self, site: SiteInfo) -> SiteInfo:
        """The site whose patches go with a site's phrases: itself, or its partner."""
        return self._holding.get(site.name) or self._holding[str(site.region_partner)]


def _patch_pairs(run: Run, phrases: np.ndarray) -> tuple[PairTable, np.ndarray, np.ndarray]:
    """Pairs of phrases with their example's patches, sorted by phrase; coverage and inside of each."""
    example = run.phrases["example"].to_numpy()[phrases]
    grid = run.examples[["grid_rows", "grid_columns"]].to_numpy(np.int64)
    cells = grid.prod(1)
    first = np.cumsum(cells) - cells
    counts = cells[example]
    coverage, inside = (np.zeros(int(counts.sum())) for _ in range(2))
    boxes = phrase_boxes(run, phrases, canvas=True)
    begin = np.cumsum(counts) - counts
    for rows, columns in np.unique(grid[example], axis=0):
        alike = np.flatnonzero((grid[example] == (rows, columns)).all(1))
        area = Area.of_boxes(boxes[alike])
        places = begin[alike, None] + np.arange(rows * columns)
        coverage[places] = area.coverage(rows, columns).flatten(1).numpy()
        inside[places] = area.holds_centres(rows, columns).flatten(1).numpy()
    most = np.repeat(np.maximum.reduceat(coverage, begin), counts)
    label = (coverage >= np.minimum(most, _COVERED)) & (coverage > 0)
    pairs = PairTable(
        phrase=np.repeat(phrases, counts),
        region=ranges(first[example], counts),
        example=np.repeat(example, counts),
        label=label,
        left_out=len(run.phrases) - len(phrases),
    )
    return pairs, coverage, inside


def _patch_places(run: Run) -> pd.DataFrame:
    """Boxes of all patches of all examples on the stacked canvas."""
    parts = []
    for rows, columns in run.examples[["grid_rows", "grid_columns"]].to_numpy(np.int64):
        y, x = np.divmod(np.arange(rows * columns), columns)
        parts.append(np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], 1))
    return pd.DataFrame(np.concatenate(parts), columns=BOX)
