"""Where a probe of a study's cell reads best, and how many sites stand above the probe's controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from grounding.best_site import best_site
from probe.questions import QUESTIONS
from probe.settings import BASELINES
from probe.significance import LEVEL

COLUMNS = [
    *("question", "probe", "score", "site", "value", "low", "high", "chance"),
    *("selectivity", "selectivity_low", "selectivity_high", "sites_above", "sites", "n_images"),
]


def best_sites(sweep: pd.DataFrame) -> pd.DataFrame:
    """A row a question and probe of a sweep's table (``COLUMNS``), by the question's first score.

    site: of the lowest validation loss, so that test figures do not choose it, of the sweep's first seed; value: there,
    with its 95 % interval over images; selectivity: minus the probe on random labels, where that was a control;
    sites_above: of all ``sites``, those above each of the controls after Holm's correction, NaN without controls;
    n_images: of the test part.
    """
    return pd.DataFrame(_rows(sweep), columns=COLUMNS)


def _rows(sweep: pd.DataFrame) -> Iterator[dict[str, Any]]:
    asked = sweep[~sweep["probe"].isin(BASELINES)]
    for (question, probe), of_probe in asked.groupby(["question", "probe"], sort=False):
        score = QUESTIONS[str(question)].scores[0]
        main = of_probe[(of_probe["score"] == score) & (of_probe["seed"] == of_probe["seed"].iloc[0])]
        real = main[main["condition"] == question]
        best = best_site(real)
        row = {"question": question, "probe": probe, "score": score}
        row |= {name: best[name] for name in ("site", "value", "low", "high", "chance", "n_images")}
        for _, less in main[(main["condition"] == "selectivity") & (main["site"] == best["site"])].iterrows():
            row |= {"selectivity": less["value"], "selectivity_low": less["low"], "selectivity_high": less["high"]}
        above = real["p_control_holm"]
        yield row | {"sites_above": (above <= LEVEL).sum() if above.notna().any() else np.nan, "sites": len(real)}
