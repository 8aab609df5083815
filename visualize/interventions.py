"""Charts of interventions site by site, under the curve of what probes read there."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grounding.errors import BadInput
from visualize.curves import check_sweep, draw_score, name_sites, new_chart
from visualize.style import FAINT, INK, series_colour, styled

NEEDED = ("method", "site", "stage", "layer", "target", "pairs", "condition", "score", "effect", "low", "high")
TITLES = {
    "accuracy": "Change of task accuracy",
    "mean_iou": "Change of mean IoU",
    "logit_difference": "Share of the change that is restored",
}
HEADINGS = {
    "erase": "Is it used? A concept erased at one site",
    "patch": "Where does the minimal change matter? States patched at one site",
    "knockout": "Is it looked up? Attention from phrases to regions cut",
}
_MARKERS = ("o", "s", "^", "D", "P")


@styled
def intervention_curves(table: pd.DataFrame, sweep: pd.DataFrame | None = None, title: str | None = None) -> Figure:
    """Effects at each site with 95 % intervals, a panel for each score, over what probes read at the same sites.

    table: rows of ``probe intervene`` (``NEEDED`` columns, ``n_images`` if known), of one method, in the order of
    computation. Solid: interventions; dashed and hollow: their controls. sweep: tidy table of a sweep, whose choice
    accuracy at the question of alignment is drawn on top, or None. Raises BadInput for missing columns, no rows, or
    more than one method.
    """
    table = check_interventions(table)
    method = table["method"].iloc[0]
    sites, probed = _sites(table, sweep)
    panels = list(table.groupby(["score", "pairs"], sort=False))
    count = len(panels) + (probed is not None)
    figure = new_chart(max(6.4, min(0.42 * len(sites) + 3.6, 12)), 0.8 + 2.3 * count)
    axes = list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])
    if probed is not None:
        _draw_probes(axes.pop(0), probed, sites)
    targets = list(dict.fromkeys(table["target"]))
    for panel, ((score, pairs), rows) in zip(axes, panels, strict=True):
        _draw_effects(panel, rows, sites, targets)
        panel.set_title(TITLES.get(str(score), str(score)) + (f": {pairs} changed" if pairs else ""), weight="normal")
    for panel in figure.axes[:-1]:
        panel.set_xlabel("")
    figure.suptitle(title or HEADINGS.get(method, method), x=0.01, ha="left", weight="bold")
    figure.supxlabel(_note(table), size=7.5, color=FAINT, x=0.01, ha="left")
    return figure


def check_interventions(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are drawn. Raises BadInput if there are none, or for missing columns, or several methods."""
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise BadInput(f"interventions lack the columns {', '.join(missing)}; accepted: a table of probe intervene")
    table = table[table["condition"] != "specific"]
    if table.empty:
        raise BadInput("interventions have no rows to draw")
    if table["method"].nunique() > 1:
        raise BadInput(f"interventions are of methods {', '.join(table['method'].unique())}; accepted: one a chart")
    return table


def _sites(table: pd.DataFrame, sweep: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The sites in order, and the rows of the sweep that are drawn: those of probes for choice accuracy."""
    columns = ["site", "stage", "layer"]
    own = table.drop_duplicates("site")[columns].reset_index(drop=True)
    if sweep is not None and "question" in sweep:
        sweep = sweep[sweep["question"] == "alignment"]
    if sweep is None or sweep.empty:
        return own, None
    probed = check_sweep(sweep)
    probed = probed[(probed["score"] == "choice_accuracy") & (probed["seed"] == probed["seed"].iloc[0])]
    swept = probed.drop_duplicates("site")[columns].reset_index(drop=True)
    sites = swept if set(own["site"]) <= set(swept["site"]) else own
    probed = probed[probed["site"].isin(sites["site"])]
    return sites, (None if probed.empty else probed)


def _draw_probes(panel: Axes, probed: pd.DataFrame, sites: pd.DataFrame) -> None:
    draw_score(panel, probed, sites)
    panel.set_title("What probes read: choice accuracy", weight="normal")
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _draw_effects(panel: Axes, rows: pd.DataFrame, sites: pd.DataFrame, targets: list[str]) -> None:
    place = {site: number for number, site in enumerate(sites["site"])}
    series = list(rows.groupby(["target", "condition"], sort=False))
    for number, ((target, condition), own) in enumerate(series):
        colour = series_colour(targets.index(target))
        aside = 0.5 * ((number + 0.5) / len(series) - 0.5)
        look: dict[str, Any] = {"color": colour, "marker": _MARKERS[targets.index(target) % len(_MARKERS)], "ms": 4.5}
        label = target if condition == "intervention" else f"{target}, control"
        look |= {"linestyle": "-", "lw": 1.6} if condition == "intervention" else {
            "linestyle": "--", "lw": 1.0, "mfc": "white"
        }  # fmt: skip
        for first, (_, part) in enumerate(own.groupby("stage", sort=False)):
            x = part["site"].map(place) + aside
            panel.vlines(x, part["low"], part["high"], color=colour, alpha=0.45, linewidth=look["lw"])
            panel.plot(x, part["effect"], **look, label=label if first == 0 else None)
    panel.axhline(0, color=INK, lw=0.8, linestyle=(0, (1, 1.5)))
    if (rows["score"] == "logit_difference").all():
        panel.axhline(1, color=INK, lw=0.8, linestyle=(0, (1, 1.5)))
    name_sites(panel, sites)
    panel.grid(axis="y")
    panel.set_axisbelow(True)
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _note(table: pd.DataFrame) -> str:
    note = "Bars: 95 % intervals over images, of paired differences."
    if (table["score"] == "logit_difference").all():
        note = "0: as in the corrupted example, 1: as in the clean one. Bars: 95 % intervals over images."
    return f"{note} n = {table['n_images'].max()} images." if "n_images" in table else note
