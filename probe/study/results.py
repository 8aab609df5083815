"""The results of a study as tidy tables: curves over fractions, and how much annotation is enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from grounding.errors import BadInput
from grounding.metrics.intervals import RESAMPLES
from probe.study.best import COLUMNS, best_sites
from probe.study.config import Cell
from probe.study.folder import CELLS, CHECKPOINT, EFFECTS, EXAMPLES, JOINED, SUMMARY, SWEEP, is_evaluated, read_folder
from probe.study.gains import TASKS, enough, gains, statistics_of
from probe.study.seeds import KEYS, over_seeds

FIGURES = (*TASKS, "mean_distance", "mean_iou", "pointing", "recall@1", "pearson", "point_biserial")
LAYERS = ["question", "site", "stage", "layer", "probe", "condition", "score"]
BEST = [*KEYS, "seed", *COLUMNS]
GAPS = ["question", "probe"]
CHANGES = ["method", "target", "site", "stage", "layer", "score"]


@dataclass(frozen=True, eq=False)
class Results:
    """What the cells of a study found.

    figures: a row a cell and figure: value and its 95 % interval over images. curves: a row a model, initialisation,
    fraction and figure: mean over seeds, its 95 % interval over seeds (Student's t; none for one seed) and the mean of
    the cells' intervals over images. layers: the same of probe scores a site and question, beside chance. best: a row a
    cell, question and probe: its best site (``best_sites``). gaps: means over seeds of the expression gap
    (``probe.joined``) of a question and probe. interventions: of effects beyond their control, a site.
    enough: how much annotation, of the fractions ``tried``, reaches ``ENOUGH`` of the gain that the largest brings; of
    seeds that have them all. effects: the gain from the smallest to the largest that are there, paired by seed, with
    intervals over seeds and over images (``probe.study.gains``).
    """

    figures: pd.DataFrame
    curves: pd.DataFrame
    layers: pd.DataFrame
    best: pd.DataFrame
    gaps: pd.DataFrame
    interventions: pd.DataFrame
    enough: pd.DataFrame
    effects: pd.DataFrame

    def write(self, out: Path) -> None:
        """One CSV a table, into the study's folder."""
        for name in (field.name for field in fields(self)):
            getattr(self, name).to_csv(out / f"{name}.csv", index=False)


def collect(out: Path | str, resamples: int = RESAMPLES, seed: int = 0) -> Results:
    """The results of the cells of a study that are evaluated so far. Raises BadInput where there is none."""
    out = Path(out)
    config = read_folder(out)
    cells = [cell for cell in config.cells() if is_evaluated(out / CELLS / cell.name)]
    if not cells:
        raise BadInput(f"study {str(out)!r} has no cell that is evaluated yet; accepted: one that probe study has run")
    figures = pd.DataFrame([row for cell in cells for row in _figures(out / CELLS / cell.name, cell)])
    examples = {cell: pd.read_csv(out / CELLS / cell.name / EXAMPLES) for cell in cells}
    statistics = statistics_of(examples, figures)
    return Results(
        figures=figures,
        curves=over_seeds([figures], ["figure"]),
        layers=over_seeds(_rows(out, cells, SWEEP, _real), LAYERS),
        best=_best(_rows(out, cells, SWEEP, best_sites)),
        gaps=over_seeds(_rows(out, cells, JOINED, _gap), GAPS),
        interventions=over_seeds(_rows(out, cells, EFFECTS, _specific), CHANGES),
        enough=enough(statistics, sorted(config.fractions), resamples, seed),
        effects=gains(figures, statistics, resamples, seed),
    )


def _figures(folder: Path, cell: Cell) -> Iterator[dict[str, Any]]:
    found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["figures"]
    training = json.loads((folder / CHECKPOINT).read_text(encoding="utf-8")).get("training", {})
    learned = training.get("annotations", {}).get("learned")
    for name in FIGURES:
        if name in found and found[name]["value"] is not None:
            values = {part: found[name][part] for part in ("value", "low", "high", "n")}
            yield _keys(cell) | {"seed": cell.seed, "learned_phrases": learned, "figure": name} | values


def _keys(cell: Cell) -> dict[str, Any]:
    return {"model": cell.model, "initialisation": cell.initialisation, "fraction": cell.fraction}


def _rows(
    out: Path, cells: list[Cell], file: str, choose: Callable[[pd.DataFrame], pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """The chosen rows of one file of every cell that has it."""
    for cell in cells:
        path = out / CELLS / cell.name / file
        if path.is_file():
            yield choose(pd.read_csv(path)).assign(**_keys(cell), seed=cell.seed)


def _real(sweep: pd.DataFrame) -> pd.DataFrame:
    return sweep[(sweep["condition"] == sweep["question"]) | (sweep["condition"] == "selectivity")]


def _best(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    held = list(tables)
    return pd.concat(held, ignore_index=True)[BEST] if held else pd.DataFrame(columns=BEST)


def _gap(joined: pd.DataFrame) -> pd.DataFrame:
    return joined[joined["measure"] == "expression_gap"]


def _specific(interventions: pd.DataFrame) -> pd.DataFrame:
    rows = interventions[interventions["condition"] == "specific"]
    return rows.assign(value=rows["effect"])
