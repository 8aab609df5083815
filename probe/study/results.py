"""The results of a study as tidy tables: curves over fractions, and how much annotation is enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from grounding.errors import BadInput
from grounding.metrics.intervals import RESAMPLES
from probe.study.config import Cell
from probe.study.folder import CELLS, CHECKPOINT, EFFECTS, EXAMPLES, JOINED, SUMMARY, SWEEP, is_evaluated, read_folder

FIGURES = ("accuracy", "mean_iou", "pointing", "recall@1", "pearson", "point_biserial")
ENOUGH = 0.9  # of the gain that all annotations bring
KEYS = ["model", "initialisation", "fraction"]
OVER = ["value", "seeds_low", "seeds_high", "seeds", "images_low", "images_high"]
LAYERS = ["question", "site", "stage", "layer", "probe", "condition", "score"]
GAPS = ["question", "probe"]
CHANGES = ["method", "target", "site", "stage", "layer", "score"]
GAINS = ["model", "initialisation", "figure", "from_fraction", "to_fraction", "gain", "low", "high", "seeds"]
ASKED = ["model", "initialisation", "figure", "from_fraction", "to_fraction", "tried", "share_of_gain"]
NEEDED = [*ASKED, "fraction", "low", "high", "no_gain", "seeds", "examples"]


@dataclass(frozen=True, eq=False)
class Results:
    """What the cells of a study found.

    figures: a row a cell and figure: value and its 95 % interval over images. curves: a row a model, initialisation,
    fraction and figure: mean over seeds, its 95 % interval over seeds (Student's t; none for one seed) and the mean of
    the cells' intervals over images. layers: the same of probe scores a site and question, beside chance. gaps: of the
    expression gap (``probe.joined``) of a question and probe. interventions: of effects beyond their control, a site.
    enough: how much annotation, of the fractions ``tried``, reaches ``ENOUGH`` of the gain that the largest brings; of
    seeds that have them all. effects: the gain from the smallest to the largest that are there, paired by seed.
    """

    figures: pd.DataFrame
    curves: pd.DataFrame
    layers: pd.DataFrame
    gaps: pd.DataFrame
    interventions: pd.DataFrame
    enough: pd.DataFrame
    effects: pd.DataFrame

    def write(self, out: Path) -> None:
        """One CSV a table, into the study's folder."""
        for name in (field.name for field in fields(self)):
            getattr(self, name).to_csv(out / f"{name}.csv", index=False)


def collect(out: Path | str, resamples: int = RESAMPLES, seed: int = 0) -> Results:
    """The results of the cells of a study that are whole so far. Raises BadInput where there is none."""
    out = Path(out)
    config = read_folder(out)
    cells = [cell for cell in config.cells() if is_evaluated(out / CELLS / cell.name)]
    if not cells:
        raise BadInput(f"study {str(out)!r} has no cell that is evaluated yet; accepted: one that probe study has run")
    figures = pd.DataFrame([row for cell in cells for row in _figures(out / CELLS / cell.name, cell)])
    examples = {cell: _examples(out / CELLS / cell.name) for cell in cells}
    return Results(
        figures=figures,
        curves=_curves(figures),
        layers=_over_seeds(_rows(out, cells, SWEEP, _real), LAYERS),
        gaps=_over_seeds(_rows(out, cells, JOINED, _gap), GAPS),
        interventions=_over_seeds(_rows(out, cells, EFFECTS, _specific), CHANGES),
        enough=_enough(examples, sorted(config.fractions), resamples, seed),
        effects=_effects(figures),
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


def _curves(figures: pd.DataFrame) -> pd.DataFrame:
    return _over_seeds([figures], ["figure"])


def mean_over_seeds(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of ``[S]`` values and its 95 % interval (Student's t); NaN bounds for one.

    >>> mean_over_seeds(np.array([1.0, 2.0, 3.0]))[0]
    2.0
    """
    mean = float(np.mean(values)) if len(values) else np.nan
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def _effects(figures: pd.DataFrame) -> pd.DataFrame:
    """Largest fraction minus none, for each seed that has both; the mean of these, and its interval over seeds."""
    rows = []
    for key, group in figures.groupby(["model", "initialisation", "figure"], sort=False):
        table = group.pivot_table(index="seed", columns="fraction", values="value")
        if table.shape[1] < 2:
            continue
        gains = (table[table.columns.max()] - table[table.columns.min()]).dropna().to_numpy()
        if not len(gains):
            continue
        mean, low, high = mean_over_seeds(gains)
        rows.append(
            dict(zip(("model", "initialisation", "figure"), key, strict=True))
            | {"from_fraction": table.columns.min(), "to_fraction": table.columns.max()}
            | {"gain": mean, "low": low, "high": high, "seeds": len(gains)}
        )
    return pd.DataFrame(rows, columns=GAINS)


def _rows(
    out: Path, cells: list[Cell], file: str, choose: Callable[[pd.DataFrame], pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """The chosen rows of one file of every cell that has it."""
    for cell in cells:
        path = out / CELLS / cell.name / file
        if path.is_file():
            yield choose(pd.read_csv(path)).assign(**_keys(cell))


def _real(sweep: pd.DataFrame) -> pd.DataFrame:
    return sweep[(sweep["condition"] == sweep["question"]) | (sweep["condition"] == "selectivity")]


def _gap(joined: pd.DataFrame) -> pd.DataFrame:
    return joined[joined["measure"] == "expression_gap"]


def _specific(interventions: pd.DataFrame) -> pd.DataFrame:
    rows = interventions[interventions["condition"] == "specific"]
    return rows.assign(value=rows["effect"])


def _over_seeds(tables: Iterable[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Mean of ``value`` over the cells' seeds, a row for cells otherwise alike and ``columns``, as ``OVER`` has it.

    The intervals over seeds and, as the mean of the cells' ``low`` and ``high``, over images; ``chance`` where it is.
    """
    held = [table for table in tables if len(table)]
    keys = [*KEYS, *columns]
    if not held:
        return pd.DataFrame(columns=[*keys, *OVER])
    rows = []
    for key, group in pd.concat(held).groupby(keys, sort=False):
        mean, low, high = mean_over_seeds(group["value"].dropna().to_numpy())
        over = (mean, low, high, len(group), group["low"].mean(), group["high"].mean())
        row = dict(zip(keys, key, strict=True)) | dict(zip(OVER, over, strict=True))
        rows.append(row | ({"chance": group["chance"].mean()} if "chance" in group else {}))
    return pd.DataFrame(rows)


def _examples(folder: Path) -> pd.Series:
    """Mean IoU of every example with phrases, by id."""
    table = pd.read_csv(folder / EXAMPLES, usecols=["id", "mean_iou", "phrases"])
    return table[table["phrases"] > 0].set_index("id")["mean_iou"]


def _enough(examples: dict[Cell, pd.Series], fractions: list[float], resamples: int, seed: int) -> pd.DataFrame:
    """The smallest fraction whose mean IoU has ``ENOUGH`` of the gain; its interval resamples seeds and examples.

    fractions: of the study, ascending; models without a seed that has them all have no row.
    """
    rows = []
    for model, initialisation in dict.fromkeys((cell.model, cell.initialisation) for cell in examples):
        mine = {c: s for c, s in examples.items() if (c.model, c.initialisation) == (model, initialisation)}
        seeds = sorted(
            {c.seed for c in mine if all(any(d.seed == c.seed and d.fraction == f for d in mine) for f in fractions)}
        )
        if len(fractions) < 2 or not seeds:
            continue
        ids = sorted(set.intersection(*(set(series.index) for series in mine.values())))
        scores = np.array(
            [
                [series.loc[ids] for f in fractions for c, series in mine.items() if (c.seed, c.fraction) == (s, f)]
                for s in seeds
            ]
        )  # [seeds, fractions, examples]
        drawn = _resampled(scores, resamples, seed)
        found = np.array([smallest_enough(np.array(fractions), curve) for curve in drawn])
        low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (np.nan, np.nan)
        rows.append(
            {"model": model, "initialisation": initialisation, "figure": "mean_iou"}
            | {"from_fraction": fractions[0], "to_fraction": fractions[-1]}
            | {"tried": " ".join(f"{fraction:g}" for fraction in fractions), "share_of_gain": ENOUGH}
            | {"fraction": smallest_enough(np.array(fractions), scores.mean((0, 2))), "low": low, "high": high}
            | {"no_gain": float(np.isnan(found).mean()), "seeds": len(seeds), "examples": len(ids)}
        )
    return pd.DataFrame(rows, columns=NEEDED)


def _resampled(scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Curves ``[R, fractions]`` of scores ``[S, fractions, E]`` over drawn seeds and drawn examples."""
    random = np.random.default_rng(seed)
    seeds, _, count = scores.shape
    weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    examples = random.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    return np.einsum("rs,sfe,re->rf", weights, scores, examples, optimize=True)


def smallest_enough(fractions: np.ndarray, values: np.ndarray, share: float = ENOUGH) -> float:
    """The smallest of ascending ``fractions [F]`` whose ``values [F]`` have a share of the gain from first to last.

    NaN where the last is no better than the first.

    >>> smallest_enough(np.array([0, 0.1, 0.3, 1]), np.array([0.1, 0.3, 0.48, 0.5]))
    0.3
    """
    gain = values[-1] - values[0]
    if not gain > 0:
        return float("nan")
    return float(fractions[np.argmax(values - values[0] >= share * gain - 1e-12)])
