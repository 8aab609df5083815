"""A page measured in inches from its top left corner, so that nothing is placed by trial and error.

Drawings are planned first (every block knows its height) and drawn once the page's size is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.transforms import Affine2D
from PIL import Image

from grounding.examples import Point
from visualize.style import INK, RULE, new_figure

POINT = 1 / 72
_BLOCKS = 3  # times that an image is enlarged, from which on its pixels are seen as squares
_PATHS = TextToPath()


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line of text in inches, trailing spaces included; nothing in it is read as mathematics.

    >>> text_width("$a_1$", 10) > text_width("a", 10)
    True
    """
    if not text:
        return 0.0
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return _PATHS.get_text_width_height_descent(text, font, ismath=False)[0] * POINT


def shorten(text: str, width: float, size: float, weight: str = "normal") -> str:
    """The text, cut with an ellipsis where it is wider than ``width`` inches."""
    if text_width(text, size, weight) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size, weight) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def break_lines(text: str, width: float, size: float) -> list[str]:
    """The text in lines of at most ``width`` inches, broken between words."""
    lines: list[str] = []
    for word in text.split():
        word = shorten(word, width, size)
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


class _Picture(AxesImage):
    """An image of three colours, resized by Pillow: several times as fast as by matplotlib, which works in floats."""

    def make_image(
        self, renderer: RendererBase, magnification: float = 1.0, unsampled: bool = False
    ) -> tuple[np.ndarray, float, float, Affine2D]:
        """The image at the size that it is drawn at, uint8 RGBA, its rows from the bottom, and its corner's place."""
        place = self.get_window_extent(renderer).extents
        left, bottom, right, top = (math.floor(edge * magnification + 0.5) for edge in place)
        size = max(right - left, 1), max(top - bottom, 1)
        pixels = Image.fromarray(np.asarray(self.get_array()))
        blocks = size[0] > _BLOCKS * pixels.width  # shown as they are, as matplotlib does
        resized = pixels.resize(size, Image.Resampling.NEAREST if blocks else Image.Resampling.HAMMING)
        return np.asarray(resized.convert("RGBA"))[::-1], left / magnification, bottom / magnification, Affine2D()


class Sheet:
    """A figure on which things are placed in inches; x to the right, y down from the top left corner."""

    def __init__(self, width: float, height: float):
        self._figure: Figure = new_figure(width, height)
        # One frameless axes over the whole page, in inches: a page holds dozens of images, and axes are slow to make.
        # Its limits stay, so that things are added as mere artists: add_patch and add_line would look for new limits.
        self.page = self._figure.add_axes((0, 0, 1, 1), autoscale_on=False, xlim=(0, width), ylim=(height, 0))
        self.page.set_axis_off()
        self._corners: list[Sequence[Point]] = []
        self._colours: list[str] = []

    def image(self, pixels: np.ndarray, x: float, y: float, width: float, height: float) -> None:
        """An image, uint8 ``[h, w, 3]``, that fills exactly this rectangle."""
        picture = _Picture(self.page, extent=(x, x + width, y + height, y))
        picture.set_data(pixels)
        self.page.add_image(picture)

    def text(self, x: float, y: float, text: str, size: float, **options: Any) -> Text:
        """A line of plain text whose baseline is at ``y``."""
        options = {"va": "baseline", "ha": "left", "color": INK, "parse_math": False, **options}
        return self.page.text(x, y, text, size=size, **options)

    def rectangle(self, x: float, y: float, width: float, height: float, colour: str, rounding: float = 0) -> None:
        """A filled rectangle, with corners of radius ``rounding`` inches; painted under images and texts.

        Those without rounding are over the rounded ones.
        """
        if rounding:
            style = f"round,pad=0,rounding_size={rounding}"
            patch = FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, linewidth=0, zorder=-1)
            self.page.add_artist(patch)
        else:
            self._corners.append(_corners(x, y, width, height))
            self._colours.append(colour)

    def shades(self, colours: np.ndarray, x: float, y: float, width: float, height: float) -> None:
        """A rectangle in equal parts from left to right, ``colours`` RGBA 0..1 ``[parts, 4]``."""
        edges = np.linspace(x, x + width, len(colours) + 1)
        spans = [(left, x + width - left) for left in edges[:-1]]  # over each other, so that no seam is seen
        self._fill([_corners(left, y, wide, height) for left, wide in spans], colours)

    def outline(self, x: float, y: float, width: float, height: float, **options: Any) -> None:
        """The edge of a rectangle, over everything that was drawn before."""
        options = {"edgecolor": INK, "zorder": 3, **options}
        self.page.add_artist(Rectangle((x, y), width, height, fill=False, **options))

    def line(self, x1: float, y1: float, x2: float, y2: float, **options: Any) -> None:
        """A straight line; with a ``marker`` and no length, a mark."""
        self.page.add_artist(Line2D((x1, x2), (y1, y2), **{"color": INK, **options}))

    def finish(self) -> Figure:
        """The figure, with its plain rectangles in one collection: dozens of patches take several times as long."""
        self._fill(self._corners, self._colours)
        return self._figure

    def _fill(self, corners: Sequence[Sequence[Point]], colours: Sequence[str] | np.ndarray) -> None:
        self.page.add_collection(PolyCollection(corners, facecolors=colours, linewidths=0, zorder=-1), autolim=False)


def _corners(x: float, y: float, width: float, height: float) -> list[Point]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


class Block(Protocol):
    """Part of a page: its size in inches is known before it is drawn."""

    @property
    def height(self) -> float:
        """Height in inches."""

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""


@dataclass(frozen=True)
class Lines:
    """Lines of plain text, already broken."""

    lines: Sequence[str]
    size: float = 8.5
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def height(self) -> float:
        """Height in inches."""
        return len(self.lines) * self.size * 1.4 * POINT

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        for number, line in enumerate(self.lines):
            sheet.text(x, y + (1.4 * number + 1.02) * self.size * POINT, line, self.size, **self.options)


@dataclass(frozen=True)
class Column:
    """Blocks under each other, ``gap`` inches apart."""

    blocks: Sequence[Block]
    gap: float = 0.1

    @property
    def height(self) -> float:
        """Height in inches."""
        return sum(b.height for b in self.blocks) + self.gap * max(len(self.blocks) - 1, 0)

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        for block in self.blocks:
            block.draw(sheet, x, y)
            y += block.height + self.gap


@dataclass(frozen=True)
class Row:
    """Blocks of ``width`` inches beside each other, ``gap`` inches apart, tops aligned; None leaves a gap.

    ruled: a thin line before each block but the first.
    """

    blocks: Sequence[Block | None]
    width: float
    gap: float
    ruled: bool = False

    @property
    def height(self) -> float:
        """Height in inches."""
        return max((block.height for block in self.blocks if block is not None), default=0.0)

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        for number, block in enumerate(self.blocks):
            left = x + number * (self.width + self.gap)
            if block is None:
                continue
            if number and self.ruled:
                sheet.rectangle(left - self.gap / 2 - 0.004, y, 0.008, self.height, RULE)
            block.draw(sheet, left, y)


def on_page(block: Block, width: float, margin: float = 0.18) -> Figure:
    """A figure that holds the block, ``width`` inches wide within a margin."""
    sheet = Sheet(width + 2 * margin, block.height + 2 * margin)
    block.draw(sheet, margin, margin)
    return sheet.finish()
