"""Charts of a study: figures against the fraction of the annotation, and probe scores by layer and fraction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grounding.errors import BadInput
from visualize.style import FAINT, check_formats, heat_colours, new_figure, save, series_colour, styled

NAMES = {
    "accuracy": "task accuracy",
    "mean_iou": "grounding (mean IoU)",
    "pearson": "task x grounding (Pearson r)",
    "point_biserial": "task x grounding (point-biserial r)",
    "pointing": "pointing",
    "recall@1": "recall@1",
}
MAIN = ("accuracy", "mean_iou", "pearson")
_MARKERS = ("o", "s", "^", "D")


def draw_study(
    figures: pd.DataFrame,
    curves: pd.DataFrame,
    layers: pd.DataFrame,
    out: Path | str,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw the tables of ``probe.study.results.Results`` into ``out``; returns the files.

    ``fractions``: task, grounding and their correlation; ``layers-MODEL``: a heat map of probe scores a model.
    """
    check_formats(formats)
    Path(out).mkdir(parents=True, exist_ok=True)
    written = save(fraction_curves(figures, curves), Path(out) / "fractions", formats)
    for (model, start), group in layers.groupby(["model", "initialisation"], sort=False):
        figure = layer_heat_map(group, f"{model}, {start}: what probes read, by layer and share of annotations")
        written += save(figure, Path(out) / f"layers-{model}-{start}", formats)
    return written


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
    told = f"Lines: means of up to {seeds} seeds; bands: 95 % over seeds. Points: one seed each, 95 % over images."
    figure.supxlabel(told, size=7.5, color=FAINT, x=0.01, ha="left")
    return figure


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
        panel.fill_between(x, curve["seeds_low"], curve["seeds_high"], color=colour, alpha=0.15, linewidth=0)
        points = figures[(figures["model"] == model) & (figures["initialisation"] == start)]
        rank = points.groupby("fraction")["seed"].rank().to_numpy()
        aside = 0.08 * (number - (len(groups) - 1) / 2) + 0.02 * (rank - rank.mean())
        middle = points["value"].to_numpy()
        reach = np.abs(np.stack([middle - points["low"], points["high"] - middle]))
        panel.errorbar(
            points["fraction"].map(place) + aside, middle, np.nan_to_num(reach.astype(float)), fmt=".", markersize=3,
            color=colour, elinewidth=0.6, alpha=0.6,
        )  # fmt: skip
    panel.set_xticks(range(len(fractions)), [f"{100 * fraction:g} %" for fraction in fractions])
    panel.set_xlabel("annotated phrases learned from")
    panel.grid(axis="y")


@styled
def layer_heat_map(
    layers: pd.DataFrame,
    title: str,
    probe: str = "linear",
    score: str = "choice_accuracy",
    condition: str = "alignment",
) -> Figure:
    """Mean probe score by site (rows, in the order of computation) and fraction (columns).

    layers: rows of one model of ``Results.layers``. Raises BadInput where there is nothing of that probe and score.
    """
    chosen = layers[(layers["probe"] == probe) & (layers["score"] == score) & (layers["condition"] == condition)]
    if chosen.empty:
        raise BadInput(f"the study's layers have no {score} of probe {probe!r}")
    sites = list(dict.fromkeys(chosen["site"]))
    table = chosen.pivot_table(index="site", columns="fraction", values="value").loc[sites]
    figure = new_figure(1.1 * table.shape[1] + 2.6, 0.32 * len(sites) + 1.6, layout="constrained")
    panel = figure.subplots()
    columns = [f"{100 * fraction:g} %" for fraction in table.columns]
    seaborn.heatmap(
        table.set_axis(columns, axis=1), ax=panel, annot=True, fmt=".2f", cmap=heat_colours(), annot_kws={"size": 7.5},
        cbar_kws={"label": score.replace("_", " ")},
    )  # fmt: skip
    panel.set(xlabel="annotated phrases learned from", ylabel="")
    panel.tick_params(axis="y", rotation=0)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=9)
    return figure
