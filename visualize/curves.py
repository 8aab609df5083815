"""Charts of tables: what probes read at each site, and task against grounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grounding.errors import BadInput, unknown_choice
from grounding.values import counted, percent
from visualize.gallery import Outcomes
from visualize.style import FAINT, INK, RIGHT, WRONG, new_figure, series_colour, styled

NEEDED = ("site", "stage", "layer", "probe", "condition", "score", "value", "low", "high", "chance")
SCORE_NAMES = {
    "choice_accuracy": "choice accuracy",
    "auc": "area under the ROC curve",
    "average_precision": "average precision",
    "iou": "mean IoU",
    "recall": "recall (IoU of at least 0.5)",
}
# Colour-blind readers can tell them from each other and from the first two series: in lightness too.
BASELINES = {
    "concatenation": ("#7a1f5c", "v"),
    "phrase-only": ("#222222", "D"),
    "region-only": ("#3fb38f", "P"),
    "majority": ("#8a8a8a", "X"),
}
DIFFERENCES = ("selectivity", *(f"above-{name}" for name in ("position-only", "random-model", *BASELINES)))
# Controls of one probe share its colour, and differ in their dashes.
_DASHES = {"control-labels": "--", "position-only": (0, (1, 1.2)), "random-model": (0, (5, 1.5, 1, 1.5))}
_MARKERS = ("o", "s", "^", "D", "P", "X")


@styled
def layer_curves(table: pd.DataFrame, scores: Sequence[str] | None = None, title: str | None = None) -> Figure:
    """What each probe reads at each site, its controls and 95 % bands, a panel for each score.

    table: rows of a sweep (``NEEDED`` columns; ``seed``, ``n_phrases``, ``n_images`` if known), sites in the run's
    order, of one ``question`` (alignment, if the column is missing). Of several seeds the first has its band, the
    others are thin lines. Differences (``selectivity`` and the like) are left out. scores: which, in order; None
    for all of the table.
    Raises BadInput for missing columns, no rows, or an unknown score.
    """
    table = check_sweep(table)
    present = list(dict.fromkeys(table["score"]))
    chosen = present if scores is None else list(scores)
    for score in chosen:
        if score not in present:
            raise unknown_choice("score", score, present)
    sites = sites_of(table)
    width = 6.4 if len(chosen) == 1 else 4.4 * len(chosen)
    figure = new_chart(max(width, min(0.3 * len(sites) + 2, 12)), 4.1)
    axes = figure.subplots(1, len(chosen), squeeze=False)[0]
    for panel, score in zip(axes, chosen, strict=True):
        draw_score(panel, table[table["score"] == score], sites)
        panel.set_title(SCORE_NAMES.get(score, score), weight="normal")
    heading = title or "Which region does a phrase mean? What probes read at each site"
    figure.suptitle(heading, x=0.01, ha="left", weight="bold")
    figure.supxlabel(sample_size(table), size=7.5, color=FAINT, x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def sites_of(table: pd.DataFrame) -> pd.DataFrame:
    """The sites of a table in their order: site, stage, layer."""
    return table.drop_duplicates("site")[["site", "stage", "layer"]].reset_index(drop=True)


def new_chart(width: float, height: float) -> Figure:
    """A figure whose panels keep clear of each other, in inches."""
    figure = new_figure(width, height, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.07)  # type: ignore[union-attr,call-arg]
    return figure


def check_sweep(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a sweep's table that are drawn. Raises BadInput if there are none, or for missing columns."""
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise BadInput(f"sweep table lacks the columns {', '.join(missing)}; accepted: one written by a sweep")
    table = table[~table["condition"].isin(DIFFERENCES)]
    if table.empty:
        raise BadInput("sweep table has no rows to draw")
    table = table if "question" in table else table.assign(question="alignment")
    return table if "seed" in table else table.assign(seed=0)


def draw_score(panel: Axes, table: pd.DataFrame, sites: pd.DataFrame, blind: str = "chance") -> None:
    """One panel: x is the site's place in the run; lines break between stages; what has bars is drawn side by side.

    blind: what the column ``chance`` is called in the legend.
    """
    place = {site: number for number, site in enumerate(sites["site"])}
    names = list(dict.fromkeys(table["probe"]))
    main = [name for name in names if name not in BASELINES]
    series = list(table.groupby(["probe", "condition"], sort=False))
    spread = min(0.03 * len(series) * len(sites), 0.8)  # of few sites, marks keep near their own
    for number, ((probe, condition), rows) in enumerate(series):
        real = condition == rows["question"].iloc[0]
        look = _look(str(probe), None if real else str(condition), main)
        aside = spread * ((number + 0.5) / len(series) - 0.5)
        seeds = list(dict.fromkeys(rows["seed"]))
        for seed in seeds:
            for stage, part in rows[rows["seed"] == seed].groupby("stage", sort=False):
                label = look["label"] if stage == rows["stage"].iloc[0] else None
                banded = look["linestyle"] == "-" and len(part) > 1
                x = part["site"].map(place) + (0 if banded else aside)
                _draw_line(panel, x, part, {**look, "label": label}, seed == seeds[0], banded)
    _draw_chance(panel, table, place, blind)
    if panel.dataLim.height == 0 and 0 <= panel.dataLim.y0 <= 1:  # as a recall of 0 everywhere: no ticks below 0
        panel.set_ylim(-0.05, 1.05)
    name_sites(panel, sites)
    panel.grid(axis="y")
    panel.set_axisbelow(True)


def _draw_line(panel: Axes, x: pd.Series, part: pd.DataFrame, look: dict[str, Any], first: bool, banded: bool) -> None:
    """One series within one stage: with its interval for the first seed, thin for the others."""
    colour = look["color"]
    if not first:
        panel.plot(x, part["value"], color=colour, linestyle=look["linestyle"], lw=0.7, alpha=0.45)
        return
    if banded:
        shades: dict[str, Any] = {"facecolor": (colour, 0.08), "edgecolor": (colour, 0.4), "linewidth": 0.6}
        panel.fill_between(x, part["low"], part["high"], **shades)
    else:
        panel.vlines(x, part["low"], part["high"], color=colour, alpha=0.4, linewidth=look["lw"])
    panel.plot(x, part["value"], **look)


def _draw_chance(panel: Axes, table: pd.DataFrame, place: dict[str, int], blind: str) -> None:
    rows = table[table["condition"] == table["question"]].drop_duplicates("site")
    for number, (_, part) in enumerate(rows.groupby("stage", sort=False)):
        x, y = part["site"].map(place).to_numpy(), part["chance"].to_numpy()
        ends = np.array([x[0] - 0.4, *x, x[-1] + 0.4]), np.array([y[0], *y, y[-1]])
        panel.plot(*ends, color=INK, lw=1, linestyle=(0, (1, 1.5)), label=blind if number == 0 else None)


def _look(probe: str, condition: str | None, main: Sequence[str]) -> dict[str, Any]:
    """How a series is drawn; condition: None for answers to the real question."""
    if probe in BASELINES:
        label, (colour, marker) = f"{probe} control", BASELINES[probe]
        return {"color": colour, "marker": marker, "linestyle": "--", "lw": 1.1, "ms": 3.5, "label": label}
    colour, marker = series_colour(main.index(probe)), _MARKERS[main.index(probe) % len(_MARKERS)]
    if condition is None:
        return {"color": colour, "marker": marker, "linestyle": "-", "lw": 1.8, "ms": 4.5, "label": probe}
    label = f"{probe}, {condition.replace('-', ' ')}"
    dashes = _DASHES.get(condition, "--")
    return {"color": colour, "marker": marker, "linestyle": dashes, "lw": 1.1, "ms": 4, "mfc": "white", "label": label}


def name_sites(panel: Axes, sites: pd.DataFrame) -> None:
    """Ticks for sites in order: their layers where all are of one stage, else their names, and lines between stages."""
    stages = list(dict.fromkeys(sites["stage"]))
    panel.set_xlim(-0.5, len(sites) - 0.5)
    if len(stages) == 1:
        step = -(-len(sites) // 16)
        panel.set_xticks(range(0, len(sites), step), sites["layer"].astype(str)[::step])
        panel.set_xlabel("layer" if stages[0] in ("layer", "layers") else f"layer ({stages[0]})")
        return
    panel.set_xticks(range(len(sites)), sites["site"], rotation=50, ha="right", rotation_mode="anchor")
    changes = np.flatnonzero(sites["stage"].to_numpy()[1:] != sites["stage"].to_numpy()[:-1])
    for border in changes:
        panel.axvline(border + 0.5, color="#e0e0e0", lw=0.8, zorder=0)


def sample_size(table: pd.DataFrame) -> str:
    """What intervals and thin lines are, and over how much."""
    parts = ["Bands and bars: 95 % intervals over images."]
    if {"n_phrases", "n_images"} <= set(table):
        phrases, images = (table[name].iloc[0] for name in ("n_phrases", "n_images"))
        parts.append(f"n = {phrases} test phrases in {images} images.")
    if table["seed"].nunique() > 1:
        parts.append(f"Thin lines: further seeds ({table['seed'].nunique() - 1}).")
    return " ".join(parts)


@styled
def task_and_grounding(outcomes: Outcomes, note: str | None = None) -> Figure:
    """Every example's task score against its grounding, and how many examples fall in each quadrant.

    note: figures that go with it (a correlation with its interval), computed elsewhere and printed below.
    Raises BadInput if no example has both.
    """
    table = outcomes.linked
    if table.empty:
        raise BadInput("no example of this run has a known grounding and a task: there is nothing to draw")
    figure = new_chart(7.6, 3.7)
    left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    _scatter(left, table, outcomes)
    _quadrant_counts(right, table, outcomes)
    unknown = len(outcomes.table) - len(table)
    left_out = f"Left out: {counted(unknown, 'example')} without a known grounding or a task." if unknown else ""
    if note or left_out:
        figure.supxlabel(f"{note or ''} {left_out}".strip(), size=7.5, color=FAINT, x=0.01, ha="left")
    return figure


def _scatter(panel: Axes, table: pd.DataFrame, outcomes: Outcomes) -> None:
    shade = float(np.clip(12 / np.sqrt(len(table)), 0.25, 0.8))
    look: dict[str, Any] = {"s": 20, "alpha": shade, "linewidths": 0.3, "edgecolors": "white"}
    for correct, marker, colour in ((True, "o", RIGHT), (False, "X", WRONG)):
        rows = table[table["correct"] == correct]
        label = f"task {'right' if correct else 'wrong'} ({len(rows)})"
        points = panel.scatter(rows["grounding"], rows["score"], marker=marker, color=colour, label=label, **look)
        points.set_rasterized(len(table) > 2000)  # an SVG of thousands of marks is slow to open
    panel.axvline(outcomes.threshold, color=FAINT, lw=0.9, linestyle=(0, (4, 3)))
    panel.set(xlim=(-0.03, 1.03), xlabel=f"grounding: {outcomes.measure}", ylabel="task score (higher is better)")
    panel.set_title("Each example", pad=20)
    panel.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=2, handletextpad=0.1, columnspacing=1.2)
    panel.grid()
    panel.set_axisbelow(True)


def _quadrant_counts(panel: Axes, table: pd.DataFrame, outcomes: Outcomes) -> None:
    grounded = table["grounding"] >= outcomes.threshold
    for x, correct in enumerate((True, False)):
        for y, ground in enumerate((True, False)):
            count = int(((table["correct"] == correct) & (grounded == ground)).sum())
            share = count / len(table)
            colour = RIGHT if correct else WRONG
            panel.fill([x + 0.02, x + 0.98, x + 0.98, x + 0.02], [y + 0.02, y + 0.02, y + 0.98, y + 0.98],
                       color=colour, alpha=0.08 + 0.5 * share, linewidth=0)  # fmt: skip
            panel.text(x + 0.5, y + 0.44, str(count), ha="center", va="center", size=16, weight="bold")
            panel.text(
                x + 0.5, y + 0.66, f"{percent(count, len(table))} %", ha="center", va="center", size=8.5, color=INK
            )
    panel.set(xlim=(0, 2), ylim=(2, 0), aspect="auto")
    panel.set_xticks((0.5, 1.5), ("task right", "task wrong"), size=8.5, color=INK)
    names = (f"grounded\n(≥ {outcomes.threshold:g})", f"not\n(< {outcomes.threshold:g})")
    panel.set_yticks((0.5, 1.5), names, size=8.5, color=INK)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_title("How many in each quadrant", pad=20)
