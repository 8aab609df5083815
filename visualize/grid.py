"""One example under several maps: a row for each map (layers, heads, kinds), a column for each phrase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from visualize.canvas import spread_maps, strength
from visualize.case import Case
from visualize.legend import Legend
from visualize.maps import SiteMaps
from visualize.overlays import Title, coloured_caption, left_out, missing_notes, phrase_head
from visualize.panel import Panel
from visualize.sheet import POINT, Block, Column, Lines, Row, Sheet, break_lines, on_page
from visualize.style import FAINT, styled

WIDTH = 10.4
_ACROSS = 3  # phrases beside each other
_LABEL = 1.25  # inches
_GAP = 0.16


@styled
def draw_grid(case: Case, rows: Sequence[SiteMaps], title: str = "", most_phrases: int = 6) -> Figure:
    """A case under several maps: true and predicted boxes, the model's own heatmaps, then a row for each of ``rows``.

    Each phrase is a column; further phrases start again below, and beyond ``most_phrases`` they are counted in a note.
    Where no phrase has a map, the images are drawn with a note.
    """
    numbers = [n for n, phrase in enumerate(case.phrases) if any(phrase.row in maps.cells for maps in rows)]
    if not numbers:
        told = Lines(["No phrase of this example has a map."], 8.0, {"color": FAINT})
        blank: list[Block] = [Title(case, WIDTH), coloured_caption(case, WIDTH), Panel(case, WIDTH), told]
        return on_page(Column([*blank, *missing_notes(case, WIDTH)], gap=0.09), WIDTH)
    shown = numbers[:most_phrases]
    across = -(-len(shown) // -(-len(shown) // _ACROSS))  # bands of even lengths
    each = (WIDTH - _LABEL) / max(across, 2) - _GAP
    width = _LABEL + across * (each + _GAP)
    blocks: list[Block] = [Title(case, width), coloured_caption(case, width)]
    if title:
        blocks.append(Lines(break_lines(title, width, 9.0), 9.0, {"weight": "bold"}))
    for start in range(0, len(shown), across):
        blocks += _band(case, rows, shown[start : start + across], each)
    blocks += [*left_out(len(numbers), most_phrases, width), *missing_notes(case, width)]
    signed = [maps.signed for maps in rows]
    blocks.append(Legend([case], width, maps=case.has_heatmaps or not all(signed), signed=any(signed)))
    return on_page(Column(blocks, gap=0.09), width)


def _band(case: Case, rows: Sequence[SiteMaps], numbers: Sequence[int], each: float) -> Iterator[Block]:
    """The rows of some phrases beside each other, under their names."""
    yield _Labelled("", [phrase_head(case, number, each) for number in numbers], each)
    yield _Labelled("truth and model", [_panel(case, number, each, None, predicted=True) for number in numbers], each)
    if case.has_heatmaps:
        yield _Labelled("model's own\nheatmap", [_own(case, number, each) for number in numbers], each)
    for label, maps in zip(_labels(rows), rows, strict=True):
        yield _Labelled(label, [_mapped(case, maps, number, each) for number in numbers], each)


def _labels(rows: Sequence[SiteMaps]) -> list[str]:
    """What sets each row apart from the others: kind, site, heads."""
    parts = list(zip(*(maps.parts for maps in rows), strict=True))
    differing = [values for values in parts if len(set(values)) > 1] or parts
    return ["\n".join(filter(None, values)) for values in zip(*differing, strict=True)]


def _own(case: Case, number: int, width: float) -> Block | None:
    heatmap = case.phrases[number].heatmap
    if heatmap is None:
        return None
    maps = np.nan_to_num(np.asarray(heatmap, dtype=np.float32))
    return _panel(case, number, width, spread_maps(strength(maps), case.sizes))


def _mapped(case: Case, maps: SiteMaps, number: int, width: float) -> Block | None:
    row = case.phrases[number].row
    if row not in maps.cells:
        return None
    panel = _panel(case, number, width, maps.painted(case, row))
    remark = maps.remarks.get(row)
    if remark is None:
        return panel
    return Column([panel, Lines(break_lines(remark, width, 6.5), 6.5, {"color": FAINT})], gap=0.02)


def _panel(
    case: Case, number: int, width: float, values: Sequence[np.ndarray] | None, predicted: bool = False
) -> Block:
    count = len(case.images)
    per_row = count if count <= 6 else -(-count // 2)
    return Panel(case, width, number, values, predicted, labels=False, per_row=per_row, tallest=1.3, frame=0.02)


@dataclass(frozen=True)
class _Labelled:
    """Blocks beside each other, ``each`` inches wide, with a few lines of words to their left."""

    label: str
    blocks: Sequence[Block | None]
    each: float
    size: float = 7.5

    @property
    def _words(self) -> Lines:
        lines = [part for line in self.label.split("\n") for part in break_lines(line, _LABEL - 0.1, self.size)]
        return Lines(lines, self.size)

    @property
    def height(self) -> float:
        """Height in inches."""
        return max(Row(self.blocks, self.each, _GAP).height, self._words.height)

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        row = Row(self.blocks, self.each, _GAP)
        self._words.draw(sheet, x, y + max((row.height - self._words.height) / 2, 0) - 2 * POINT)
        row.draw(sheet, x + _LABEL, y)
