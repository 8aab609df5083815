"""The candidate images of one case side by side: frames, boxes, masks' outlines, heat, points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib.artist import Artist
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox, TransformedBbox

from grounding.examples import Box, Point
from visualize.canvas import Arrangement, Slot, arrange, line_places, paint
from visualize.case import Case
from visualize.sheet import POINT, Sheet, text_width
from visualize.style import (
    FAINT,
    PHRASE_COLOURS,
    RIGHT,
    RULE,
    WRONG,
    contrast,
    halo,
    phrase_colour,
)

FRAME = 0.035
LABEL_SIZE = 7.0
Outline = tuple[int, Box]  # number of the phrase, box in inches


@dataclass(frozen=True)
class Panel:
    """A block of a page: the candidates of a case, ``width`` inches wide.

    shown: number of the only phrase whose regions are drawn, polygons included; None draws the boxes of all.
    values: per candidate -1..1 ``[height, width]`` at the case's pixels, painted over it; None shows the images.
    predicted: also the model's boxes. labels: number and role under each candidate of a game.
    per_row: most candidates in a row. tallest: of an image, in inches. frame: width of the frame round a game's target
    and answer, in inches. marks: letters and boxes (relative) of parts of the first candidate that are enlarged
    elsewhere.
    """

    case: Case
    width: float
    shown: int | None = None
    values: Sequence[np.ndarray] | None = None
    predicted: bool = True
    labels: bool = True
    per_row: int = 6
    tallest: float = 2.6
    frame: float = FRAME
    marks: Sequence[tuple[str, Box]] = ()

    @cached_property
    def arrangement(self) -> Arrangement:
        """Where each candidate goes, inside a border wide enough for the frames."""
        labels = self.labels and self.case.is_game
        label = self.frame + (1.5 * LABEL_SIZE * POINT if labels else 0)
        inside = self.width - 2 * self.frame
        return arrange(self.case.sizes, inside, self.per_row, 0.05 + 2 * self.frame, label, self.tallest)

    @property
    def height(self) -> float:
        """Height in inches."""
        return self.arrangement.height + self.frame

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        for index, slot in enumerate(self.arrangement.slots):
            place = slot.moved(x + self.frame, y + self.frame)
            self._frame(sheet, index, place)
            self._image(sheet, index, place)
            window = Window(sheet, self.case, index, place)
            shown = range(len(self.case.phrases)) if self.shown is None else (self.shown,)
            window.phrases(shown, self.predicted, outlines=self.shown is not None)
            if not isinstance(self.case.target, int):
                window.points()
            if index == 0:
                self._mark(sheet, place)

    def _mark(self, sheet: Sheet, place: Slot) -> None:
        for letter, box in self.marks:
            x1, y1, x2, y2 = place.box(box)
            rim = [withStroke(linewidth=2.4, foreground="white", alpha=0.8)]
            sheet.outline(x1, y1, x2 - x1, y2 - y1, linewidth=0.9, linestyle=(0, (1, 1.2)), path_effects=rim)
            sheet.text(x1 + 0.04, y2 - 0.05, letter, 8.0, weight="bold", path_effects=rim, zorder=4)

    def _image(self, sheet: Sheet, index: int, place: Slot) -> None:
        pixels = self.case.images[index]
        if self.values is not None:
            pixels = paint(pixels, self.values[index])
        elif index in self.case.missing:
            x, y = place.points([(0.5, 0.5)])[0]
            sheet.text(x, y, "image\nnot available", 6.5, ha="center", va="center", color=FAINT, zorder=0.5)
        sheet.image(pixels, place.x, place.y, place.width, place.height)

    def _frame(self, sheet: Sheet, index: int, slot: Slot) -> None:
        case = self.case
        target, chosen = (case.is_game and index == picked for picked in (case.target, case.answer))
        colour = RIGHT if target else WRONG if chosen else RULE
        edge = self.frame if target or chosen else 0.008
        sheet.rectangle(slot.x - edge, slot.y - edge, slot.width + 2 * edge, slot.height + 2 * edge, colour)
        if not self.labels or not case.is_game:
            return
        role = "target ✓" if target and chosen else "target" if target else "chosen" if chosen else ""
        text = f"{index} {role}".strip()
        if text_width(text, LABEL_SIZE, "bold") > slot.width + 0.06:
            text = str(index)
        sheet.text(
            slot.x + slot.width / 2, slot.y + slot.height + self.frame + 1.2 * LABEL_SIZE * POINT, text, LABEL_SIZE,
            ha="center", color=colour if role else FAINT, weight="bold" if role else "normal",
        )  # fmt: skip


def needs_numbers(case: Case) -> bool:
    """Whether phrases carry numbers too, since there are more of them than colours."""
    return len(case.phrases) > len(PHRASE_COLOURS)


@dataclass(frozen=True)
class Window:
    """One candidate of a case on a page: what is drawn here is cut off at the image's edges.

    place: of the whole image, of which ``shown`` is the part to be seen; None for all of it.
    """

    sheet: Sheet
    case: Case
    index: int
    place: Slot
    shown: Slot | None = None

    @property
    def stroke(self) -> float:
        """Line width in points."""
        return next((points for width, points in ((0.9, 1.6), (0.6, 0.85)) if self.place.width > width), 0.6)

    @property
    def rimmed(self) -> float:
        """Width in inches of the line of a true region, rim included."""
        return (1.25 * self.stroke + 0.6) * POINT

    def phrases(self, numbers: Sequence[int], predicted: bool = True, outlines: bool = True) -> None:
        """Outline phrases: true regions solid, over them the model's best boxes dashed, as far as they lie here.

        outlines: also those of polygons and masks.
        """
        true: list[Outline] = []
        found: list[Outline] = []
        for number in numbers:
            phrase = self.case.phrases[number]
            if phrase.image_index == self.index:
                shapes: list[Any] = [*phrase.polygons, *_edges(phrase.masks)] if outlines else []
                for shape in shapes:
                    line = {"edgecolor": phrase_colour(number), "linewidth": 0.6 * self.stroke}
                    self._add(Polygon(self.place.points(shape)), **line)
                true += [(number, self.place.box(box)) for box in phrase.boxes]
            if predicted and phrase.predicted is not None and phrase.predicted[0] == self.index:
                found.append((number, self.place.box(phrase.predicted[1])))
        true, found = ([outline for outline in some if self._touches(outline[1])] for some in (true, found))
        for number, edges in self._inside(true):
            colour, width = phrase_colour(number), 1.25 * self.stroke
            rim = [withStroke(linewidth=self.rimmed / POINT, foreground=halo(colour), alpha=0.85)]
            self._add(Rectangle(*edges), edgecolor=colour, linewidth=width, path_effects=rim)
        for number, edges in self._inside(found):
            colour = phrase_colour(number)
            # Dashes on a light line: still seen where they run along the solid line of the true box.
            self._add(Rectangle(*edges), edgecolor=halo(colour), linewidth=self.stroke)
            self._add(Rectangle(*edges), edgecolor=colour, linewidth=self.stroke, linestyle=(0, (2.2, 1.6)))
        if needs_numbers(self.case) and len(set(numbers)) > 1:
            for number, box in [*true, *found]:
                self._tag(box, number)

    def points(self) -> None:
        """Mark the target (ring) and the answer (cross) of a spatial description."""
        marks = [(self.case.target, "o", RIGHT), (self.case.answer, "X", RIGHT if self.case.correct else WRONG)]
        for point, marker, colour in marks:
            if not isinstance(point, tuple):
                continue
            x, y = self.place.points([point])[0]
            if not self._seen(x, y):
                continue
            if marker == "o":
                rim = [withStroke(linewidth=3.4, foreground="white")]
                look = {"markersize": 11, "mfc": "none", "mec": colour, "mew": 1.8, "path_effects": rim}
            else:
                look = {"markersize": 8, "mfc": colour, "mec": "white", "mew": 0.8}
            self.sheet.line(x, y, x, y, marker=marker, **look)

    def _inside(self, outlines: Sequence[Outline]) -> Iterator[tuple[int, tuple[Point, float, float]]]:
        """Corner, width and height of each box's line: inside its edge, and inside the lines that it would hide."""
        places = line_places([box for _, box in outlines], [number for number, _ in outlines], self.rimmed)
        for (number, (x1, y1, x2, y2)), place in zip(outlines, places, strict=True):
            most = min(x2 - x1, y2 - y1) / 4
            left, top, right, bottom = (min((line + 0.5) * self.rimmed, most) for line in place)
            yield number, ((x1 + left, y1 + top), x2 - x1 - left - right, y2 - y1 - top - bottom)

    def _add(self, patch: Patch, **look: Any) -> None:
        patch.set(fill=False, **look)
        self._cut(self.sheet.page.add_artist(patch))

    def _seen(self, x: float, y: float) -> bool:
        return self.shown is None or self._touches((x, y, x, y))

    def _touches(self, box: Box) -> bool:
        """Whether a box in inches reaches into the part that is shown, if it is a part."""
        if self.shown is None:
            return True
        left, top, right, bottom = self.shown.box((0, 0, 1, 1))
        return box[0] <= right and box[2] >= left and box[1] <= bottom and box[3] >= top

    def _cut(self, artist: Artist) -> None:
        place = self.shown or self.place
        edges = Bbox.from_bounds(place.x, place.y, place.width, place.height)
        artist.set_clip_box(TransformedBbox(edges, self.sheet.page.transData))

    def _tag(self, box: Box, number: int) -> None:
        colour, place = phrase_colour(number), self.shown or self.place
        x, y = np.clip(box[:2], (place.x, place.y), (place.x + place.width, place.y + place.height))
        patch = {"facecolor": colour, "linewidth": 0, "pad": 0.6}
        look = {"va": "top", "color": contrast(colour), "bbox": patch, "clip_on": True}
        self._cut(self.sheet.text(x, y, str(number + 1), 4.5, **look))


def _edges(masks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Closed lines round the pixels of masks, relative (x, y) ``[points, 2]`` each."""
    for mask in masks:
        height, width = mask.shape
        lines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
        # Centres of pixels are at whole numbers there, the first of the image at 1.
        yield from ((np.asarray(line) - 0.5) / (width, height) for line in lines)
