"""The expression gap example by example: what a probe finds of each beside what the model shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from probe.tables import ITEMS, JOINED, read_sweep

if TYPE_CHECKING:
    from extract.reader import Run


@dataclass(frozen=True)
class ExampleGaps:
    """table: one row an example of the test part: example (row of the run), probe and own, its mean IoUs over the same
    phrases. question, probe, site, seed: whose; the site is the best on validation."""

    table: pd.DataFrame
    question: str
    probe: str
    site: str
    seed: int


def example_gaps(folder: Path, run: Run) -> ExampleGaps | None:
    """The gaps of ``run`` from the files of a sweep: of its first question and probe that have an expression gap.

    None where there is none: no sweep, no question with an IoU of its own, or a model that shows none.
    Raises BadInput for the sweep of another run.
    """
    swept = read_sweep(folder, run, required=False)
    if swept is None or not (folder / JOINED).is_file():
        return None
    name = swept["run"].iloc[0]
    joined = pd.read_csv(folder / JOINED)
    found = joined[(joined["run"] == name) & (joined["measure"] == "expression_gap") & joined["value"].notna()]
    if found.empty:
        return None
    best = found.iloc[0]
    same = {key: best[key] for key in ("run", "question", "probe", "site", "seed")} | {"part": "test"}
    items = pd.read_parquet(folder / ITEMS)
    for key, value in same.items():
        items = items[items[key] == value]
    items = items[(items["phrase"] >= 0) & items["own_iou"].notna() & items["iou"].notna()]
    means = items.groupby("example")[["iou", "own_iou"]].mean()
    table = means.set_axis(["probe", "own"], axis=1).reset_index()
    return ExampleGaps(table, str(best["question"]), str(best["probe"]), str(best["site"]), int(best["seed"]))
