"""Several evaluations of the same examples side by side: differences of every figure, paired over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations

import pandas as pd

from grounding.errors import BadInput
from grounding.evaluation import Evaluation
from grounding.evaluation_text import interval, number
from grounding.metrics.intervals import RESAMPLES, Estimate, paired_difference


def differences(evaluations: Mapping[str, Evaluation], resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Every figure that two evaluations share, first minus second, with paired 95 % intervals, for each pair of them.

    Both are over the examples and phrases that both have, and over the same images (or tangrams, or captions) in every
    resample; distances and correlations over the examples that both answer. Columns: first, second (names), figure,
    value_first, value_second, difference, low, high, n, groups, reason. Raises BadInput for fewer than two evaluations,
    and two without a common example.
    """
    if len(evaluations) < 2:
        raise BadInput(f"{len(evaluations)} evaluations; accepted: two or more to compare")
    rows = []
    for (name, one), (other_name, other) in combinations(evaluations.items(), 2):
        first, second = (evaluation.statistics() for evaluation in in_common(one, other, f"{name} and {other_name}"))
        for figure in (figure for figure in first if figure in second):
            pair = first[figure], second[figure]
            found = asdict(paired_difference(*pair, resamples, seed))
            values = dict(zip(("value_first", "value_second"), (statistic.value() for statistic in pair), strict=True))
            difference = {"difference": found.pop("value")}
            rows.append({"first": name, "second": other_name, "figure": figure, **values, **difference, **found})
    return pd.DataFrame(rows)


def in_common(one: Evaluation, other: Evaluation, names: str) -> tuple[Evaluation, Evaluation]:
    """Both over the examples and phrases that both have; ``answered`` are those that both answer.

    Raises BadInput where there is no such example.
    """

    def answered(evaluation: Evaluation) -> set[str]:
        return set(evaluation.per_example["id"][evaluation.per_example["answered"]])

    def phrases(evaluation: Evaluation) -> set[tuple[str, str]]:
        return set(zip(evaluation.per_phrase["example"], evaluation.per_phrase["phrase"], strict=True))

    pair = one, other
    examples, by_both, both = (
        set.intersection(*sets)
        for sets in zip(*((set(e.per_example["id"]), answered(e), phrases(e)) for e in pair), strict=True)
    )
    if not examples:
        raise BadInput(f"{names} have no example in common: there is nothing to compare")
    first, second = (evaluation.restricted(examples, both, by_both) for evaluation in pair)
    return first, second


def differences_told(table: pd.DataFrame) -> str:
    """The differences as a Markdown table; bold where the interval leaves out 0."""
    lines = [
        "| first | second | figure | first | second | first minus second | 95 % interval | n | note |",
        "|" + "---|" * 9,
    ]
    for row in table.to_dict("records"):
        known = not pd.isna(row["low"])
        low, high = (row["low"], row["high"]) if known else (None, None)
        estimate = Estimate(row["difference"], low, high, row["n"], row["groups"])
        apart = known and (row["low"] > 0 or row["high"] < 0)
        told = f"**{number(row['difference'])}**" if apart else number(row["difference"])
        values = (number(row["value_first"]), number(row["value_second"]), told, interval(estimate), str(row["n"]))
        note = "" if pd.isna(row["reason"]) else row["reason"]  # among texts, pandas may make NaN of None
        lines.append(f"| {' | '.join((row['first'], row['second'], row['figure'], *values, note))} |")
    return "\n".join(lines) + "\n"
