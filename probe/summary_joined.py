"""The page of words about probe and task: do they go together, and is more inside than the model shows?"""

from __future__ import annotations

import pandas as pd

from probe.joined import OWN
from probe.wording import figure


def joined_lines(joined: pd.DataFrame, probe: str, site: str, few: bool) -> list[str]:
    """Sentences about one probe of one question, of one seed; site: its best. None where nothing was joined.

    few: whether there are too few images to conclude anything.
    """
    rows = joined[joined["probe"] == probe]
    lines = []
    link = _one(rows[(rows["measure"] == "pearson") & (rows["site"] == site)])
    if link is not None:
        own = _one(joined[(joined["probe"] == OWN) & (joined["measure"] == "pearson")])
        beside = "" if own is None else f" (with the model's own grounding: {figure(own)})"
        reading = "" if few else f" {_link(link)}"
        lines.append(
            f"Over {link['n']:.0f} test examples, the task score correlates with what the probe finds at that site by "
            f"r = {figure(link)}{beside}.{reading}"
        )
    gap = _one(rows[rows["measure"] == "expression_gap"])
    if gap is not None:
        reading = "" if few else f" {_gap(gap)}"
        lines.append(
            f"Expression gap (IoU of the probe at `{gap['site']}`, highest on validation, minus the model's "
            f"own): {figure(gap)}.{reading}"
        )
    return lines


def _one(rows: pd.DataFrame) -> pd.Series | None:
    return None if rows.empty or pd.isna(rows["value"].iloc[0]) else rows.iloc[0]


def _link(link: pd.Series) -> str:
    if link["low"] > 0:
        return "They go together; which of them leads to the other is not shown."
    if link["high"] < 0:
        return "Where the probe finds more, the task goes worse."
    return "Whether they go together cannot be told: the interval holds 0."


def _gap(gap: pd.Series) -> str:
    if gap["low"] > 0:
        return "The activations say where phrases are better than the model's own answers do."
    if gap["high"] < 0:
        return (
            "The probe says less than the model itself: a limit of the probe (of its training phrases, or of what it "
            "reads), and no sign that anything is missing inside."
        )
    return "Which of the two says more cannot be told: the interval holds 0."
