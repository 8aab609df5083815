"""95 % intervals by the cluster bootstrap: whole groups (images) are drawn with replacement.

Phrases of one image, and captions of one image, are not independent; drawing them one by one would give
intervals that are too narrow (Cameron, Gelbach and Miller 2008, section III). A resample is a count of each
group, so a statistic needs no data copied: it is a function of weights, or, cheaper, of weighted sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.values import check_counts

RESAMPLES = 10_000
_CHUNK = 100_000  # numbers in one block of resamples: a processor's cache holds them


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, over ``n`` values in ``groups`` groups.

    low, high: None where there is no interval (fewer than two groups, or a figure that is undefined in more resamples
    than an interval leaves out: of those that are left, it would say more than is known).
    value: None where the figure is undefined. ``reason`` then says why, in words.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Statistic:
    """A figure as a function of how often each group is drawn, so that several can share their resamples.

    labels: the G groups, sorted. of_counts: float64 ``[R, G]`` -> values ``[R]``, NaN where undefined. n: values.
    width: numbers that one resample takes in memory. biased: whether groups that are drawn twice move the figure; its
    draws are then put back around its value, less the bootstrap's estimate of bias (Efron and Tibshirani 1993, section
    10.2), and cut off at its ``bounds``.
    """

    labels: tuple[object, ...]
    of_counts: Callable[[np.ndarray], np.ndarray]
    n: int
    width: int
    biased: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)

    @classmethod
    def of_sums(
        cls,
        statistic: Callable[[np.ndarray], np.ndarray],
        columns: np.ndarray,
        groups: Sequence[str] | np.ndarray,
    ) -> Statistic:
        """From weighted sums: ``statistic`` takes sums float64 ``[R, S]`` of the S ``columns`` ``[E, S]``.

        groups: E labels. Raises BadInput for columns that are not finite and lengths that differ.
        """
        columns = np.asarray(columns, dtype=np.float64)
        codes, labels = _encode(groups, len(columns))
        if not np.isfinite(columns).all():
            raise BadInput(f"values hold {int((~np.isfinite(columns)).sum())} numbers that are not finite")
        sums = np.zeros((len(labels), columns.shape[1]))
        np.add.at(sums, codes, columns)
        return cls(labels, lambda counts: statistic(counts @ sums), len(columns), len(labels))

    @classmethod
    def of_weights(cls, statistic: Callable[[np.ndarray], np.ndarray], groups: Sequence[str] | np.ndarray) -> Statistic:
        """From weights float64 ``[R, E]``: how often the group of each value was drawn. groups: E labels."""
        codes, labels = _encode(groups, len(groups))
        return cls(labels, lambda counts: statistic(counts[:, codes]), len(codes), len(codes))

    @classmethod
    def mean(
        cls,
        values: Sequence[float] | np.ndarray,
        groups: Sequence[str] | np.ndarray,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> Statistic:
        """(Weighted) mean of values ``[E]``: sum(w v) / sum(w), recomputed in every resample."""
        values = np.asarray(values, dtype=np.float64)
        weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
        if weights.shape != values.shape:
            raise BadInput(f"weights have shape {weights.shape}, values {values.shape}; accepted: equal ones")
        return cls.of_sums(lambda sums: sums[:, 0] / sums[:, 1], np.stack([values * weights, weights], 1), groups)

    def value(self) -> float:
        """The figure of the sample itself; NaN where it is undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.of_counts(np.ones((1, len(self.labels))))[0]) if self.labels else float("nan")


def bootstrap(
    statistics: Mapping[str, Statistic], resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, Estimate]:
    """Estimates by name, percentile intervals at ``level``; statistics over the same groups share their resamples."""
    drawn = resampled(statistics, resamples, seed)
    return {name: estimated(statistic, drawn[name], level) for name, statistic in statistics.items()}


def resampled(statistics: Mapping[str, Statistic], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, np.ndarray]:
    """Figures of ``resamples`` draws of the groups by name, float64 ``[resamples]``, NaN where undefined.

    Statistics over the same groups share their draws; over fewer than two groups there are none. Raises BadInput for
    fewer than one resample.
    """
    check_counts(resamples=resamples)
    sharing: dict[tuple[object, ...], list[str]] = {}
    for name, statistic in statistics.items():
        sharing.setdefault(statistic.labels, []).append(name)
    drawn: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in statistics}
    for labels, names in sharing.items():
        rows = max(1, _CHUNK // max(1, *(statistics[name].width for name in names)))
        for counts in _counts(len(labels), resamples, seed, rows):
            with np.errstate(divide="ignore", invalid="ignore"):
                for name in names:
                    drawn[name].append(statistics[name].of_counts(counts))
    return {name: _around_value(statistics[name], np.concatenate(blocks)) for name, blocks in drawn.items()}


def estimated(statistic: Statistic, drawn: np.ndarray, level: float = 0.95) -> Estimate:
    """A figure with the percentile interval at ``level`` of what ``resampled`` drew for it."""
    if not 0 < level < 1:
        raise BadInput(f"level {level} is out of range; accepted: 0 < level < 1")
    n, groups, value = statistic.n, len(statistic.labels), statistic.value()
    if not n:
        return Estimate(None, None, None, n, groups, "no values")
    if not np.isfinite(value):
        return Estimate(None, None, None, n, groups, "undefined for these values")
    if groups < 2:
        return Estimate(value, None, None, n, groups, "one group only: no interval")
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < level * len(drawn):
        lost = 1 - len(defined) / len(drawn)
        return Estimate(value, None, None, n, groups, f"undefined in {lost:.0%} of the resamples: no interval")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, groups)


def paired_difference(
    first: Statistic, second: Statistic, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> Estimate:
    """The ``difference`` of two statistics with its interval."""
    return bootstrap({"": difference(first, second)}, resamples, seed, level)[""]


def difference(first: Statistic, second: Statistic) -> Statistic:
    """``first`` minus ``second``, both over the same images in every resample.

    Where what is hard for one is hard for the other, its interval is narrower than two separate intervals suggest.
    Raises BadInput for statistics over different groups.
    """
    if first.labels != second.labels:
        raise BadInput(
            f"{len(first.labels)} and {len(second.labels)} groups are not the same ones: a paired difference needs "
            "the same images"
        )

    def of_counts(counts: np.ndarray) -> np.ndarray:
        return first.of_counts(counts) - second.of_counts(counts)

    biased, (low, high), (least, most) = first.biased or second.biased, first.bounds, second.bounds
    n, width = min(first.n, second.n), max(first.width, second.width)
    return Statistic(first.labels, of_counts, n, width, biased, (low - most, high - least))


def bootstrap_weights(
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str] | np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate of any statistic that can be given weights: ``Statistic.of_weights``."""
    return bootstrap({"": Statistic.of_weights(statistic, groups)}, resamples, seed, level)[""]


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate of a (weighted) mean of values ``[E]``: ``Statistic.mean``."""
    return bootstrap({"": Statistic.mean(values, groups, weights)}, resamples, seed, level)[""]


def _around_value(statistic: Statistic, drawn: np.ndarray) -> np.ndarray:
    if not statistic.biased or np.isnan(drawn).all():
        return drawn
    return np.clip(drawn - np.nanmean(drawn) + statistic.value(), *statistic.bounds)


def _encode(groups: Sequence[str] | np.ndarray, n: int) -> tuple[np.ndarray, tuple[object, ...]]:
    """Group labels as 0..G-1, and the labels; sorted, so that the order of the examples does not matter."""
    if len(groups) != n:
        raise BadInput(f"{len(groups)} group labels for {n} values; accepted: one each")
    codes, labels = pd.factorize(np.asarray(groups), sort=True)
    if (codes < 0).any():
        raise BadInput(f"{int((codes < 0).sum())} values have no group label")
    return codes, tuple(np.asarray(labels).tolist())


def _counts(groups: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """How often each group is drawn: float64 ``[rows, groups]`` blocks, ``resamples`` rows in all."""
    if groups < 2:
        return
    rng = np.random.default_rng(seed)
    rows = max(1, min(rows, _CHUNK // groups))
    for begin in range(0, resamples, rows):
        block = min(rows, resamples - begin)
        drawn = rng.integers(groups, size=(block, groups))
        drawn += groups * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * groups).reshape(block, groups).astype(np.float64)
