"""Layer × head heat maps: how well each head's map of a phrase says where the phrase is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from grounding.errors import BadInput, unknown_choice
from visualize.style import FAINT, INK, MISSING, contrast, new_figure, save, signed_colours, styled

NEEDED = ("kind", "site", "head", "scope", "measure", "value", "gain", "p_holm", "selected")
MEASURE_NAMES = {"pointing": "pointing", "iou": "mean IoU"}
ALPHA = 0.05
_CELL = 0.42  # inches


def draw_head_maps(table: pd.DataFrame, out: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """``heads-canvas`` and, for games, ``heads-candidate`` into a folder that exists; see ``head_maps``."""
    return [
        path
        for scope in table["scope"].unique()
        for path in save(head_maps(table, scope), out / f"heads-{scope}", formats)
    ]


@styled
def head_maps(table: pd.DataFrame, scope: str = "canvas", title: str | None = None) -> Figure:
    """A heat map of sites × heads for each kind of maps (across) and each measure (down).

    table: rows of ``probe.heads.score_heads`` (``NEEDED`` columns), sites in the run's order. Colours part at the
    centre baseline's value: red is better than a map that knows no phrase. A dot: better after correction; a frame: the
    head that the tuning run chose. Raises BadInput for missing columns, an unknown scope, and a table without heads.
    """
    check_heads(table)
    if scope not in set(table["scope"]):
        raise unknown_choice("scope", scope, table["scope"].unique())
    table = table[table["scope"] == scope]
    scored = table[table["gain"].notna()]
    if scored.empty:
        raise BadInput("table of heads has baselines only; accepted: one with heads")
    kinds, measures = list(dict.fromkeys(scored["kind"])), list(dict.fromkeys(scored["measure"]))
    across = [max(scored[scored["kind"] == kind]["head"].nunique(), 2) for kind in kinds]
    down = max(scored[scored["kind"] == kind]["site"].nunique() for kind in kinds)
    size = (max(_CELL * sum(across) + 1.25 * len(kinds) + 0.9, 5.6), len(measures) * (_CELL * down + 0.75) + 0.75)
    figure = new_figure(*size, layout="constrained")
    panels = figure.subplots(len(measures), len(kinds), squeeze=False, width_ratios=across)
    for row, measure in zip(panels, measures, strict=True):
        of_measure = scored[scored["measure"] == measure]
        norm = _norm(of_measure)
        for panel, kind in zip(row, kinds, strict=True):
            _draw(panel, of_measure[of_measure["kind"] == kind], norm)
            panel.set_title(f"{kind}: {MEASURE_NAMES.get(measure, measure)}", weight="normal")
        _bar(figure, list(row), norm)
    where = "on the whole canvas" if scope == "canvas" else "within the right candidate"
    figure.suptitle(title or f"Which heads say where a phrase is, {where}?", x=0.01, ha="left", weight="bold")
    figure.supxlabel(
        "Dot: above the centre baseline (Holm). Frame: chosen on the tuning run.",
        size=7.5,
        color=FAINT,
        x=0.01,
        ha="left",
    )
    return figure


def check_heads(table: pd.DataFrame) -> pd.DataFrame:
    """The table itself. Raises BadInput for missing columns."""
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise BadInput(f"table of heads lacks the columns {', '.join(missing)}; accepted: one written by probe heads")
    return table


def _norm(rows: pd.DataFrame) -> Normalize:
    """Colours of a measure: white at the centre baseline's value, as far to either side."""
    centre = float((rows["value"] - rows["gain"]).mean())
    reach = max(float((rows["value"] - centre).abs().max()), 1e-3)
    return Normalize(centre - reach, centre + reach)


def _bar(figure: Figure, panels: Sequence[Axes], norm: Normalize) -> None:
    """The colours' key, from zero on."""
    low, high = float(norm.vmin or 0), float(norm.vmax or 0)
    bar = figure.colorbar(panels[-1].collections[0], ax=panels, pad=0.01, fraction=0.04, aspect=18)
    bar.ax.set_ylim(max(low, 0), high)
    ticks = [max(low, 0), (low + high) / 2, high]
    bar.set_ticks(ticks, labels=[f"{tick:.2f}{' centre' * (tick == ticks[1])}" for tick in ticks])
    bar.ax.spines[:].set_visible(False)


def _draw(panel: Axes, rows: pd.DataFrame, norm: Normalize) -> None:
    """One kind under one measure: sites from top to bottom, heads from left to right."""
    sites, heads = list(dict.fromkeys(rows["site"])), list(dict.fromkeys(rows["head"]))
    grid = np.full((len(sites), len(heads)), np.nan)
    places = [(sites.index(site), heads.index(head)) for site, head in zip(rows["site"], rows["head"], strict=True)]
    grid[tuple(np.array(places).T)] = rows["value"]
    colours = signed_colours().with_extremes(bad=MISSING)
    panel.pcolormesh(grid, cmap=colours, norm=norm, edgecolors="white", linewidth=1)
    for (y, x), (_, row) in zip(places, rows.iterrows(), strict=True):
        ink = contrast(to_hex(colours(norm(row["value"]))))
        panel.text(x + 0.5, y + 0.55, f"{row['value']:.2f}".lstrip("0"), ha="center", va="center", size=6.5, color=ink)
        if row["p_holm"] < ALPHA:
            panel.plot(x + 0.84, y + 0.18, ".", color=ink, ms=3)
        if row["selected"]:
            panel.add_patch(_frame(x, y))
    panel.set(ylim=(len(sites), 0), xlim=(0, len(heads)))
    panel.set_yticks(np.arange(len(sites)) + 0.5, sites)
    panel.set_xticks(np.arange(len(heads)) + 0.5, heads)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_xlabel("head" if len(heads) > 1 else "heads together")


def _frame(x: int, y: int) -> Rectangle:
    return Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.4)
