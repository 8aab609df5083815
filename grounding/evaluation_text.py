"""Figures and what they rest on, in words: the lines of an evaluation's Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from grounding.metrics.heatmaps import Threshold
from grounding.metrics.intervals import Estimate
from grounding.metrics.joint import Correlation


def figure_lines(summary: Mapping[str, Estimate]) -> list[str]:
    """A Markdown table of figures by name: value, 95 % interval, p, n, groups, note."""
    lines = ["| figure | value | 95 % interval | p | n | groups | note |", "|---|---|---|---|---|---|---|"]
    for name, figure in summary.items():
        p = figure.p if isinstance(figure, Correlation) else None
        cells = (name, number(figure.value), interval(figure), number(p, 4), str(figure.n), str(figure.groups))
        lines.append(f"| {' | '.join(cells)} | {figure.reason or ''} |")
    return lines


def number(value: float | None, digits: int = 3) -> str:
    """The value, or nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def interval(figure: Estimate) -> str:
    """From where to where, or nothing."""
    return "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}"


def quadrants_told(quadrants: pd.DataFrame, grounded_at: float) -> str:
    """The four counts in a sentence."""

    def told(correct: bool, grounded: bool, count: int) -> str:
        return f"{'right' if correct else 'wrong'} and {'grounded' if grounded else 'not'}: {count}"

    parts = [told(*row) for row in zip(*(quadrants[name] for name in ("correct", "grounded", "count")), strict=True)]
    return f"Task and grounding (mean IoU of at least {grounded_at:g}): {', '.join(parts)}."


def about_lines(about: Mapping[str, Any]) -> list[str]:
    """Whose predictions on what, as one line; none where it is not known."""
    if not about:
        return []
    of = about.get("checkpoint") or f"the predictions in {about['predictions']}"
    first = "" if about["limit"] is None else f", the first {about['limit']:,} examples"
    return [f"Of {of} on {about['benchmark']} {about['split']}{first}."]


def threshold_told(threshold: Threshold | float | None) -> str:
    """The threshold of heatmaps and where it is from, in a sentence."""
    if threshold is None:
        return "Ranked boxes: no threshold."
    if isinstance(threshold, Threshold):
        best = {"iou": "mean IoU", "recall": "recall@1"}[threshold.criterion]
        return f"Threshold of heatmaps: {threshold.value:g}, of the best {best} on {threshold.split}."
    return f"Threshold of heatmaps: {threshold:g}."
