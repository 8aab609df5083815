"""One readable style for every figure: type, colours that colour-blind readers can tell apart, files.

Figures are made without pyplot, so nothing here or elsewhere in this package leaves global state behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import seaborn
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure

from grounding.errors import unknown_choice

Arguments = ParamSpec("Arguments")

INK = "#222222"
FAINT = "#6b6b6b"
RULE = "#d4d4d4"
MISSING = "#ededed"
RIGHT = "#00875f"
WRONG = "#c8371b"
FORMATS = ("png", "svg", "pdf")
HINTING = "text.hinting"

# Okabe and Ito's palette without its green and vermilion, which say right and wrong.
PHRASE_COLOURS = ("#0072b2", "#e69f00", "#c05a9b", "#56b4e9", "#f0e442", "#3a3a3a")
SERIES_COLOURS = ("#0072b2", "#d17a00", "#8a4f9e", "#2a9d8f", "#a23b3b", "#555555")

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#808080",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    HINTING: "no_hinting",  # so that drawn text is as wide as it was measured
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "phrase-grounding-probe",
    "image.interpolation": "antialiased",
}


@contextmanager
def _any_script() -> Iterator[None]:
    """What the font has no shape for is drawn as a box, without a line on standard error for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def styled(function: Callable[Arguments, Any]) -> Callable[Arguments, Any]:
    """Run a function that makes or saves figures in the house style, and put matplotlib's settings back."""

    @wraps(function)
    def inside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        settings: Any = {**seaborn.axes_style("ticks"), **_RC}
        with matplotlib.rc_context(settings), _any_script():
            return function(*args, **kwargs)

    return inside


class StyledFigure(Figure):
    """A figure whose text is as wide as it was measured whoever draws it: a notebook does with its own settings."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw with the house's hinting of text."""
        settings: Any = {HINTING: _RC[HINTING]}
        with matplotlib.rc_context(settings), _any_script():
            super().draw(renderer)


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of that size in inches, with its own Agg canvas and unknown to pyplot."""
    figure = StyledFigure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def phrase_colour(index: int) -> str:
    """Colour of an example's phrase ``index`` (0-based), the same in its caption, boxes and maps.

    >>> phrase_colour(1) == phrase_colour(1 + len(PHRASE_COLOURS))
    True
    """
    return PHRASE_COLOURS[index % len(PHRASE_COLOURS)]


def series_colour(index: int) -> str:
    """Colour of line ``index`` of a chart."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]


def contrast(colour: str) -> str:
    """White or near-black, whichever reads better on ``colour``.

    >>> contrast("#0072b2"), contrast("#f0e442")
    ('#ffffff', '#222222')
    """
    light = _luminance(colour) + 0.05
    return "#ffffff" if 1.05 / light >= light / (_luminance(INK) + 0.05) else INK


def halo(colour: str) -> str:
    """Colour of the rim that keeps a line of ``colour`` visible on any picture: dark round the palest only."""
    return "#ffffff" if _luminance(colour) < 0.6 else INK


def _luminance(colour: str) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@cache
def heat_colours() -> Colormap:
    """Colours of heatmaps and attention: light to dark, even in lightness, readable on a paled image."""
    return seaborn.color_palette("rocket_r", as_cmap=True)


@cache
def cold_colours() -> Colormap:
    """Colours of what speaks against: blues, told from ``heat_colours`` at every strength."""
    return seaborn.color_palette("ch:start=2.6,rot=0.1,hue=1.4,light=0.88,dark=0.35,gamma=0.9", as_cmap=True)


@cache
def signed_colours() -> Colormap:
    """Colours of differences: blue below, red above, pale where there is none."""
    return seaborn.color_palette("vlag", as_cmap=True)


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats as a tuple. Raises BadInput for one that is not in ``FORMATS``."""
    for name in formats:
        if name not in FORMATS:
            raise unknown_choice("format", name, FORMATS)
    return tuple(formats)


@styled
def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg"), dpi: int = 200) -> list[Path]:
    """Write ``stem.png``, ``stem.svg``, … into a folder that exists; equal figures give equal files."""
    written = []
    for extension in check_formats(formats):
        path = stem.with_name(f"{stem.name}.{extension}")
        undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[extension]
        # The least compression takes half the time of the usual one, for a sixth more bytes.
        quick: dict[str, Any] = {"pil_kwargs": {"compress_level": 1}} if extension == "png" else {}
        figure.savefig(path, dpi=dpi, metadata=undated, **quick)
        written.append(path)
    return written
