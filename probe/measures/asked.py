"""A measure of a question: taken at its sites, and for those in bits under the controls too, as tidy tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from probe.conditions import Condition, prototype_under
from probe.measures import MEASURES, Measured
from probe.questions import QUESTIONS
from probe.questions.pairs import PairQuestion
from probe.settings import SweepSettings

if TYPE_CHECKING:
    from extract.reader import SiteInfo

IN_BITS = ("description-length", "usable-information")
# A code is short where labels are rare: what the share of positives alone costs goes beside it.
BESIDE = {"description-length": ("majority",)}
DETAILS = {"description-length": "portions", "usable-information": "phrases"}
ABOUT = ["run", "question", "site", "stage", "layer", "probe", "condition", "seed"]


def measures_of(question: str, settings: SweepSettings) -> list[tuple[str, str]]:
    """(measure, probe) of those asked for that a question has. Raises BadInput where no question has a measure."""
    for measure in settings.measures:
        having = [name for name in settings.questions if measure in QUESTIONS[name].measures]
        if not having:
            able = [name for name, known in QUESTIONS.items() if measure in known.measures]
            raise BadInput(
                f"measure {measure!r} is not of the questions {', '.join(settings.questions)}; "
                f"accepted: {', '.join(able)}"
            )
    known = QUESTIONS[question]
    probes = [name for name in settings.probes if name in known.probes]
    measures = [name for name in settings.measures if name in known.measures]
    return [(measure, probe) for measure in measures for probe in (*probes, *BESIDE.get(measure, ()))]


def take(
    measure: str,
    question: PairQuestion,
    conditions: Sequence[Condition],
    sites: Sequence[SiteInfo],
    probe: str,
    split: np.ndarray,
    seed: int,
) -> Measured:
    """A measure by name of a probe by name under each condition. Tables begin with site, stage, layer and condition."""
    names = [site.name for site in sites]
    places = pd.DataFrame({"site": names, "stage": [s.stage for s in sites], "layer": [s.layer for s in sites]})
    tables, details = [], []
    for condition in conditions:
        data = question.labelled(names, condition.features, split, condition.target)
        prototype, strengths = prototype_under(condition, question, probe, seed)
        found = MEASURES[measure](data, prototype, strengths, resamples=question.settings.resamples, seed=seed)
        tables.append(found.table.assign(condition=condition.name))
        if found.details is not None:
            details.append(found.details.assign(condition=condition.name))
    about = {"probe": probe, "seed": seed}
    whole, pieces = (
        places.merge(pd.concat(parts), on="site").assign(**about) if parts else None for parts in (tables, details)
    )
    assert whole is not None
    return Measured(whole, pieces)


def measure_tables(found: Sequence[tuple[str, list[dict[str, Any]], pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """File name (without ending) -> table, of (measure, rows, details) of every unit that took one."""
    tables: dict[str, pd.DataFrame] = {}
    for measure in dict.fromkeys(measure for measure, _, _ in found):
        of_it = [(rows, details) for name, rows, details in found if name == measure]
        tables[measure] = _in_order(pd.DataFrame([row for rows, _ in of_it for row in rows]))
        if measure in DETAILS:
            pieces = pd.concat([details for _, details in of_it], ignore_index=True)
            tables[f"{measure}-{DETAILS[measure]}"] = _in_order(pieces)
    return tables


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table[[*ABOUT, *(name for name in table.columns if name not in ABOUT)]]
