"""95 % intervals by the cluster bootstrap: whole groups (images) are drawn with replacement.

Phrases of one image, and captions of one image, are not independent; drawing them one by one would give
intervals that are too narrow (Cameron, Gelbach and Miller 2008, section III). A resample is a count of each
group, so a statistic needs no data copied: it is a function of weights, or, cheaper, of weighted sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from grounding.errors import BadInput

RESAMPLES = 10_000
_CHUNK = 1_000_000  # numbers in one block of resamples


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, over ``n`` values in ``groups`` groups.

    low, high: None where there is no interval (fewer than two groups, or too few defined resamples).
    value: None where the figure is undefined. ``reason`` then says why, in words.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int
    reason: str | None = None


def bootstrap_sums(
    statistic: Callable[[np.ndarray], np.ndarray],
    columns: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate of a statistic of weighted sums: means, ratios, correlations from moments.

    statistic: sums float64 ``[R, S]`` of the S columns -> values ``[R]``, NaN where undefined.
    columns: ``[E, S]``, one row a value. groups: E labels. Percentile interval at ``level``, seeded.
    Raises BadInput for columns that are not finite, lengths that differ, or numbers out of range.
    """
    columns = np.asarray(columns, dtype=np.float64)
    _check_options(resamples, level)
    codes, n_groups = _encode(groups, len(columns))
    if not np.isfinite(columns).all():
        raise BadInput(f"values hold {int((~np.isfinite(columns)).sum())} numbers that are not finite")
    sums = np.zeros((n_groups, columns.shape[1]))
    np.add.at(sums, codes, columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(sums.sum(0, keepdims=True))[0] if n_groups else np.nan
        drawn = [statistic(counts @ sums) for counts in _counts(n_groups, resamples, seed)]
    return _estimate(value, drawn, len(columns), n_groups, level)


def bootstrap_weights(
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str] | np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Estimate of any statistic that can be given weights: float64 ``[R, E]`` -> values ``[R]``.

    Weights are how often a value's group was drawn. For the rest see ``bootstrap_sums``.
    """
    _check_options(resamples, level)
    codes, n_groups = _encode(groups, len(groups))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(np.ones((1, len(codes))))[0] if n_groups else np.nan
        rows = max(1, _CHUNK // max(1, len(codes)))
        drawn = [statistic(counts[:, codes]) for counts in _counts(n_groups, resamples, seed, rows)]
    return _estimate(value, drawn, len(codes), n_groups, level)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """(Weighted) mean of values ``[E]``: sum(w v) / sum(w), recomputed in every resample."""
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != values.shape:
        raise BadInput(f"weights have shape {weights.shape}, values {values.shape}; accepted: equal ones")
    columns = np.stack([values * weights, weights], 1)
    return bootstrap_sums(lambda sums: sums[:, 0] / sums[:, 1], columns, groups, resamples, seed, level)


def _check_options(resamples: int, level: float) -> None:
    if resamples < 1:
        raise BadInput(f"resamples {resamples} is too small; accepted: 1 or more")
    if not 0 < level < 1:
        raise BadInput(f"level {level} is out of range; accepted: 0 < level < 1")


def _encode(groups: Sequence[str] | np.ndarray, n: int) -> tuple[np.ndarray, int]:
    """Group labels as 0..G-1; sorted, so that the order of the examples does not matter."""
    if len(groups) != n:
        raise BadInput(f"{len(groups)} group labels for {n} values; accepted: one each")
    codes, labels = pd.factorize(np.asarray(groups), sort=True)
    if (codes < 0).any():
        raise BadInput(f"{int((codes < 0).sum())} values have no group label")
    return codes, len(labels)


def _counts(groups: int, resamples: int, seed: int, rows: int | None = None) -> Iterator[np.ndarray]:
    """How often each group is drawn: float64 ``[rows, groups]`` blocks, ``resamples`` rows in all."""
    if groups < 2:
        return
    rng = np.random.default_rng(seed)
    rows = max(1, min(rows or resamples, _CHUNK // groups))
    for begin in range(0, resamples, rows):
        block = min(rows, resamples - begin)
        drawn = rng.integers(groups, size=(block, groups))
        drawn += groups * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * groups).reshape(block, groups).astype(np.float64)


def _estimate(value: float, drawn: list[np.ndarray], n: int, groups: int, level: float) -> Estimate:
    if not n:
        return Estimate(None, None, None, n, groups, "no values")
    if not np.isfinite(value):
        return Estimate(None, None, None, n, groups, "undefined for these values")
    if groups < 2:
        return Estimate(float(value), None, None, n, groups, "one group only: no interval")
    resampled = np.concatenate(drawn)
    defined = resampled[np.isfinite(resampled)]
    if 2 * len(defined) < len(resampled):
        return Estimate(float(value), None, None, n, groups, "undefined in most resamples: no interval")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high), n, groups)
