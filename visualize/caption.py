"""A caption in lines, with the words of each phrase on a patch of the phrase's colour."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from grounding.examples import Span
from visualize.sheet import POINT, Sheet, text_width
from visualize.style import INK, contrast, phrase_colour

LEADING = 1.75
PAD = 0.028
LEFT_MARK, RIGHT_MARK = "\u200e", "\u200f"
_WORD = r"[\S\u00a0\u202f]+"  # no line ends at a no-break space


@dataclass(frozen=True)
class Piece:
    """A run of characters of one line that belongs to the same phrase (or to none).

    x: left edge in inches; width includes the patch's padding. phrase: index into the spans, None for plain words.
    around: wider phrases that hold this one, drawn as underlines.
    """

    text: str
    line: int
    x: float
    width: float
    phrase: int | None = None
    around: tuple[int, ...] = ()


@dataclass(frozen=True)
class Caption:
    """A caption laid out for a width; a block of a page. ``colours`` replaces the phrases' own colours.

    from_right: whether it is a text in a right-to-left script, whose lines start at the right.
    """

    pieces: tuple[Piece, ...]
    lines: int
    size: float
    colours: tuple[str, ...] = ()
    from_right: bool = False

    @property
    def height(self) -> float:
        """Height in inches."""
        return self.lines * LEADING * self.size * POINT

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        em = self.size * POINT
        for piece in self.pieces:
            left, baseline = x + piece.x, y + (LEADING * piece.line + 1.2) * em
            colour = INK
            if piece.phrase is not None:
                fill = self._colour(piece.phrase)
                colour = contrast(fill)
                sheet.rectangle(left, baseline - 1.0 * em, piece.width, 1.36 * em, fill, 0.16 * em)
                left += PAD
            sheet.text(left, baseline, self._directed(piece.text), self.size, color=colour)
            for depth, outer in enumerate(piece.around[:2]):
                top = baseline + (0.42 + 0.16 * depth) * em
                sheet.rectangle(x + piece.x, top, piece.width, 0.1 * em, self._colour(outer))

    def _directed(self, text: str) -> str:
        """A piece with a mark (of no width) that has matplotlib order its characters as within the whole caption."""
        if text[0] in (LEFT_MARK, RIGHT_MARK):
            return text
        if self.from_right:
            return RIGHT_MARK + text
        return LEFT_MARK + text if any(unicodedata.bidirectional(c) in ("R", "AL") for c in text) else text

    def _colour(self, phrase: int) -> str:
        return self.colours[phrase] if self.colours else phrase_colour(phrase)


def lay_out(
    caption: str,
    spans: Sequence[Sequence[Span]],
    width: float,
    size: float = 10.5,
    max_lines: int | None = None,
    colours: Sequence[str] = (),
    from_right: bool | None = None,
) -> Caption:
    """Break a caption into lines of ``width`` inches and find where each phrase's words lie.

    caption: shown literally (``$`` and ``_`` mean themselves). spans: per phrase, character spans ``[begin, end)``.
    max_lines: cut with an ellipsis after that many. from_right: whether lines start at the right, and phrases follow
    each other from there; None: as it is in the script of the first letter.
    """
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in caption)
    from_right = is_right_to_left(text) if from_right is None else from_right
    owned = _Owned(text, _holders(len(text), spans))
    lines = _break(owned, width, size)
    cut = max_lines is not None and len(lines) > max_lines
    pieces: list[Piece] = []
    for number, (begin, end) in enumerate(lines[:max_lines]):
        runs = owned.runs(begin, end)
        if cut and number == max_lines - 1:  # type: ignore[operator]
            runs = _shortened(runs, width, size)
        pieces += _place(runs, number, size, width if from_right else None)
    return Caption(tuple(pieces), min(len(lines), max_lines or len(lines)), size, tuple(colours), from_right)


Run = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Owned:
    """A text and, per character, the phrases that hold it, shortest first."""

    text: str
    holders: list[tuple[int, ...]]

    def runs(self, begin: int, end: int) -> list[Run]:
        """Runs of characters of the same phrases."""
        runs: list[Run] = []
        for position in range(begin, end):
            character, held = self.text[position], self.holders[position]
            if runs and runs[-1][1] == held:
                runs[-1] = (runs[-1][0] + character, held)
            else:
                runs.append((character, held))
        return runs


def _holders(length: int, spans: Sequence[Sequence[Span]]) -> list[tuple[int, ...]]:
    """Per character the phrases that hold it, shortest first."""
    sizes = [sum(end - begin for begin, end in phrase) for phrase in spans]
    holders: list[list[int]] = [[] for _ in range(length)]
    for index in sorted(range(len(spans)), key=sizes.__getitem__):
        for begin, end in spans[index]:
            for position in range(max(begin, 0), min(end, length)):
                holders[position].append(index)
    return [tuple(h) for h in holders]


def _run_width(run: Run, size: float) -> float:
    return text_width(run[0], size) + (2 * PAD if run[1] and run[0].strip() else 0)


def _break(owned: _Owned, width: float, size: float) -> list[tuple[int, int]]:
    """Character ranges of the lines; words too wide for a line are broken inside."""

    def wide(begin: int, end: int) -> bool:
        return sum(_run_width(run, size) for run in owned.runs(begin, end)) > width

    lines: list[tuple[int, int]] = []
    for word in re.finditer(_WORD, owned.text):
        begin, end = word.span()
        if lines and not wide(lines[-1][0], end):
            lines[-1] = (lines[-1][0], end)
            continue
        while wide(begin, end):
            stop = begin + 1
            while stop < end and not wide(begin, stop + 1):
                stop += 1
            if stop == end:
                break
            lines.append((begin, stop))
            begin = stop
        lines.append((begin, end))
    return lines


def _shortened(runs: list[Run], width: float, size: float) -> list[Run]:
    """Runs that end in an ellipsis and fit the width."""
    runs = list(runs)
    ellipsis: Run = (" …", ())
    while runs and sum(_run_width(r, size) for r in [*runs, ellipsis]) > width:
        text, held = runs.pop()
        if len(text) > 1:
            runs.append((text[:-1], held))
    return [*runs, ellipsis]


def _place(runs: list[Run], line: int, size: float, right_edge: float | None) -> list[Piece]:
    """Pieces of one line, from the left; from ``right_edge`` leftwards if it is given."""
    pieces, x = [], 0.0
    for run in runs:
        width = _run_width(run, size)
        if run[0].strip():
            left = x if right_edge is None else right_edge - x - width
            held = run[1]
            pieces.append(Piece(run[0], line, left, width, held[0] if held else None, held[1:]))
        x += width
    return pieces


def is_right_to_left(text: str) -> bool:
    """Whether the first letter with a direction belongs to a right-to-left script."""
    directions = (unicodedata.bidirectional(c) for c in text)
    return next((d in ("R", "AL") for d in directions if d in ("L", "R", "AL")), False)
