"""Learning curve: the test score of a probe against how many train images it saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probe.estimators import PairProbe
from probe.measures.sites import LabelledSites, Measured, nested_portions
from probe.scores import RESAMPLES, SCORES

FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)


def learning_curve(
    data: LabelledSites,
    prototype: PairProbe,
    strengths: Sequence[float],
    fractions: Sequence[float] = FRACTIONS,
    scores: Sequence[str] = SCORES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measured:
    """Scores of probes that are fitted on growing portions of the train part, each within the next.

    Portions are whole images; validation (for the strength) and test parts stay whole. Table, a row a (site, portion,
    score): ``images`` and ``pairs`` seen, ``strength``, ``validation_loss``, ``value`` with its 95 % interval ``low``
    to ``high`` over test images, ``chance``. Raises BadInput for fractions that ``nested_portions`` refuses.
    """
    rows = []
    for seen in nested_portions(data.image, data.part == "train", fractions, seed):
        sizes = {"images": len(np.unique(data.image[seen])), "pairs": int(seen.sum())}
        for site, chosen in enumerate(data.fit(prototype, strengths, seen)):
            rows += [sizes | row for row in data.score_rows(site, chosen, scores, resamples, seed)]
    return Measured(data.table(rows))
