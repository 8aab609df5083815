"""Where a probe puts each phrase: its heatmaps layer by layer, as arrays that others can draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from grounding.errors import BadInput, unknown_choice
from probe.conditions import Condition, fit_under
from probe.questions.base import matching_sites
from probe.questions.localisation import Localisation
from probe.settings import SweepSettings

if TYPE_CHECKING:
    from extract.reader import Run


@dataclass(frozen=True)
class PhraseMaps:
    """Heatmaps of one probe. site: where it reads. cells: row of the phrase -> ``[rows, columns]`` of the canvas, 0..1.

    part: example row -> the part of the split it is in; only ``test`` was seen by neither fitting nor choosing.
    """

    site: str
    cells: dict[int, np.ndarray]
    part: dict[int, str]


def probe_maps(
    run: Run,
    examples: Sequence[int] | np.ndarray,
    sites: Sequence[str] | None = None,
    probe: str = "linear",
    settings: SweepSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PhraseMaps]:
    """The heatmaps of the question of localisation for the phrases of some examples, one entry a site in order.

    A probe is fitted at each site on the train part, its strength chosen on the validation part, exactly as the sweep
    with the same settings does it (``Localisation``), under the first of its seeds; a cell's value is the probability
    that it belongs to the phrase.
    examples: rows of the run's table. sites: names, ``block.*`` for a stage, or None for all. settings: of the sweep;
    its defaults if None. progress: called with (sites done, sites in all).
    Raises BadInput for a run without tokens or phrase rows, an unknown site or probe, and rows out of range.
    """
    rows = np.asarray(examples, dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(run.examples):
        raise BadInput(f"example rows {rows.min()} to {rows.max()} are not all in the run's {len(run.examples)}")
    if probe not in Localisation.probes:
        raise unknown_choice("probe", probe, Localisation.probes)
    question = Localisation(run, settings or SweepSettings())
    seed = question.settings.seeds[0]
    usable = question.sites()
    chosen = usable if sites is None else matching_sites(usable, sites)
    split = question.split(seed)
    asked = np.isin(question.example, rows)
    part = dict(zip(question.example[asked].tolist(), split[asked].tolist(), strict=True))
    found = []
    for number, site in enumerate(chosen):
        features = question.features(site)
        fitted = fit_under(Condition(question.name, [features], question.widths(site)), question, probe, split, seed)
        values = expit(fitted.chosen[0].probe.decision_function(features[asked]))
        found.append(PhraseMaps(site.name, _by_phrase(question, asked, values), part))
        if progress is not None:
            progress(number + 1, len(chosen))
    return found


def unseen_examples(run: Run, settings: SweepSettings | None = None) -> np.ndarray:
    """Rows of the examples in the test part of ``probe_maps`` of those settings, int64. Raises BadInput as it does."""
    question = Localisation(run, settings or SweepSettings())
    return np.unique(question.example[question.split(question.settings.seeds[0]) == "test"])


def _by_phrase(question: Localisation, asked: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    """Values of pairs, which are sorted by phrase and cell by cell, as maps of each phrase's canvas."""
    phrase, first = np.unique(question.pairs.phrase[asked], return_index=True)
    example = question.run.phrases["example"].to_numpy()[phrase]
    grids = question.run.examples[["grid_rows", "grid_columns"]].to_numpy()[example]
    parts = np.split(values, first[1:])
    return {int(row): cells.reshape(grid) for row, cells, grid in zip(phrase, parts, grids, strict=True)}
