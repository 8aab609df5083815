"""What a study found, in words and one table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.study.results import ENOUGH, Results

NAMES = {"accuracy": "accuracy", "mean_iou": "mean IoU", "pearson": "task x grounding (r)"}


def summarise_study(results: Results, missing: int = 0) -> str:
    """Markdown: a table of means over seeds a model and fraction, the gains, and how much annotation is enough.

    missing: cells that are not whole yet, which is said first.
    """
    lines = ["# How much grounding annotation is enough?", ""]
    if missing:
        cells = "1 cell of the study is" if missing == 1 else f"{missing} cells of the study are"
        lines += [f"{cells} not whole yet: what follows is of what is there so far.", ""]
    lines += ["Means over seeds, with 95 % intervals over seeds; where there is one seed, over its images.", ""]
    lines += [_table(results.curves), ""]
    for _, row in results.effects[results.effects["figure"].isin(NAMES)].iterrows():
        lines.append(
            f"* {row['model']}, {row['initialisation']}: from {row['from_fraction']:g} to {row['to_fraction']:g} of "
            f"the annotation, {NAMES[row['figure']]} changes by {_figure(row['gain'], row['low'], row['high'])} "
            f"({_counted(row['seeds'])})."
        )
    for _, row in results.enough.iterrows():
        lines.append(f"* {row['model']}, {row['initialisation']}: {_enough(row)}")
    lines += _gaps(results.gaps)
    return "\n".join([*lines, ""])


def _table(curves: pd.DataFrame) -> str:
    rows = ["| model | initialisation | fraction | " + " | ".join(NAMES.values()) + " |", "|---|---|---|" + "---|" * 3]
    for (model, start, fraction), group in curves.groupby(["model", "initialisation", "fraction"], sort=False):
        found, over = group.set_index("figure"), _over(group)
        cells = [
            _figure(*found.loc[name, ["value", f"{over}_low", f"{over}_high"]]) if name in found.index else "–"
            for name in NAMES
        ]
        rows.append(f"| {model} | {start} | {fraction:g} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _over(rows: pd.DataFrame) -> str:
    """What the intervals of some rows are over: images where each is of one seed."""
    return "images" if (rows["seeds"] == 1).all() else "seeds"


def _enough(row: pd.Series) -> str:
    if np.isnan(row["fraction"]):
        return "mean IoU is no better with all of the annotation than with none."
    interval = f" (95 % interval {row['low']:g} to {row['high']:g}, over seeds and examples)"
    doubt = f"; in {row['no_gain']:.0%} of the resamples there is no gain" if row["no_gain"] > 0 else ""
    tried = f", of {', '.join(row['tried'].split())}"
    return (
        f"{ENOUGH:.0%} of the gain in mean IoU from {row['from_fraction']:g} to {row['to_fraction']:g} of the "
        f"annotation is reached with {row['fraction']:g}{tried}{interval}{doubt}."
    )


def _gaps(gaps: pd.DataFrame) -> list[str]:
    """The expression gap at every fraction, a line a model, initialisation, question and probe."""
    lines = []
    for key, group in gaps.groupby(["model", "initialisation", "question", "probe"], sort=False):
        model, start, question, probe = key
        over = _over(group)
        told = ", ".join(
            f"{_figure(row['value'], row[f'{over}_low'], row[f'{over}_high'])} at {row['fraction']:g}"
            for _, row in group.sort_values("fraction").iterrows()
        )
        what = f"the expression gap ({question}, {probe}: mean IoU of the probe minus the model's own)"
        lines.append(f"* {model}, {start}: {what} is {told}.")
    return lines


def _counted(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _figure(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
