"""Charts of an evaluation, from the tables it writes: task against grounding, and what the link hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grounding.errors import BadInput
from grounding.folders import make_folder
from grounding.grounded import GROUNDED_AT
from visualize.curves import task_and_grounding
from visualize.gallery import Outcomes
from visualize.style import FAINT, RIGHT, check_formats, new_figure, save, series_colour, styled

CORRELATION_NAMES = {
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
    "point_biserial": "point-biserial r (task right)",
    "pearson_partial": "partial r, given covariates",
}
_MARKERS = {"all": "o", "any": "s", "merged": "^", "": "D"}


def draw_evaluation(
    examples: pd.DataFrame,
    joint: pd.DataFrame,
    bars: pd.DataFrame,
    out: Path | str,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw an evaluation's tables into ``out``: a scatter chart, the study's bar chart, and every correlation.

    examples, joint, bars: as ``examples``, ``joint`` and ``bars`` are written. Charts that there is nothing to draw
    for (no example with both an answer and phrases; no correlation that is defined) are left out. Returns the files.
    """
    check_formats(formats)
    known = examples[(examples["phrases"] > 0) & examples["answered"]]
    defined = joint[joint["value"].notna()]
    figures: dict[str, Figure] = {}
    if len(known):
        table = known[["id", "correct", "score"]].assign(grounding=known["mean_iou"])
        outcomes = Outcomes(table.reset_index(drop=True), "mean IoU", GROUNDED_AT)
        figures |= {"task-and-grounding": task_and_grounding(outcomes), "success-bars": success_chart(bars)}
    if len(defined):
        figures["correlations"] = correlation_chart(defined)
    make_folder(out)
    return [path for name, figure in figures.items() for path in save(figure, Path(out) / name, formats)]


@styled
def success_chart(bars: pd.DataFrame) -> Figure:
    """Share of solved examples (bars) by grounding, and how many examples each bar has (below).

    bars: columns low, high, n, success, one row a bar. Raises BadInput for no rows.
    """
    if bars.empty:
        raise BadInput("the table of bars has no rows to draw")
    figure = new_figure(6.4, 3.9, layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    look = {"width": bars["high"] - bars["low"], "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    upper.bar(bars["low"], bars["success"].fillna(0), color=RIGHT, **look)
    upper.set(ylim=(0, 1.02), ylabel="task right (share)")
    upper.set_title("How often the task is solved, by how well the phrases are grounded")
    lower.bar(bars["low"], bars["n"], color=FAINT, **look)
    lower.set(xlabel="grounding: mean IoU", ylabel="examples")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for panel in (upper, lower):
        panel.grid(axis="y")
        panel.set_axisbelow(True)
    return figure


@styled
def correlation_chart(joint: pd.DataFrame) -> Figure:
    """Every correlation with its 95 % interval, a panel for each kind, a row for each way to measure grounding.

    joint: rows with a value, columns as in ``Evaluation.joint_table``. Raises BadInput for no rows.
    """
    if joint.empty:
        raise BadInput("the table of correlations has no rows to draw")
    joint = joint.assign(label=[_label(row) for row in joint.to_dict("records")])
    labels = list(dict.fromkeys(joint["label"]))
    kinds = list(dict.fromkeys(joint["correlation"]))
    figure = new_figure(2.2 + 2.1 * len(kinds), 1.2 + 0.17 * len(labels), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        _draw_kind(panel, joint[joint["correlation"] == kind], labels)
        panel.set_title(CORRELATION_NAMES.get(kind, kind), weight="normal")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    figure.suptitle("Do task and grounding go together? By how grounding is measured", x=0.01, ha="left", weight="bold")
    figure.supxlabel("Bars: 95 % intervals over images.", size=7.5, color=FAINT, x=0.01, ha="left")
    return figure


def _draw_kind(panel: Axes, rows: pd.DataFrame, labels: Sequence[str]) -> None:
    place = rows["label"].map({label: number for number, label in enumerate(labels)}).to_numpy()
    panel.axvline(0, color=FAINT, lw=0.9, linestyle=(0, (4, 3)))
    for number, protocol in enumerate(_MARKERS):
        own = (rows["protocol"] == protocol).to_numpy()
        value, low, high = (rows[name].to_numpy(float)[own] for name in ("value", "low", "high"))
        colour = series_colour(number)
        panel.hlines(place[own], low, high, color=colour, lw=1.2)
        panel.plot(value, place[own], color=colour, marker=_MARKERS[protocol], ms=3.5, linestyle="")
    panel.grid(axis="x")
    panel.set_axisbelow(True)


def _label(row: dict) -> str:
    """What grounding is, in a line: measure, protocol, and the rank or threshold."""
    names = {"mean_iou": "mean IoU", "recall": "recall", "pointing": "pointing"}
    parts = [names.get(row["grounding"], row["grounding"]), row["protocol"]]
    parts += [f"@{row['boxes']}"] if row["boxes"] else []
    parts += [] if pd.isna(row["threshold"]) else [f"> {row['threshold']:g}"]
    return " ".join(part for part in parts if part)
