"""Galleries of examples by rank: where the probe finds most that the model does not show, and what changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from grounding.errors import BadInput
from grounding.folders import name_of
from grounding.values import counted
from visualize.case import Case
from visualize.gallery import GUTTER, WIDTH, Heading, Outcomes, Selection, check_choice, share, thumbnail
from visualize.legend import Legend
from visualize.sheet import Block, Column, Lines, Row, break_lines, on_page
from visualize.style import styled

if TYPE_CHECKING:
    from extract.reader import Run


@dataclass(frozen=True, eq=False)
class Gaps:
    """What a probe finds of examples beside what the model shows of them.

    table: one row an example: example (row of the run), probe and own (mean IoU over the same phrases).
    words: which probe, where, and on which images, as printed in the rule.
    """

    table: pd.DataFrame
    words: str

    @property
    def remarks(self) -> dict[int, str]:
        """Row of each example -> both figures."""
        rows = zip(*(self.table[name] for name in ("example", "probe", "own")), strict=True)
        return {int(row): f"probe {probe:.2f}, model {own:.2f}" for row, probe, own in rows}


def biggest_gaps(gaps: Gaps, count: int = 4, seed: int = 0) -> Selection:
    """The examples where the probe's mean IoU exceeds the model's own by most; only where it does.

    Raises BadInput for a count below 1 or a seed below 0.
    """
    check_choice(count, seed)
    table = gaps.table.sort_values("example")
    gap = (table["probe"] - table["own"]).to_numpy(float)
    places = [place for place in _largest(gap, count, seed) if gap[place] > 0]
    rows = table["example"].iloc[places].astype(int)
    among = counted(len(table), "example")
    told = f"above 0 for none of {among}"
    if len(rows):
        told = f"the {len(rows)} largest of {(gap > 0).sum()} above 0, of {among}, ties in random order (seed {seed})"
    rule = f"mean IoU of {gaps.words} minus the model's own; {told}"
    return Selection("The probe finds it, the model does not show it", rule, tuple(rows))


@dataclass(frozen=True, eq=False)
class Changes:
    """Examples of two runs whose grounding differs most.

    names: of the two runs. pairs: (row in the first, row in the second) an example; remarks: of each, in both.
    """

    names: tuple[str, str]
    rule: str
    pairs: tuple[tuple[int, int], ...]
    remarks: tuple[tuple[str, str], ...]


def most_changed(before: Run, after: Run, count: int = 4, seed: int = 0) -> Changes:
    """The examples of two runs whose grounding (``Outcomes.of``) changed most from the first to the second.

    Raises BadInput for a run against itself; for runs without an example in common, or with other captions under the
    same ids; where grounding is known of no example in both, or is another measure in each; and as ``biggest_gaps``
    does.
    """
    check_choice(count, seed)
    if Path(before.path).resolve() == Path(after.path).resolve():
        raise BadInput(f"against {str(before.path)!r} is the run itself; accepted: a run of another checkpoint")
    names = (name_of(before.path), name_of(after.path))
    both, measure = _side_by_side(before, after, f"runs {names[0]!r} and {names[1]!r}")
    change = (both["grounding_after"] - both["grounding_before"]).to_numpy(float)
    places = _largest(np.abs(change), count, seed)
    chosen = both.iloc[places]
    among = counted(len(both), "example")
    rule = (
        f"change of the example's {measure}, up or down; the {len(places)} largest of {among} that both "
        f"runs know it of, ties in random order (seed {seed})"
    )
    pairs = tuple(zip(chosen["row_before"].astype(int), chosen["row_after"].astype(int), strict=True))
    told = measure if measure == "mean IoU" else "pointing"
    values = zip(chosen["grounding_before"], chosen["grounding_after"], strict=True)
    remarks = tuple((f"{told} {old:.2f}", f"{told} {new:.2f} ({new - old:+.2f})") for old, new in values)
    return Changes(names, rule, pairs, remarks)


def _side_by_side(before: Run, after: Run, words: str) -> tuple[pd.DataFrame, str]:
    """One row an example of both runs, by id, with its row and grounding in each; and what grounding is."""
    tables, measures = [], []
    for run in (before, after):
        outcomes = Outcomes.of(run)
        columns = {"row": outcomes.table.index, "grounding": outcomes.table["grounding"]}
        tables.append(pd.DataFrame(columns | {"caption": run.examples["caption"]}).set_index(outcomes.table["id"]))
        measures.append(outcomes.measure)
    both = tables[0].merge(tables[1], left_index=True, right_index=True, suffixes=("_before", "_after")).sort_index()
    if both.empty:
        raise BadInput(f"{words} have no example in common; accepted: two of the same benchmark and split")
    differing = both.index[both["caption_before"] != both["caption_after"]]
    if len(differing):
        raise BadInput(f"{words} have other captions of example {differing[0]!r}; accepted: two of the same examples")
    if measures[0] != measures[1]:
        raise BadInput(f"{words} measure grounding as {measures[0]} and {measures[1]}; accepted: the same in both")
    both = both.dropna(subset=["grounding_before", "grounding_after"])
    if both.empty:
        raise BadInput(f"{words} have no example whose grounding both know; accepted: runs of models that ground")
    return both, measures[0]


@styled
def draw_changed(changes: Changes, cases: Sequence[tuple[Case, Case]], width: float = WIDTH) -> Figure:
    """The examples of ``changes`` one below the other, under the first run beside the second. width: inches."""
    each = share(width, 2)
    title = Selection("Most changed between two checkpoints", changes.rule, ())
    names = [Lines(break_lines(name, each, 9.5), 9.5, {"weight": "bold"}) for name in changes.names]
    blocks: list[Block] = [Heading(title, width), Row(names, each, GUTTER)]
    for pair, remarks in zip(cases, changes.remarks, strict=True):
        shown = [thumbnail(case, each, remark) for case, remark in zip(pair, remarks, strict=True)]
        blocks.append(Row(shown, each, GUTTER, ruled=True))
    blocks.append(Legend([case for pair in cases for case in pair], width))
    return on_page(Column(blocks, gap=0.16), width)


def _largest(values: np.ndarray, count: int, seed: int) -> list[int]:
    """Places of the ``count`` largest values, the largest first, ties in random order."""
    shuffled = np.random.default_rng(seed).permutation(len(values))
    order = shuffled[np.argsort(-values[shuffled], kind="stable")]
    return order[:count].tolist()
