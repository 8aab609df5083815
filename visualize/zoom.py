"""Enlarged parts of a panorama: round where the target is, and round where the model puts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grounding.examples import Box, Point
from visualize.canvas import Slot
from visualize.case import Case
from visualize.panel import FRAME, Window
from visualize.sheet import POINT, Sheet
from visualize.style import FAINT, INK

WIDE = 2.4  # width over height from which on an image is a panorama
_SHARE, _RATIO = 0.5, 4 / 3  # of an inset: height in that of the image, and width over height
_GAP, _SIZE = 0.2, 8.0
LETTERS = "ab"


@dataclass(frozen=True)
class Inset:
    """A part of an image. box: relative xyxy, on whole pixels. words: what is there."""

    box: Box
    words: str


def insets_of(case: Case) -> list[Inset]:
    """The parts of a panorama with a described place that are worth enlarging; none of other cases.

    Target and answer share one where both lie well inside it.
    """
    if len(case.images) != 1 or case.missing or not isinstance(case.target, tuple):
        return []
    height, width = case.sizes[0]
    if width < WIDE * height:
        return []
    target = _round(case.target, height, width)
    if not isinstance(case.answer, tuple):
        return [Inset(target, "the target")]
    if _well_inside(case.answer, target):
        return [Inset(target, "the target and the model's answer")]
    return [Inset(target, "the target"), Inset(_round(case.answer, height, width), "the model's answer")]


def _round(point: Point, height: int, width: int) -> Box:
    """A box of whole pixels round a point, moved inside the image."""
    tall = max(round(_SHARE * height), 1)
    wide = min(round(tall * _RATIO), width)
    left = min(max(round(point[0] * width - wide / 2), 0), width - wide)
    top = min(max(round(point[1] * height - tall / 2), 0), height - tall)
    return left / width, top / height, (left + wide) / width, (top + tall) / height


def _well_inside(point: Point, box: Box) -> bool:
    x1, y1, x2, y2 = box
    edge = 0.08
    across, down = (point[0] - x1) / (x2 - x1), (point[1] - y1) / (y2 - y1)
    return edge < across < 1 - edge and edge < down < 1 - edge


@dataclass(frozen=True)
class Zoom:
    """A block of a page: insets beside each other under a panorama that marks them with the same letters."""

    case: Case
    width: float
    insets: Sequence[Inset]
    tall: float = 1.9

    @property
    def height(self) -> float:
        """Height in inches."""
        return self.tall + 1.7 * _SIZE * POINT

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        height, width = self.case.sizes[0]
        x += FRAME  # in line with the panorama
        for letter, inset in zip(LETTERS, self.insets, strict=False):
            x1, y1, x2, y2 = inset.box
            scale = self.tall / ((y2 - y1) * height)  # inches a pixel, the same across and down
            shown = Slot(x, y, (x2 - x1) * width * scale, self.tall)
            left, top, right, bottom = (round(v) for v in (x1 * width, y1 * height, x2 * width, y2 * height))
            sheet.image(self.case.images[0][top:bottom, left:right], shown.x, shown.y, shown.width, shown.height)
            whole = Slot(x - x1 * width * scale, y - y1 * height * scale, width * scale, height * scale)
            window = Window(sheet, self.case, 0, whole, shown)
            window.phrases(range(len(self.case.phrases)), outlines=False)
            window.points()
            sheet.outline(shown.x, shown.y, shown.width, shown.height, edgecolor=INK, linewidth=0.9)
            sheet.text(x, y + self.tall + 1.3 * _SIZE * POINT, letter, _SIZE, weight="bold")
            sheet.text(x + 0.12, y + self.tall + 1.3 * _SIZE * POINT, f"round {inset.words}", _SIZE, color=FAINT)
            x += shown.width + _GAP
