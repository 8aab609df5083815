"""One example on a page: caption, images with true and predicted regions, heatmaps, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Span
from visualize.canvas import spread_canvas, spread_maps, strength
from visualize.caption import Caption, lay_out
from visualize.case import Case
from visualize.panel import Panel, needs_numbers
from visualize.sheet import POINT, Block, Column, Lines, Row, Sheet, on_page, shorten, text_width
from visualize.style import FAINT, INK, RIGHT, WRONG, heat_colours, phrase_colour, styled

if TYPE_CHECKING:
    from extract.reader import Run

WIDTH = 7.6
_GAP = 0.2
NO_BREAK = "\u00a0"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Attention:
    """Attention from a case's phrases to the canvas at one site.

    maps: row of the phrase -> ``[rows, columns]`` over the stacked candidates. head: None for the mean over heads.
    """

    site: str
    head: int | None
    heads: int
    maps: Mapping[int, np.ndarray]

    @property
    def title(self) -> str:
        """What the maps are, in words."""
        of = f"mean over {self.heads} heads" if self.head is None else f"head {self.head} of {self.heads}"
        return f"Attention from each phrase at {self.site}, {of}"


def read_attention(run: Run, case: Case, site: str, head: int | None = None) -> Attention:
    """Stored attention of a case at a site: one head (0-based), or the mean over heads.

    Raises BadInput for a site without stored attention, and for a head that it does not have.
    """
    holding = [s.name for s in run.sites if "attention" in s.views]
    if site not in holding:
        raise unknown_choice("site", site, holding or ["none: this run holds no attention"])
    maps, heads = {}, 0
    for phrase in case.phrases:
        weights = run.attention(site, phrase.row)
        heads = len(weights)
        if head is not None and not 0 <= head < heads:
            raise BadInput(f"head {head} is not at site {site!r}; accepted: 0 to {heads - 1}, or none for their mean")
        maps[phrase.row] = weights.mean(axis=0) if head is None else weights[head]
    return Attention(site, head, heads, maps)


@styled
def draw_example(case: Case, attention: Attention | None = None, width: float = WIDTH, most_phrases: int = 6) -> Figure:
    """One case: caption with coloured phrases, boxes, then a strip of heatmaps and of attention for each phrase.

    Strips of a single image are drawn two in a row. most_phrases: strips that are drawn; further phrases are counted
    in a note. width: inches.
    """
    blocks: list[Block] = [Title(case, width), coloured_caption(case, width)]
    if any(phrase.iou is not None for phrase in case.phrases):
        blocks.append(overlap_line(case, width))
    across = min(len(case.phrases), 2) if len(case.images) == 1 else 1
    each = (width - _GAP * (across - 1)) / max(across, 1)
    heated = [n for n, phrase in enumerate(case.phrases) if phrase.heatmap is not None]
    blocks += [Panel(case, width), *missing_notes(case, width)]
    if heated:
        blocks.append(_heading("Where the model puts each phrase: its heatmap"))
        strips = [_heatmap(case, number, each) for number in heated[:most_phrases]]
        blocks += _in_rows(strips, each, across)
        blocks += _left_out(len(heated), most_phrases)
    if attention is not None and attention.maps:
        numbers = [n for n, phrase in enumerate(case.phrases) if phrase.row in attention.maps]
        blocks.append(_heading(attention.title))
        strips = [_attended(case, number, attention, each) for number in numbers[:most_phrases]]
        blocks += _in_rows(strips, each, across)
        blocks += _left_out(len(numbers), most_phrases)
    blocks.append(Legend([case], width, maps=bool(heated) or attention is not None))
    return on_page(Column(blocks, gap=0.09), width)


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


def coloured_caption(case: Case, width: float, size: float = 10.5, max_lines: int | None = None) -> Caption:
    """The caption with its phrases in their colours, and numbered if there are more phrases than colours."""
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
    """A phrase's words, shortened to ``width`` inches, with its number if the caption has numbers."""
    raised = str(number + 1).translate(SUPERSCRIPTS) if needs_numbers(case) else ""
    return shorten(case.phrases[number].text, width, size) + raised


def missing_notes(case: Case, width: float) -> list[Block]:
    """Why images are missing, in at most three lines."""
    if not case.missing:
        return []
    reasons: dict[str, list[int]] = {}
    for index, reason in case.missing.items():
        reasons.setdefault(reason, []).append(index)
    notes = [f"candidate {', '.join(map(str, indexes))}: {reason}" for reason, indexes in reasons.items()]
    return [Lines([shorten(note, width, 7.5) for note in notes[:3]], 7.5, {"color": WRONG})]


def _heading(text: str) -> Lines:
    return Lines([text], 9.0, {"weight": "bold"})


def _left_out(count: int, most: int) -> list[Block]:
    if count <= most:
        return []
    return [Lines([f"… and {count - most} more phrases, not drawn here."], 8.0, {"color": FAINT})]


def _in_rows(strips: Sequence[Block], each: float, across: int) -> list[Block]:
    """Strips ``each`` inches wide, ``across`` in a row."""
    return [Row(strips[start : start + across], each, _GAP) for start in range(0, len(strips), across)]


def _heatmap(case: Case, number: int, width: float) -> Column:
    phrase = case.phrases[number]
    maps = np.nan_to_num(np.asarray(phrase.heatmap, dtype=np.float32))
    remark = f"largest value {_beside_mean(maps)}"
    if phrase.pointing is not None:
        remark += f"; peak {'inside' if phrase.pointing else 'outside'} the region"
    return _strip(case, number, width, spread_maps(strength(maps), case.sizes), remark)


def _attended(case: Case, number: int, attention: Attention, width: float) -> Column:
    cells = np.nan_to_num(np.asarray(attention.maps[case.phrases[number].row], dtype=np.float32))
    remark = f"largest weight {_beside_mean(cells)}"
    return _strip(case, number, width, spread_canvas(strength(cells), case.sizes), remark)


def _beside_mean(cells: np.ndarray) -> str:
    largest, mean = float(cells.max()), float(cells.mean())
    if mean <= 0:
        return f"{largest:.2g}"
    ratio = largest / mean
    return f"{largest:.2g}, {ratio:.{1 if ratio < 10 else 0}f} times the mean"


def _strip(case: Case, number: int, width: float, values: list[np.ndarray], remark: str) -> Column:
    """A phrase's map over the candidates; values 0..1 at the case's pixels."""
    if len(case.images) == 1:  # narrow, and as tall as the image above
        label = phrase_label(case, number, width - 0.1, 8.0)
        words: list[Block] = [
            lay_out(label, [[(0, len(label))]], width, 8.0, 1, (phrase_colour(number),)),
            Lines([remark], 8.0),
        ]
        return Column([*words, Panel(case, width, number, values, predicted=False)], gap=0.03)
    label = phrase_label(case, number, width - text_width(remark, 8.0) - 0.3, 8.0)
    head = lay_out(f"{label}   {remark}", [[(0, len(label))]], width, 8.0, 1, (phrase_colour(number),))
    many = len(case.images) > 6  # in one row, unlike the images above: numbered, to be found again
    panel = Panel(case, width, number, values, predicted=False, labels=many, per_row=10, tallest=1.6)
    return Column([head, panel], gap=0.03)


@dataclass(frozen=True)
class Legend:
    """What lines, frames, marks and colours mean in drawings of some cases, on one line at the foot of a figure."""

    cases: Sequence[Case]
    width: float
    maps: bool = False
    size: float = 7.5

    @property
    def height(self) -> float:
        """Height in inches."""
        return 1.9 * self.size * POINT

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        middle = y + 0.95 * self.size * POINT
        for kind, colour, text in self._entries():
            _sample(sheet, kind, colour, x, middle)
            x += 0.33
            sheet.text(x, middle + 0.36 * self.size * POINT, text, self.size, color=FAINT)
            x += text_width(text, self.size) + 0.2

    def _entries(self) -> list[tuple[str, str, str]]:
        """Kind, colour and meaning of each sample."""
        cases = self.cases
        entries = [("solid", INK, "true region")]
        if any(phrase.predicted for case in cases for phrase in case.phrases):
            heated = any(case.has_heatmaps for case in cases)
            entries.append(("dashed", INK, "round its peak" if heated else "model's box"))
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
            entries.append(("heat", INK, "the row's mean to its largest value"))
        return entries


def _sample(sheet: Sheet, kind: str, colour: str, x: float, middle: float) -> None:
    half = 0.05
    if kind in ("solid", "dashed"):
        style = {"linestyle": (0, (2.2, 1.6)), "linewidth": 1.6} if kind == "dashed" else {"linewidth": 2.0}
        sheet.line(x, middle, x + 0.26, middle, color=colour, solid_capstyle="butt", **style)
    elif kind == "heat":
        colours = heat_colours()
        for step in range(26):
            sheet.rectangle(x + 0.01 * step, middle - half, 0.0101, 2 * half, facecolor=colours(step / 25))
    elif kind in ("ring", "cross"):
        mark = {"marker": "o", "markerfacecolor": "none"} if kind == "ring" else {"marker": "X"}
        sheet.line(x + 0.13, middle, x + 0.13, middle, color=colour, markersize=7, **mark)
    else:
        sheet.rectangle(x + 0.03, middle - half - 0.01, 0.2, 2 * half + 0.02, facecolor=colour)
        sheet.rectangle(x + 0.055, middle - half + 0.015, 0.15, 2 * half - 0.03, facecolor="white")
