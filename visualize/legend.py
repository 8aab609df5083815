"""The key at the foot of figures of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visualize.case import Case
from visualize.sheet import POINT, Sheet, text_width
from visualize.style import FAINT, INK, RIGHT, WRONG, cold_colours, heat_colours

_SAMPLE = 0.33  # inches from a sample's left edge to its meaning
Entry = tuple[str, str, str]  # kind, colour and meaning of a sample


@dataclass(frozen=True)
class Legend:
    """What lines, frames, marks and colours mean in drawings of some cases, at the foot of a figure.

    maps: heat from a map's mean on is drawn; signed: also maps with values for and against.
    """

    cases: Sequence[Case]
    width: float
    maps: bool = False
    signed: bool = False
    size: float = 7.5

    @property
    def height(self) -> float:
        """Height in inches."""
        return self._line * (1 + max(line for line, *_ in self._placed()))

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        for line, left, (kind, colour, text) in self._placed():
            middle = y + (line + 0.5) * self._line
            _sample(sheet, kind, colour, x + left, middle)
            sheet.text(x + left + _SAMPLE, middle + 0.36 * self.size * POINT, text, self.size, color=FAINT)

    @property
    def _line(self) -> float:
        """Height of a line in inches."""
        return 1.9 * self.size * POINT

    def _placed(self) -> list[tuple[int, float, Entry]]:
        """Line and left edge in inches of each sample; a new line is begun where one is full."""
        placed, line, left = [], 0, 0.0
        for entry in self._entries():
            wide = _SAMPLE + text_width(entry[2], self.size)
            if left and left + wide > self.width:
                line, left = line + 1, 0.0
            placed.append((line, left, entry))
            left += wide + 0.2
        return placed

    def _entries(self) -> list[Entry]:
        cases = self.cases
        entries = [("solid", INK, "true region")]
        if any(phrase.predicted for case in cases for phrase in case.phrases):
            heated = any(case.has_heatmaps for case in cases)
            entries.append(("dashed", INK, "round the peak of the model's heatmap" if heated else "model's box"))
        right = any(case.correct for case in cases)
        wrong = any(not case.correct and case.answer is not None for case in cases)
        if any(case.is_game for case in cases):
            entries.append(("frame", RIGHT, "target image, ✓ if chosen" if right else "target image"))
            entries += [("frame", WRONG, "image chosen wrongly")] if wrong else []
        elif not isinstance(cases[0].target, int):
            entries.append(("ring", RIGHT, "target"))
            entries += [("cross", RIGHT, "model's answer, right")] if right else []
            entries += [("cross", WRONG, "model's answer, wrong")] if wrong else []
        if self.maps:
            entries.append(("heat", INK, "a map's mean to its largest value"))
        if self.signed:
            entries.append(("both", INK, "against the phrase to for it"))
        return entries


def _sample(sheet: Sheet, kind: str, colour: str, x: float, middle: float) -> None:
    half = 0.05
    if kind in ("solid", "dashed"):
        style = {"linestyle": (0, (2.2, 1.6)), "linewidth": 1.6} if kind == "dashed" else {"linewidth": 2.0}
        sheet.line(x, middle, x + 0.26, middle, color=colour, solid_capstyle="butt", **style)
    elif kind in ("heat", "both"):
        values = np.linspace(0 if kind == "heat" else -1, 1, 26)
        colours = np.where(values[:, None] < 0, cold_colours()(-values), heat_colours()(values))
        sheet.shades(colours, x, middle - half, 0.26, 2 * half)
    elif kind in ("ring", "cross"):
        mark = {"marker": "o", "markerfacecolor": "none"} if kind == "ring" else {"marker": "X"}
        sheet.line(x + 0.13, middle, x + 0.13, middle, color=colour, markersize=7, **mark)
    else:
        sheet.rectangle(x + 0.03, middle - half - 0.01, 0.2, 2 * half + 0.02, colour)
        sheet.rectangle(x + 0.055, middle - half + 0.015, 0.15, 2 * half - 0.03, "white")
