"""Accuracy against complexity: what the simplest probes already read, and what more capacity adds.

Pimentel et al. 2020 (arXiv 2010.02180): a probe's complexity is varied, for linear ones by the rank of
their weights, and the points that no simpler probe beats form a Pareto frontier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from grounding.errors import BadInput
from probe.estimators import BilinearProbe, MLPProbe, PairProbe
from probe.measures.sites import LabelledSites, Measured
from probe.scores import RESAMPLES, SCORES

COMPLEXITIES = (1, 2, 4, 8, 16, 32, 64)


def frontier(
    data: LabelledSites,
    prototype: PairProbe,
    strengths: Sequence[float],
    complexities: Sequence[int] = COMPLEXITIES,
    scores: Sequence[str] = SCORES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measured:
    """Scores of a probe at each complexity: the rank of a BilinearProbe, the units of an MLPProbe's hidden layers.

    Ranks that the sites are too narrow for are left out. Table, a row a (site, complexity, score): ``parameters``
    (those free to vary), ``strength``, ``validation_loss``, ``value`` with its 95 % interval ``low`` to ``high`` over
    test images, ``chance``, and ``on_frontier``: no simpler probe has as low a loss on the validation part (never
    decided on test). Raises BadInput for another kind of probe, and for complexities that do not rise from 1 or more.
    """
    if not complexities or min(complexities) < 1 or list(complexities) != sorted(set(complexities)):
        raise BadInput(f"complexities {list(complexities)} cannot be used; accepted: rising whole numbers from 1")
    rows = []
    lowest = np.full(len(data.names), np.inf)
    for complexity in complexities:
        probe = _of_complexity(prototype, complexity)
        if isinstance(probe, BilinearProbe) and complexity > min(_widths(data)):
            break
        for site, chosen in enumerate(data.fit(probe, strengths)):
            about: dict[str, Any] = {"complexity": complexity}
            about["parameters"] = _parameters(chosen.probe, *_widths(data))
            about["on_frontier"] = chosen.validation_loss < lowest[site]
            lowest[site] = min(lowest[site], chosen.validation_loss)
            rows += [about | row for row in data.score_rows(site, chosen, scores, resamples, seed)]
    return Measured(data.table(rows))


def _of_complexity(prototype: PairProbe, complexity: int) -> PairProbe:
    if isinstance(prototype, BilinearProbe):
        return clone(prototype).set_params(rank=complexity)
    if isinstance(prototype, MLPProbe):
        return clone(prototype).set_params(hidden=(complexity,) * len(prototype.hidden))
    raise BadInput(f"probe {type(prototype).__name__} has no complexity to vary; accepted: BilinearProbe, MLPProbe")


def _parameters(probe: PairProbe, wide: int, tall: int) -> int:
    """Numbers free to vary: of a form of rank r, r (Dp + Dr - r), since its factors share a change of basis."""
    if isinstance(probe, BilinearProbe):
        assert probe.rank is not None
        return probe.rank * (wide + tall - probe.rank) + 1
    return sum(values.size for values in [*probe.coefs_, *probe.intercepts_])  # type: ignore[attr-defined]


def _widths(data: LabelledSites) -> tuple[int, int]:
    return data.features[0].phrase.shape[1], data.features[0].region.shape[1]
