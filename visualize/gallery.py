"""Examples side by side, drawn at random by a rule that is printed above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from grounding.errors import BadInput
from grounding.grounded import GROUNDED_AT, check_grounded_at
from grounding.values import counted
from visualize.case import Case
from visualize.legend import Legend
from visualize.overlays import Title, coloured_caption, missing_notes
from visualize.panel import Panel
from visualize.sheet import Block, Column, Lines, Row, Sheet, break_lines, on_page
from visualize.style import FAINT, INK, RIGHT, WRONG, styled

if TYPE_CHECKING:
    import pandas as pd

    from extract.reader import Run

WIDTH = 10.4
GUTTER = 0.4


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Task and grounding of every example of a run, side by side, as stored.

    table: id, correct (missing where there is no choice, or no example is answered; an answer that is missing beside
    others is wrong), score (NaN without an answer), grounding (NaN where nothing is known), row index = row number of
    the example.
    measure: what ``grounding`` is, in words. threshold: from which value on an example counts as grounded.
    """

    table: pd.DataFrame
    measure: str
    threshold: float = GROUNDED_AT

    @classmethod
    def of(cls, run: Run, threshold: float = GROUNDED_AT) -> Outcomes:
        """The outcomes of a run: mean over an example's phrases of their stored IoU, or, in a run without IoU, of
        the stored pointing (0 or 1). Raises BadInput for a threshold that is not above 0, and at most 1.
        """
        check_grounded_at(threshold)
        column = "iou" if run.phrases["iou"].notna().any() else "pointing"
        measure = "mean IoU" if column == "iou" else "share of phrases whose peak is inside their region"
        table = run.examples[["id", "task_correct", "task_score"]].set_axis(["id", "correct", "score"], axis=1)
        means = run.phrases.groupby("example")[column].mean()
        choice = (run.examples["task"] != "game") | (run.examples["n_images"] > 1)
        asked = choice & table["score"].notna().any()
        table = table.assign(correct=table["correct"].astype("boolean").where(asked), grounding=means)
        return cls(table, measure, threshold)

    @property
    def linked(self) -> pd.DataFrame:
        """The rows with both an answer to a task and a known grounding."""
        return self.table.dropna(subset=["score", "grounding"])

    def matching(self, correct: bool | None = None, grounded: bool | None = None) -> np.ndarray:
        """Rows of the examples in that quadrant, in order of their ids; None leaves a side open.

        What goes together is of answers: no example without one is in a quadrant of both sides.
        """
        keep = np.ones(len(self.table), dtype=bool)
        if correct is not None:
            keep &= (self.table["correct"] == correct).fillna(False).to_numpy(bool)
        if correct is not None and grounded is not None:
            keep &= self.table["score"].notna().to_numpy()
        if grounded is not None:
            value = self.table["grounding"].to_numpy(float)
            keep &= (value >= self.threshold) if grounded else (value < self.threshold)
        return self.table[keep].sort_values("id", kind="stable").index.to_numpy()


@dataclass(frozen=True)
class Selection:
    """Rows drawn by a rule; ``rule`` is printed on the figure."""

    title: str
    rule: str
    rows: tuple[int, ...]
    correct: bool | None = None


def select(
    outcomes: Outcomes, correct: bool | None = None, grounded: bool | None = None, count: int = 4, seed: int = 0
) -> Selection:
    """At most ``count`` examples at random among those of a quadrant: the same ones for the same seed and ids.

    correct, grounded: None takes both. Raises BadInput for a count below 1 or a seed below 0.
    """
    check_choice(count, seed)
    found = outcomes.matching(correct, grounded)
    sides = [("Task right", "task wrong")[not correct].capitalize()] if correct is not None else []
    rules = []
    if grounded is not None:
        sides.append("grounded" if grounded else "not grounded")
        rules.append(f"{outcomes.measure} {'at least' if grounded else 'below'} {outcomes.threshold:g}")
    rng = np.random.default_rng([seed, _code(correct), _code(grounded)])
    rows = tuple(int(row) for row in found[rng.permutation(len(found))[:count]])
    drawn = (
        f"{len(rows)} of {counted(len(found), 'example')}, drawn at random (seed {seed})"
        if len(found)
        else "no such example"
    )
    title = ", ".join(sides) or "All examples"
    return Selection(title[0].upper() + title[1:], "; ".join([*rules, drawn]), rows, correct)


def check_choice(count: int, seed: int) -> None:
    """Raise BadInput for a count below 1 or a seed below 0."""
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise BadInput(f"{name} {value} is too small; accepted: {least} or more")


def right_and_wrong(outcomes: Outcomes, count: int = 4, seed: int = 0) -> list[list[Selection]]:
    """Task-right beside task-wrong examples: one row of two selections."""
    return [[select(outcomes, correct, None, count, seed) for correct in (True, False)]]


def four_quadrants(outcomes: Outcomes, count: int = 2, seed: int = 0) -> list[list[Selection]]:
    """Grounded above not grounded, task right beside task wrong: two rows of two selections."""
    return [
        [select(outcomes, correct, grounded, count, seed) for correct in (True, False)] for grounded in (True, False)
    ]


def grounded_or_not(outcomes: Outcomes, count: int = 4, seed: int = 0) -> list[list[Selection]]:
    """Grounded beside not grounded, where there is no task: one row of two selections."""
    return [[select(outcomes, None, grounded, count, seed) for grounded in (True, False)]]


@styled
def draw_gallery(
    selections: Sequence[Sequence[Selection]],
    cases: Mapping[int, Case],
    outcomes: Outcomes | None = None,
    width: float = WIDTH,
    remarks: Mapping[int, str] | None = None,
) -> Figure:
    """Selections in a grid, each with its rule above its cases; one that is empty is a line of text.

    cases: row -> case, for every row selected. outcomes: adds each example's grounding to its title, unless ``remarks``
    have something else for it, by row. width: inches.
    """
    if remarks is None:
        remarks = {} if outcomes is None else _remarks(outcomes)
    blocks: list[Block] = []
    for number, band in enumerate(selections):
        if number:
            blocks.append(Lines(()))  # of no height: more room above the next band
        blocks += _band(band, cases, remarks, width)
    drawn = [cases[row] for band in selections for selection in band for row in selection.rows]
    legend = [Legend(drawn, width)] if drawn else []
    return on_page(Column([*blocks, *legend], gap=0.16), width)


def _band(
    band: Sequence[Selection], cases: Mapping[int, Case], remarks: Mapping[int, str], width: float
) -> list[Block]:
    """Selections beside each other; the columns of those that are empty go to the others."""
    absent = [f"{selection.title}: {selection.rule}" for selection in band if not selection.rows]
    told = [line for words in absent for line in break_lines(words, width, 8.5)]
    blocks: list[Block] = [Lines(told, 8.5, {"color": FAINT})] if told else []
    drawn = [selection for selection in band if selection.rows]
    if not drawn:
        return blocks
    longest = max(len(selection.rows) for selection in drawn)
    across = min(max(2 // len(drawn), 1), longest)  # cases of one selection beside each other
    whole = share(width, len(drawn))
    each = share(whole, across)
    blocks.append(Row([Heading(selection, whole) for selection in drawn], whole, GUTTER, ruled=True))
    for place in range(0, longest, across):
        chosen = [row for selection in drawn for row in _padded(selection.rows[place : place + across], across)]
        shown = [None if row is None else thumbnail(cases[row], each, remarks.get(row)) for row in chosen]
        blocks.append(Row(shown, each, GUTTER, ruled=True))
    return blocks


def share(width: float, parts: int) -> float:
    """Width of each of ``parts`` columns with gutters between them."""
    return (width - GUTTER * (parts - 1)) / parts


def _padded(rows: Sequence[int], length: int) -> list[int | None]:
    return [*rows, *[None] * (length - len(rows))]


def _code(side: bool | None) -> int:
    return 2 if side is None else int(side)


def _remarks(outcomes: Outcomes) -> dict[int, str]:
    named = outcomes.measure if outcomes.measure == "mean IoU" else "pointing"
    return {
        int(row): ", ".join(
            f"{name} {record[column]:{digits}}"
            for name, column, digits in (("score", "score", ".3g"), (named, "grounding", ".3f"))
            if np.isfinite(record[column])
        )
        for row, record in outcomes.table.iterrows()
    }


def thumbnail(case: Case, width: float, remark: str | None = None) -> Column:
    """A case in small: title with a remark, caption, images."""
    per_row = 6 if len(case.images) <= 6 else 5
    title = Title(case, width, remark, 8.0)
    caption = coloured_caption(case, width, 8.5, max_lines=4)
    panel = Panel(case, width, per_row=per_row, tallest=0.34 * width)
    return Column([title, caption, panel, *missing_notes(case, width)], gap=0.05)


@dataclass(frozen=True)
class Heading:
    """Title and rule of a selection, over a line in the colour of its outcome."""

    selection: Selection
    width: float

    def _lines(self) -> Column:
        rule = Lines(break_lines(self.selection.rule, self.width, 8.0), 8.0, {"color": FAINT})
        return Column([Lines([self.selection.title], 11.0, {"weight": "bold", "color": self._colour()}), rule], 0.01)

    def _colour(self) -> str:
        return {True: RIGHT, False: WRONG, None: INK}[self.selection.correct]

    @property
    def height(self) -> float:
        """Height in inches."""
        return self._lines().height + 0.05

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        self._lines().draw(sheet, x, y)
        sheet.rectangle(x, y + self.height - 0.02, self.width, 0.02, self._colour())
