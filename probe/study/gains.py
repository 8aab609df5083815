"""What annotation brings: all of it minus none, and the smallest fraction that has most of the gain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from grounding.metrics.intervals import RESAMPLES, Statistic, bootstrap, difference, resampled
from grounding.metrics.joint import correlation_statistic, undefined
from probe.study.config import Cell
from probe.study.seeds import mean_over_seeds

ENOUGH = 0.9  # of the gain that all annotations bring
TASKS = ("accuracy", "accuracy@80px")  # of games, and of points in panoramas: what ``correct`` is the mean of
FIGURE = ["model", "initialisation", "figure"]
GAINS = [*FIGURE, "from_fraction", "to_fraction", "gain", "low", "high", "seeds", "images_low", "images_high"]
NEEDED = [
    *(*FIGURE, "from_fraction", "to_fraction", "tried", "share_of_gain"),
    *("fraction", "low", "high", "no_gain", "seeds", "examples"),
]
Statistics = dict[tuple[str, str, str], dict[tuple[int, float], Statistic]]


def statistics_of(examples: Mapping[Cell, pd.DataFrame], figures: pd.DataFrame) -> Statistics:
    """Accuracy, mean IoU and correlation of cells: by model, initialisation and figure, then by seed and fraction.

    examples: a table a cell, columns id, phrases, score, correct, mean_iou; group_image where images are shared, of any
    cell; has_task where some have none. figures: of all cells; what they lack is left out. Cells of a model and
    initialisation are compared over the examples that they all have.
    """
    found: Statistics = {}
    known = set(figures[FIGURE].itertuples(index=False, name=None))
    for start in dict.fromkeys((cell.model, cell.initialisation) for cell in examples):
        tables = {c: t.set_index("id") for c, t in examples.items() if (c.model, c.initialisation) == start}
        ids = pd.Index(sorted(set.intersection(*(set(table.index) for table in tables.values()))))
        images = _images(tables.values(), ids)
        for cell, table in tables.items():
            for figure, statistic in cell_statistics(table.loc[ids].assign(group_image=images)):
                if (key := (*start, figure)) in known:
                    found.setdefault(key, {})[cell.seed, cell.fraction] = statistic
    return found


def _images(tables: Iterable[pd.DataFrame], ids: pd.Index) -> np.ndarray:
    """The image of each example, as the first table that names images has it; the example itself where none does."""
    named = [table["group_image"] for table in tables if "group_image" in table]
    return np.asarray(named[0].loc[ids] if named else ids, dtype=str)


def cell_statistics(examples: pd.DataFrame) -> Iterator[tuple[str, Statistic]]:
    """The figures of one cell as evaluations have them: phrases weigh alike, images (``group_image``) are drawn.

    Where some examples are answered, those with a task that are not are wrong.
    """
    answered, grounded = examples["score"].notna(), examples[examples["phrases"] > 0]
    asked = examples[examples["has_task"] & answered.any() if "has_task" in examples else answered]
    success = Statistic.mean(asked["correct"].eq(True).to_numpy(float), asked["group_image"].to_numpy())
    yield from ((name, success) for name in TASKS)
    phrases, images = grounded["phrases"].to_numpy(), grounded["group_image"].to_numpy()
    yield "mean_iou", Statistic.mean(grounded["mean_iou"].to_numpy(), images, phrases)
    both = grounded[grounded["score"].notna()]
    score, iou = both["score"].to_numpy(), both["mean_iou"].to_numpy()
    if undefined("pearson", score, iou) is None:
        yield "pearson", correlation_statistic("pearson", score, iou, both["group_image"].to_numpy())


def gains(figures: pd.DataFrame, statistics: Statistics, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """The largest fraction minus the smallest, for each seed that has both; a row a figure (``GAINS``).

    figures: of all cells, as ``Results`` has them. gain: mean over seeds; low, high: its 95 % interval over seeds
    (Student's t), NaN for one. images_low, images_high: over images, the same in all cells; NaN for figures that
    ``statistics`` lacks.
    """
    rows = []
    for key, group in figures.groupby(FIGURE, sort=False):
        table = group.pivot_table(index="seed", columns="fraction", values="value")
        first, last = table.columns.min(), table.columns.max()
        both = table[[first, last]].dropna() if first < last else table[:0]
        if both.empty:
            continue
        cells = statistics.get(key, {})
        images = _over_images([(cells.get((s, last)), cells.get((s, first))) for s in both.index], resamples, seed)
        mean, low, high = mean_over_seeds((both[last] - both[first]).to_numpy())
        rows.append((*key, first, last, mean, low, high, len(both), *images))
    return pd.DataFrame(rows, columns=GAINS)


def _over_images(
    pairs: Sequence[tuple[Statistic | None, Statistic | None]], resamples: int, seed: int
) -> tuple[float, float]:
    """95 % interval of the mean of first minus second, NaN where a statistic is not there."""
    differences = [difference(one, other) for one, other in pairs if one is not None and other is not None]
    if len(differences) < len(pairs):
        return np.nan, np.nan
    mean = Statistic(
        differences[0].labels,
        lambda counts: np.mean([each.of_counts(counts) for each in differences], axis=0),
        differences[0].n,
        differences[0].width,
    )
    found = bootstrap({"": mean}, resamples, seed)[""]
    return (np.nan, np.nan) if found.low is None or found.high is None else (found.low, found.high)


def enough(
    statistics: Statistics, fractions: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """The smallest fraction with ``ENOUGH`` of the gain in each figure; its interval resamples seeds and images.

    fractions: of the study, ascending. Of seeds that have them all; figures without one, and those of a single image,
    have no row (``NEEDED``).
    """
    rows = []
    tried = " ".join(f"{fraction:g}" for fraction in fractions)
    for key, cells in statistics.items():
        seeds = sorted({s for s, _ in cells if all((s, fraction) in cells for fraction in fractions)})
        if len(fractions) < 2 or not seeds or min(len(statistic.labels) for statistic in cells.values()) < 2:
            continue
        curves = {f"{s} {fraction}": cells[s, fraction] for s in seeds for fraction in fractions}
        shape = (len(seeds), len(fractions))
        values = np.reshape([statistic.value() for statistic in curves.values()], shape)
        drawn = np.reshape([*resampled(curves, resamples, seed).values()], (*shape, resamples))
        shares = np.random.default_rng(seed).multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), resamples)
        means = np.einsum("rs,sfr->rf", shares / len(seeds), drawn)
        found = np.array([smallest_enough(np.array(fractions), curve) for curve in means])
        low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (np.nan, np.nan)
        fraction = smallest_enough(np.array(fractions), values.mean(0))
        asked, examples = (fractions[0], fractions[-1], tried, ENOUGH), cells[seeds[0], fractions[0]].n
        rows.append((*key, *asked, fraction, low, high, np.isnan(found).mean(), len(seeds), examples))
    return pd.DataFrame(rows, columns=NEEDED)


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
