"""Charts of a sweep's measures: bits, data and capacity, from their tables of one run and question."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from grounding.errors import BadInput
from visualize.curves import SCORE_NAMES, draw_score, new_chart, sample_size, sites_of
from visualize.style import FAINT, INK, heat_colours, series_colour, styled

_SITES = ("site", "stage", "layer", "probe", "condition", "value", "low", "high")
_NEEDED = {
    "description-length": (*_SITES, "bits", "n_labels"),
    "description-length-portions": ("site", "probe", "condition", "labels", "bits"),
    "usable-information": _SITES,
    "learning-curve": (*_SITES, "score", "images", "chance"),
    "frontier": (*_SITES, "score", "parameters", "on_frontier", "chance"),
}
_UNIFORM = (0, (1, 1.5))


@styled
def description_length(table: pd.DataFrame, portions: pd.DataFrame) -> Figure:
    """Left: compression of the labels at each site, with controls; right: how the codes grew, each probe's shortest.

    table, portions: ``description-length.csv`` and ``description-length-portions.csv`` of a sweep, of one question.
    Raises BadInput for missing columns or no rows.
    """
    table, portions = _checked("description-length", table), _checked("description-length-portions", portions)
    prior = table[table["probe"] == "majority"].set_index(["site", "seed"])["value"]
    rest = table[table["probe"] != "majority"]
    rest = rest.assign(chance=[prior.get(key, np.nan) for key in zip(rest["site"], rest["seed"], strict=True)])
    figure = new_chart(9.6, 4.1)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_score(left, rest, sites_of(rest), blind="majority")
    left.set_ylabel("compression (uniform code / online code)")
    left.set_title("Shorter codes are higher", weight="normal")
    _code_lines(right, rest, portions, prior)
    return _finished(figure, left, "How many bits do the labels cost a probe that learns as they come?", table)


@styled
def usable_information(table: pd.DataFrame) -> Figure:
    """Bits that each site's probe gains about a phrase's candidates by its input, with controls.

    table: ``usable-information.csv`` of a sweep, of one question. Raises BadInput for missing columns or no rows.
    """
    table = _checked("usable-information", table).assign(chance=0.0)
    figure = new_chart(7.4, 4.1)
    panel = figure.subplots()
    draw_score(panel, table, sites_of(table), blind="no information")
    panel.set_ylabel("usable information (bits a phrase)")
    return _finished(figure, panel, "How many bits does each site give a probe about which region is meant?", table)


@styled
def learning_curve(table: pd.DataFrame) -> Figure:
    """Test score against train images, a panel for each probe, a line for each site, lighter to darker with depth.

    table: ``learning-curve.csv`` of a sweep, of one question; its first score is drawn. Raises BadInput as above.
    """
    return _by_depth(_checked("learning-curve", table), "images", "train images", "How many images does a probe need?")


@styled
def frontier(table: pd.DataFrame) -> Figure:
    """Test score against free parameters, a panel for each probe, a line for each site; filled: on the frontier.

    table: ``frontier.csv`` of a sweep, of one question; its first score is drawn. Raises BadInput as above.
    """
    heading = "How complex must a probe be?"
    return _by_depth(_checked("frontier", table), "parameters", "free parameters", heading, "on_frontier")


def _by_depth(table: pd.DataFrame, x: str, label: str, heading: str, filled: str | None = None) -> Figure:
    table = table[(table["score"] == table["score"].iloc[0]) & (table["seed"] == table["seed"].iloc[0])]
    probes, sites = list(table["probe"].unique()), sites_of(table)["site"]
    figure = new_chart(1.6 + 3.7 * len(probes), 4.1)
    axes = figure.subplots(1, len(probes), squeeze=False, sharey=True)[0]
    shades = dict(zip(sites, heat_colours()(np.linspace(0.15, 0.9, len(sites))), strict=True))
    for panel, probe in zip(axes, probes, strict=True):
        rows = table[table["probe"] == probe]
        for site, line in rows.groupby("site", sort=False):
            panel.plot(line[x], line["value"], color=shades[site], lw=1.3, label=site)
            solid = line[filled] if filled is not None else np.ones(len(line), dtype=bool)
            for chosen, look in ((solid, shades[site]), (~solid, "white")):
                panel.scatter(
                    line[x][chosen], line["value"][chosen], s=16, color=[look], edgecolors=[shades[site]], zorder=3
                )
        last = rows[rows["site"] == sites.iloc[-1]]
        panel.fill_between(last[x], last["low"], last["high"], color=shades[sites.iloc[-1]], alpha=0.12, linewidth=0)
        panel.axhline(rows["chance"].iloc[0], color=INK, lw=1, linestyle=_UNIFORM, label="chance")
        panel.set_xscale("log")
        _few_ticks(panel, np.unique(rows[x]))
        panel.set(xlabel=label, title=probe)
        panel.grid(axis="y")
    axes[0].set_ylabel(SCORE_NAMES.get(table["score"].iloc[0], table["score"].iloc[0]))
    note = f"Band: 95 % interval over test images, of {sites.iloc[-1]}."
    if filled is not None:
        note += "\nFilled: no simpler probe has as low a loss on the validation part."
    return _finished(figure, axes[0], heading, table, note)


def _code_lines(panel: Axes, table: pd.DataFrame, portions: pd.DataFrame, prior: pd.Series) -> None:
    """Bits sent against labels sent, in thousands: a uniform code, the prior's, each probe's at its shortest."""
    first = portions[portions["seed"] == portions["seed"].iloc[0]]
    real = table[table["condition"] == table["question"]]
    most = first["labels"].max()
    panel.plot([0, most / 1000], [0, most / 1000], color=INK, lw=1, linestyle=_UNIFORM)
    panel.text(most / 1060, most / 1000, "uniform code", ha="right", va="top", size=8, color=INK)
    for number, probe in enumerate(real["probe"].unique()):
        best = real[real["probe"] == probe].sort_values("bits").iloc[0]
        line = first[(first["site"] == best["site"]) & (first["probe"] == probe)]
        line = line[line["condition"] == best["condition"]]
        colour, label = series_colour(number), f"{probe} at {best['site']}"
        panel.plot(line["labels"] / 1000, line["bits"] / 1000, color=colour, lw=1.8, marker="o", ms=3.5, label=label)
    blind = first[first["probe"] == "majority"]
    if len(blind):
        blind = blind[blind["site"] == blind["site"].iloc[0]]
        panel.plot(blind["labels"] / 1000, blind["bits"] / 1000, color=FAINT, lw=1.3, linestyle="--", label="majority")
    panel.set(xlabel="labels sent (thousands)", ylabel="bits sent (thousands)")
    panel.set_title("How the codes grew", weight="normal")
    panel.legend(loc="upper left", fontsize=8)
    panel.grid(axis="y")


def _finished(figure: Figure, panel: Axes, heading: str, table: pd.DataFrame, note: str | None = None) -> Figure:
    figure.suptitle(heading, x=0.01, ha="left", weight="bold")
    figure.supxlabel(note or sample_size(table), size=7.5, color=FAINT, x=0.01, ha="left")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center")
    return figure


def _few_ticks(panel: Axes, values: np.ndarray) -> None:
    """The values themselves on a log axis, as many as fit."""
    step = -(-len(values) // 5)
    panel.set_xticks(values[::-1][::step][::-1])
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_locator(NullLocator())


def _checked(name: str, table: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in _NEEDED[name] if column not in table]
    if missing or table.empty:
        told = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise BadInput(f"{name} table {told}; accepted: one that probe sweep --measure wrote")
    for column, value in (("seed", 0), ("question", "alignment")):
        table = table if column in table else table.assign(**{column: value})
    return table


FIGURES: dict[str, tuple[Callable[..., Figure], str]] = {
    "description-length": (
        description_length,
        "Left: how much shorter than one bit a label the online code of each site's labels is; the dotted line is what "
        "the share of positives alone saves. Right: bits against labels sent.",
    ),
    "usable-information": (
        usable_information,
        "Bits that a probe gains about which candidates belong to a phrase by reading each site, on test images.",
    ),
    "learning-curve": (learning_curve, "Score on test images of probes that saw more and more train images."),
    "frontier": (frontier, "Score on test images of probes of rising rank (linear) or width (mlp)."),
}


def draw_measure(name: str, tables: Mapping[str, pd.DataFrame], question: str) -> Figure:
    """The figure of a measure of one question, from the tables of a sweep's measures by file name."""
    function = FIGURES[name][0]
    files = [name, "description-length-portions"] if function is description_length else [name]
    return function(*(rows[rows["question"] == question] for rows in (tables[file] for file in files)))
