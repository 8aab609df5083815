"""What a study found, in words and one table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from grounding.values import counted
from probe.study.gains import ENOUGH
from probe.study.results import Results
from probe.study.seeds import mean_over_seeds
from probe.summary import FEWEST_IMAGES

_SCORES = (("value", "low", "high"), ("selectivity", "selectivity_low", "selectivity_high"))
NAMES = {
    "accuracy": "accuracy",
    "accuracy@80px": "accuracy within 80 pixels",
    "mean_iou": "mean IoU",
    "pearson": "task x grounding (r)",
}


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
            f"the annotation, {NAMES[row['figure']]} changes by {_gain(row)}."
        )
    for _, row in results.enough.iterrows():
        lines.append(f"* {row['model']}, {row['initialisation']}: {_enough(row)}")
    lines += _gaps(results.gaps)
    if len(results.best):
        lines += ["", "## What a probe reads", "", *_best(results.best), *_few(results.best)]
    return "\n".join([*lines, ""])


def _table(curves: pd.DataFrame) -> str:
    names = {name: told for name, told in NAMES.items() if name in set(curves["figure"])}
    head = f"| model | initialisation | fraction | {' | '.join(names.values())} |"
    rows = [head, "|---|---|---|" + "---|" * len(names)]
    for (model, start, fraction), group in curves.groupby(["model", "initialisation", "fraction"], sort=False):
        found, over = group.set_index("figure"), _over(group)
        cells = [
            _figure(*found.loc[name, ["value", f"{over}_low", f"{over}_high"]]) if name in found.index else "–"
            for name in names
        ]
        rows.append(f"| {model} | {start} | {fraction:g} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _over(rows: pd.DataFrame) -> str:
    """What the intervals of some rows are over: images where each is of one seed."""
    return "images" if (rows["seeds"] == 1).all() else "seeds"


def _enough(row: pd.Series) -> str:
    figure, first, last = NAMES[row["figure"]], f"{row['from_fraction']:g}", f"{row['to_fraction']:g}"
    if np.isnan(row["fraction"]):
        return f"{figure} is no better with {last} of the annotation than with {first}."
    interval = f" (95 % interval {row['low']:g} to {row['high']:g}, over seeds and images)"
    doubt = f"; in {row['no_gain']:.1%} of the resamples there is no gain" if row["no_gain"] > 0 else ""
    tried = f", of {', '.join(row['tried'].split())}"
    return (
        f"{ENOUGH:.0%} of the gain in {figure} from {first} to {last} of the annotation is reached with "
        f"{row['fraction']:g}{tried}{interval}{doubt}."
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


def _best(best: pd.DataFrame) -> list[str]:
    """A table of the best sites, means over seeds, and of how many sites of each seed are above the controls."""
    lines = [
        "At the best site, that of the lowest validation loss; selectivity: minus what the same probe scores on random",
        "labels; sites above: all its controls, after Holm's correction. Of several seeds, means with 95 % intervals",
        "over them, and the site (where they differ) and the number of each.",
        "",
        "| model | initialisation | fraction | probe | best site | score | chance | selectivity | sites above |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ["model", "initialisation", "question", "probe", "fraction"]
    for (model, start, question, probe, fraction), rows in best.groupby(keys, sort=False):
        sites = ", ".join(f"`{site}`" for site in (rows["site"] if rows["site"].nunique() > 1 else rows["site"][:1]))
        score, less = (_mean(rows, name, *bounds) for name, *bounds in _SCORES)
        above = ", ".join(f"{count:.0f}" for count in rows["sites_above"].dropna())
        above = f"{above} of {rows['sites'].iloc[0]}" if above else "–"
        lines.append(
            f"| {model} | {start} | {fraction:g} | {question}, {probe} | {sites} | {score} | "
            f"{rows['chance'].mean():.3f} | {less} | {above} |"
        )
    return lines


def _few(best: pd.DataFrame) -> list[str]:
    """What was asked of so few test images that nothing follows from it."""
    images = best.groupby("question", sort=False)["n_images"].min()
    return [
        f"\nProbes of {question} were tested on {counted(int(count), 'image')}, too few to conclude anything from "
        f"their figures and gaps: at least {FEWEST_IMAGES} are needed."
        for question, count in images[images < FEWEST_IMAGES].items()
    ]


def _mean(rows: pd.DataFrame, name: str, low: str, high: str) -> str:
    """Mean over seeds with its interval; of one seed, its interval over images."""
    if rows[name].isna().all():
        return "–"
    if len(rows) == 1:
        return _figure(*rows[[name, low, high]].iloc[0])
    return _figure(*mean_over_seeds(rows[name].to_numpy()))


def _gain(row: pd.Series) -> str:
    """A gain with its intervals over images and over seeds, as far as there are any."""
    intervals = [
        f"[{row[low]:.3f}, {row[high]:.3f}] over {what}"
        for low, high, what in (("images_low", "images_high", "images"), ("low", "high", "seeds"))
        if not np.isnan(row[low])
    ]
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
    return f"{row['gain']:.3f} ({'; '.join([*intervals, seeds])})"


def _figure(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
