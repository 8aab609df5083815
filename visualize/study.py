"""Charts of a study: figures against the fraction of the annotation, and probe scores by layer and fraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grounding.errors import BadInput
from visualize.style import FAINT, check_formats, heat_colours, new_figure, save, series_colour, signed_colours, styled

GAP = "expression_gap"
NAMES = {
    "accuracy": "task accuracy",
    "accuracy@80px": "task accuracy (within 80 pixels)",
    "mean_distance": "mean distance (pixels)",
    "mean_iou": "grounding (mean IoU)",
    "pearson": "task x grounding (Pearson r)",
    "point_biserial": "task x grounding (point-biserial r)",
    "pointing": "pointing",
    GAP: "expression gap (probe - model)",
    "recall@1": "recall@1",
}
MAIN = ("accuracy", "accuracy@80px", "mean_iou", "pearson", GAP)
LEARNED = "share of the annotation learned from"
_MARKERS = ("o", "s", "^", "D")


def draw_study(
    tables: Mapping[str, pd.DataFrame], out: Path | str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw the tables of ``probe.study.results.Results``, by name, into ``out``; returns the files.

    ``fractions``: task, grounding and their correlation, and the expression gap where it is known;
    ``layers-QUESTION-PROBE-MODEL-INITIALISATION``: a heat map of the question's first score;
    ``METHOD-TARGET-SCORE-MODEL-INITIALISATION``: one of what interventions change beyond their control.
    """
    check_formats(formats)
    Path(out).mkdir(parents=True, exist_ok=True)
    written = save(fraction_curves(*_with_gaps(tables)), Path(out) / "fractions", formats)
    layers = tables["layers"]
    real = layers[layers["condition"] == layers["question"]]
    for key, group in real.groupby(["question", "probe", "model", "initialisation"], sort=False):
        question, probe, model, start = key
        main = group[group["score"] == group["score"].iloc[0]]
        score = main["score"].iloc[0].replace("_", " ")
        title = f"{model}, {start}: {question}, {probe} probe"
        figure = site_heat_map(main, title, score, chance=main["chance"].mean())
        written += save(figure, Path(out) / f"layers-{question}-{probe}-{model}-{start}", formats)
    effects = tables["interventions"]
    for key, group in effects.groupby(["model", "initialisation", "method", "target", "score"], sort=False):
        model, start, method, target, score = key
        title = f"{model}, {start}: {method} {target}, beyond the control"
        figure = site_heat_map(group, title, f"change of {NAMES.get(score, score)}", signed=True)
        written += save(figure, Path(out) / f"{method}-{target}-{score}-{model}-{start}".replace(" ", "-"), formats)
    return written


def _with_gaps(tables: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures and curves, with the expression gap of the first question and probe that have one as a further curve."""
    figures, curves, gaps = tables["figures"], tables["curves"], tables["gaps"]
    if gaps.empty:
        return figures, curves
    of_first = (gaps["question"] == gaps["question"].iloc[0]) & (gaps["probe"] == gaps["probe"].iloc[0])
    added = gaps[of_first].assign(figure=GAP)
    alone = added[added["seeds"] == 1].rename(columns={"images_low": "low", "images_high": "high"}).assign(seed=0)
    return _with_rows(figures, alone), _with_rows(curves, added)


def _with_rows(table: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """A table and more rows, of which only its own columns count."""
    return pd.concat([table, more[[name for name in table.columns if name in more]]])


@styled
def fraction_curves(figures: pd.DataFrame, curves: pd.DataFrame, names: Sequence[str] = MAIN) -> Figure:
    """Each figure against the fraction: a line through the means over seeds, a point a seed with its interval over
    images, a band where there are seeds for an interval.

    figures, curves: as ``Results`` has them. Raises BadInput where none of the figures is there.
    """
    names = [name for name in names if name in set(curves["figure"])]
    if not names:
        raise BadInput("the study's tables have no figure to draw")
    figure = new_figure(3.6 * len(names) + 1.4, 3.6, layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(axes, names, strict=True):
        _draw_panel(panel, figures[figures["figure"] == name], curves[curves["figure"] == name])
        panel.set_title(NAMES.get(name, name), weight="normal")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.suptitle("How much annotation is enough?", x=0.01, ha="left", weight="bold")
    seeds = int(curves["seeds"].max())
    told = "Points: one seed each, 95 % over images. Fractions are not to scale."
    if seeds > 1:
        told = told.replace(":", " (none of the expression gap):", 1) if GAP in names else told
        told = f"Lines: means of up to {seeds} seeds; bands: 95 % over seeds. {told}"
    figure.supxlabel(told, size=7.5, color=FAINT, x=0.01, ha="left")
    return figure


def _bounds(figure: str) -> tuple[float, float]:
    """Between which values a figure can lie: Student's t, of which the bands are, knows of no bounds."""
    if figure in ("pearson", "point_biserial", GAP):
        return -1.0, 1.0
    return 0.0, np.inf if figure == "mean_distance" else 1.0


def _draw_panel(panel: Axes, figures: pd.DataFrame, curves: pd.DataFrame) -> None:
    fractions = sorted(curves["fraction"].unique())
    place = {fraction: number for number, fraction in enumerate(fractions)}
    groups = list(curves.groupby(["model", "initialisation"], sort=False))
    for number, ((model, start), curve) in enumerate(groups):
        curve = curve.sort_values("fraction")
        x = curve["fraction"].map(place).to_numpy(dtype=float)
        colour, marker = series_colour(number), _MARKERS[number % len(_MARKERS)]
        label = model if curves["initialisation"].nunique() == 1 else f"{model}, {start}"
        panel.plot(x, curve["value"], color=colour, marker=marker, markersize=4, label=label)
        low, high = (curve[name].clip(*_bounds(curve["figure"].iloc[0])) for name in ("seeds_low", "seeds_high"))
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        points = figures[(figures["model"] == model) & (figures["initialisation"] == start)]
        if points.empty:
            continue  # of this figure the cells are not told one by one
        rank = points.groupby("fraction")["seed"].rank().to_numpy()
        aside = 0.08 * (number - (len(groups) - 1) / 2) + 0.02 * (rank - rank.mean())
        middle = points["value"].to_numpy()
        reach = np.abs(np.stack([middle - points["low"], points["high"] - middle]))
        panel.errorbar(
            points["fraction"].map(place) + aside, middle, np.nan_to_num(reach.astype(float)), fmt=".", markersize=3,
            color=colour, elinewidth=0.6, alpha=0.6,
        )  # fmt: skip
    panel.set_xticks(range(len(fractions)), [f"{100 * fraction:g} %" for fraction in fractions])
    panel.set_xlabel(LEARNED)
    panel.grid(axis="y")


@styled
def site_heat_map(
    rows: pd.DataFrame, title: str, label: str, signed: bool = False, chance: float | None = None
) -> Figure:
    """Mean over seeds by site (rows, in the order of computation) and fraction (columns).

    rows: columns site, fraction, value, one a cell. label: of the values. signed: they are changes, so that no change
    is in the middle of the colours. chance: where the colours begin, if nothing is below. Raises BadInput for no rows.
    """
    if rows.empty:
        raise BadInput("the study's table has no sites to draw")
    sites = list(dict.fromkeys(rows["site"]))
    table = rows.pivot_table(index="site", columns="fraction", values="value").loc[sites]
    figure = new_figure(1.1 * table.shape[1] + 2.6, 0.32 * len(sites) + 1.6, layout="constrained")
    panel = figure.subplots()
    columns = [f"{100 * fraction:g} %" for fraction in table.columns]
    reach = table.abs().max(axis=None) or 1.0
    digits = 2 if reach >= 0.05 else 3
    colours = {"cmap": signed_colours(), "vmin": -reach, "vmax": reach} if signed else {"cmap": heat_colours()}
    if chance is not None:
        colours["vmin"] = min(chance, table.min(axis=None))
        label = f"{label} (chance {chance:.2f})"
    seaborn.heatmap(
        table.set_axis(columns, axis=1), ax=panel, annot=table.map(lambda value: f"{value:z.{digits}f}"), fmt="",
        annot_kws={"size": 7.5}, cbar_kws={"label": label}, **colours,
    )  # fmt: skip
    panel.set(xlabel=LEARNED, ylabel="")
    panel.tick_params(axis="y", rotation=0)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=9)
    return figure
