"""One example on a page: caption, images with true and predicted regions, heatmaps, attention and relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from grounding.examples import Span
from visualize.canvas import spread_maps, strength
from visualize.caption import RIGHT_MARK, Caption, is_right_to_left, lay_out
from visualize.case import Case
from visualize.legend import Legend
from visualize.maps import SiteMaps
from visualize.panel import Panel, needs_numbers
from visualize.sheet import POINT, Block, Column, Lines, Row, Sheet, break_lines, on_page, shorten, text_width
from visualize.style import FAINT, RIGHT, WRONG, phrase_colour, styled
from visualize.zoom import LETTERS, Zoom, insets_of

WIDTH = 7.6
MOST_LINES = 24  # of a caption
_GAP = 0.2
NO_BREAK = "\u00a0"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@styled
def draw_example(case: Case, maps: Sequence[SiteMaps] = (), width: float = WIDTH, most_phrases: int = 6) -> Figure:
    """One case: caption with coloured phrases, boxes, then a strip of heatmaps and of each of ``maps`` for each phrase.

    Strips of a single image are drawn two in a row. most_phrases: strips that are drawn of each kind; further phrases
    are counted in a note. width: inches.
    """
    blocks: list[Block] = [Title(case, width), coloured_caption(case, width)]
    if any(phrase.iou is not None for phrase in case.phrases):
        blocks.append(overlap_line(case, width))
    heated = [n for n, phrase in enumerate(case.phrases) if phrase.heatmap is not None]
    insets = insets_of(case)
    marks = [(letter, inset.box) for letter, inset in zip(LETTERS, insets, strict=False)]
    blocks += [Panel(case, width, marks=marks), *missing_notes(case, width)]
    blocks += [Zoom(case, width, insets)] if insets else []
    if heated:
        title = "Where the model puts each phrase: its heatmap"
        blocks += _strips(case, title, heated, width, most_phrases, partial(_heatmap, case))
    drawn = [one for one in maps if one.cells]
    for one in drawn:
        numbers = [n for n, phrase in enumerate(case.phrases) if phrase.row in one.cells]
        blocks += _strips(case, one.title, numbers, width, most_phrases, partial(_mapped, case, one))
    signed = [one.signed for one in drawn]
    blocks.append(Legend([case], width, maps=bool(heated) or not all(signed), signed=any(signed)))
    return on_page(Column(blocks, gap=0.09), width)


def _strips(
    case: Case, title: str, numbers: Sequence[int], width: float, most: int, strip: Callable[[int, float], Block]
) -> list[Block]:
    """A heading, a strip for each of at most ``most`` phrases, and how many are left out."""
    across = min(len(case.phrases), 2) if len(case.images) == 1 else 1
    each = (width - _GAP * (across - 1)) / across
    strips = [strip(number, each) for number in numbers[:most]]
    return [
        Lines(break_lines(title, width, 9.0), 9.0, {"weight": "bold"}),
        *(Row(strips[start : start + across], each, _GAP) for start in range(0, len(strips), across)),
        *left_out(len(numbers), most, width),
    ]


@dataclass(frozen=True)
class Title:
    """Id, task outcome and a remark (the task score unless another is given), on one line; the id if none answered."""

    case: Case
    width: float
    remark: str | None = None
    size: float = 9.5

    @property
    def height(self) -> float:
        """Height in inches."""
        return 1.55 * self.size * POINT

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        case, baseline = self.case, y + 1.1 * self.size * POINT
        if case.answer is None:
            remark, space = self.remark or "", 0.12
            name = shorten(case.id, self.width - text_width(remark, self.size) - space, self.size, "bold")
            sheet.text(x, baseline, name, self.size, weight="bold")
            x += text_width(name, self.size, "bold") + space
            sheet.text(x, baseline, remark, self.size, color=FAINT)
            return
        verdict = "task right" if case.correct else "task wrong"
        remark = self.remark if self.remark is not None else f"score {case.score:.3g}"
        space = 0.12
        room = self.width - text_width(verdict, self.size, "bold") - text_width(remark, self.size) - 2 * space
        name = shorten(case.id, room, self.size, "bold")
        sheet.text(x, baseline, name, self.size, weight="bold")
        x += text_width(name, self.size, "bold") + space
        sheet.text(x, baseline, verdict, self.size, weight="bold", color=RIGHT if case.correct else WRONG)
        x += text_width(verdict, self.size, "bold") + space
        sheet.text(x, baseline, remark, self.size, color=FAINT)


def coloured_caption(case: Case, width: float, size: float = 10.5, max_lines: int = MOST_LINES) -> Caption:
    """The caption with its phrases in their colours, and numbered if there are more phrases than colours.

    max_lines: it is cut with an ellipsis after that many.
    """
    caption, spans = case.caption, [list(phrase.spans) for phrase in case.phrases]
    if needs_numbers(case):
        caption, spans = number_phrases(caption, spans)
    return lay_out(caption, spans, width, size, max_lines)


def number_phrases(caption: str, spans: Sequence[Sequence[Span]]) -> tuple[str, list[list[Span]]]:
    """The caption with a raised number (from 1) after each phrase, and the spans moved along and grown by it.

    >>> number_phrases("a cup", [[(2, 5)]])
    ('a cup¹', [[(2, 6)]])
    """
    insertions = sorted((max(end for _, end in phrase), n) for n, phrase in enumerate(spans) if phrase)
    raised = {n: str(n + 1).translate(SUPERSCRIPTS) for _, n in insertions}
    moved: list[list[Span]] = []
    for own, phrase in enumerate(spans):
        last = max((end for _, end in phrase), default=0)
        grown = []
        for begin, end in phrase:
            before = sum(len(raised[n]) for at, n in insertions if at <= begin)
            within = sum(len(raised[n]) for at, n in insertions if at < end or (at == end == last and n <= own))
            grown.append((begin + before, end + within))
        moved.append(grown)
    for at, n in reversed(insertions):
        caption = caption[:at] + raised[n] + caption[at:]
    return caption, moved


def overlap_line(case: Case, width: float, size: float = 8.0) -> Caption:
    """The stored IoU of each phrase, as a line of coloured phrases with their figures."""
    measured = "IoU of the whole heatmap with the truth" if case.has_heatmaps else "IoU with the truth"
    text, spans, colours = f"{measured}:   ", [], []
    for number, phrase in enumerate(case.phrases):
        if phrase.iou is None:
            continue
        label = phrase_label(case, number, 1.7, size).replace(" ", NO_BREAK)
        spans.append([(len(text), len(text) + len(label))])
        colours.append(phrase_colour(number))
        text += f"{label}{NO_BREAK}{phrase.iou:.2f}   "
    return lay_out(text, spans, width, size, 3, colours)


def phrase_label(case: Case, number: int, width: float, size: float) -> str:
    """A phrase's words, shortened to ``width`` inches, with its number if the caption has numbers.

    Of a caption in a right-to-left script it begins with a mark, so that it is ordered as it is in there.
    """
    raised = str(number + 1).translate(SUPERSCRIPTS) if needs_numbers(case) else ""
    mark = RIGHT_MARK if is_right_to_left(case.caption) else ""
    return mark + shorten(case.phrases[number].text, width, size) + raised


def phrase_head(case: Case, number: int, width: float, remark: str = "") -> Caption:
    """A phrase's words on its colour, and a remark beside them: from the left in every script, as its pictures are."""
    size, space = 8.0, 0.3 if remark else 0.1
    label = phrase_label(case, number, width - text_width(remark, size) - space, size)
    text = f"{label}   {remark}" if remark else label
    return lay_out(text, [[(0, len(label))]], width, size, 1, (phrase_colour(number),), from_right=False)


def missing_notes(case: Case, width: float) -> list[Block]:
    """Why images are missing, in at most three lines."""
    if not case.missing:
        return []
    reasons: dict[str, list[int]] = {}
    for index, reason in case.missing.items():
        reasons.setdefault(reason, []).append(index)
    notes = [f"candidate {', '.join(map(str, indexes))}: {reason}" for reason, indexes in reasons.items()]
    notes = notes if len(case.images) > 1 else list(reasons)
    return [Lines([shorten(note, width, 7.5) for note in notes[:3]], 7.5, {"color": WRONG})]


def left_out(count: int, most: int, width: float) -> list[Block]:
    """How many phrases are not drawn, if any."""
    if count <= most:
        return []
    told = f"… and {count - most} more phrases, not drawn here."
    return [Lines(break_lines(told, width, 8.0), 8.0, {"color": FAINT})]


def _heatmap(case: Case, number: int, width: float) -> Column:
    phrase = case.phrases[number]
    maps = np.nan_to_num(np.asarray(phrase.heatmap, dtype=np.float32))
    remark = f"largest value {_beside_mean(maps)}"
    if phrase.pointing is not None:
        remark += f"; peak {'inside' if phrase.pointing else 'outside'} the region"
        remark += " (drawn coarser)" if phrase.drawn_apart else ""
    return _strip(case, number, width, spread_maps(strength(maps), case.sizes), remark)


def _mapped(case: Case, maps: SiteMaps, number: int, width: float) -> Column:
    row = case.phrases[number].row
    remark = maps.remarks.get(row)
    if remark is None:
        remark = f"largest value {_beside_mean(np.nan_to_num(np.asarray(maps.cells[row], dtype=np.float32)))}"
    return _strip(case, number, width, maps.painted(case, row), remark)


def _beside_mean(cells: np.ndarray) -> str:
    largest, mean = float(cells.max()), float(cells.mean())
    if mean <= 0:
        return f"{largest:.2g}"
    ratio = largest / mean
    return f"{largest:.2g}, {ratio:.{1 if ratio < 10 else 0}f} times the mean"


def _strip(case: Case, number: int, width: float, values: list[np.ndarray], remark: str) -> Column:
    """A phrase's map over the candidates; values 0..1 at the case's pixels."""
    if len(case.images) == 1:  # narrow, and as tall as the image above
        words: list[Block] = [phrase_head(case, number, width), Lines([remark], 8.0)]
        return Column([*words, Panel(case, width, number, values, predicted=False)], gap=0.03)
    head = phrase_head(case, number, width, remark)
    many = len(case.images) > 6  # in one row, unlike the images above: numbered, to be found again
    panel = Panel(case, width, number, values, predicted=False, labels=many, per_row=10, tallest=1.6)
    return Column([head, panel], gap=0.03)
