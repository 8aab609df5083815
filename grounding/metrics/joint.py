"""Do task and grounding go together, example by example? Correlations with intervals and p-values.

Kojima et al. (arXiv 2309.02691, section 6) correlate the task score of each example with the mean IoU of its
phrases. Here scores point the same way for every model (higher is better), so signs can be compared.
Intervals draw whole images. The permutation test shuffles examples one by one: it takes them to be
exchangeable, so where one image holds many examples, trust the interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.intervals import RESAMPLES, Estimate, Statistic, bootstrap
from grounding.values import check_counts

CORRELATIONS = ("pearson", "spearman", "point_biserial")
PERMUTATIONS = 10_000
_CHUNK = 1_000_000  # numbers in one block of permutations
NOISE = 1e-12  # a spread below this share of the values (or squared, of their squares) is rounding


@dataclass(frozen=True)
class Correlation(Estimate):
    """A correlation with its interval and its two-sided permutation p-value.

    value and p are None where it is undefined; ``reason`` says why.
    """

    p: float | None = None


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of ``[E]`` and ``[E]``; NaN where one of them is constant. With x in {0, 1}: point-biserial."""
    x, y = _standardised(np.asarray(x, dtype=np.float64)), _standardised(np.asarray(y, dtype=np.float64))
    return float((x * y).mean())


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho: Pearson's r of the ranks (ties get their mean rank)."""
    return pearson(rankdata(x), rankdata(y))


def correlate(
    kind: str,
    task: np.ndarray,
    grounding: np.ndarray,
    groups: np.ndarray,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Correlation:
    """One correlation between a task column ``[E]`` and a grounding column ``[E]``: see ``correlations``."""
    columns = np.asarray(grounding, dtype=np.float64)[:, None]
    return correlations(kind, task, columns, groups, resamples, permutations, seed)[0]


def correlations(
    kind: str,
    task: np.ndarray,
    groundings: np.ndarray,
    groups: np.ndarray,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[Correlation]:
    """Correlations of a task column ``[E]`` with each of S ways to measure grounding ``[E, S]``.

    All share their resamples and permutations, so S of them take little longer than one.
    kind: ``pearson``, ``spearman``, or ``point_biserial`` (task is then success, 0 or 1).
    groups: E labels (images) that are resampled whole. Raises BadInput for lengths that differ, values that
    are not finite, an unknown kind; undefined cases are returned, with a reason.
    """
    if kind not in CORRELATIONS:
        raise unknown_choice("correlation", kind, CORRELATIONS)
    task, groundings = check_columns(task, groundings, groups)
    if kind == "point_biserial" and not np.isin(task, (0, 1)).all():
        raise BadInput("point_biserial takes task success, 0 or 1, got other values")
    reasons = [undefined(kind, task, grounding) for grounding in groundings.T]
    if kind == "spearman":
        permuted = rankdata(task), rankdata(groundings, axis=0) if len(task) else groundings
    else:
        permuted = task, groundings
    return estimate_links(
        lambda number: correlation_statistic(kind, task, groundings[:, number], groups),
        (permuted[0], permuted[1]),
        reasons,
        groups,
        resamples,
        permutations,
        seed,
    )


def correlation_statistic(kind: str, task: np.ndarray, grounding: np.ndarray, groups: np.ndarray) -> Statistic:
    """A correlation of columns ``[E]`` that both vary (``undefined``), ready to be resampled."""
    if kind == "spearman":
        return _spearman_statistic(task, grounding, groups)
    x, y = _standardised(task), _standardised(grounding)  # r is the same, its moments are better conditioned
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)
    return Statistic.of_sums(_moment_correlation, moments, groups)


def estimate_links(
    statistic: Callable[[int], Statistic],
    permuted: tuple[np.ndarray, np.ndarray],
    reasons: list[str | None],
    groups: np.ndarray,
    resamples: int,
    permutations: int,
    seed: int,
) -> list[Correlation]:
    """S correlations with intervals and p-values, those with a reason undefined.

    statistic: of grounding number 0..S-1. permuted: columns ``[E]`` and ``[E, S]`` whose pairing is permuted.
    """
    defined = [number for number, reason in enumerate(reasons) if reason is None]
    estimates = bootstrap({str(number): statistic(number) for number in defined}, resamples, seed)
    chances = permutation_ps(permuted[0], permuted[1][:, defined], permutations, seed) if defined else np.zeros(0)
    p = dict(zip(defined, chances, strict=True))
    count = len(set(np.asarray(groups).tolist()))
    return [
        Correlation(**vars(estimates[str(number)]), p=float(p[number]))
        if reason is None
        else Correlation(None, None, None, len(groups), count, reason)
        for number, reason in enumerate(reasons)
    ]


def permutation_p(x: np.ndarray, y: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of Pearson's r of ``[E]`` and ``[E]`` under random pairings: see ``permutation_ps``."""
    return float(permutation_ps(x, np.asarray(y)[:, None], permutations, seed)[0])


def permutation_ps(x: np.ndarray, ys: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0) -> np.ndarray:
    """Two-sided p ``[S]`` of Pearson's r: (1 + #{|r*| >= |r|}) / (1 + permutations).

    The count includes the observed pairing (Phipson and Smyth 2010), so p is never 0. x: ``[E]``, which is permuted;
    ys: ``[E, S]``. BadInput where one of them is constant, and for no permutations.
    """
    check_counts(permutations=permutations)
    if not (_varies(x) and all(_varies(y) for y in ys.T)):
        raise BadInput("x or y is constant: no permutation of it changes anything")
    x, ys = _standardised(x), np.stack([_standardised(y) for y in ys.T], 1)
    order = np.lexsort((*ys.T, x))  # the same p for any order of the examples
    x, ys = x[order], ys[order]
    observed = np.abs(x @ ys)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(x))
    extreme = np.zeros(ys.shape[1])
    for begin in range(0, permutations, rows):
        block = np.tile(x, (min(rows, permutations - begin), 1))
        extreme += (np.abs(rng.permuted(block, axis=1, out=block) @ ys) >= observed * (1 - NOISE)).sum(0)
    return (1 + extreme) / (1 + permutations)


def check_columns(task: np.ndarray, groundings: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Task ``[E]`` and grounding ``[E]`` or ``[E, S]`` as float64.

    Raises BadInput for lengths that differ and values that are not finite.
    """
    task, groundings = np.asarray(task, dtype=np.float64), np.asarray(groundings, dtype=np.float64)
    if task.shape != (len(groups),) or groundings.shape[:1] != task.shape:
        raise BadInput(f"task {task.shape}, grounding {groundings.shape} and {len(groups)} groups differ in length")
    if not (np.isfinite(task).all() and np.isfinite(groundings).all()):
        raise BadInput("task or grounding holds numbers that are not finite")
    return task, groundings


def undefined(kind: str, task: np.ndarray, grounding: np.ndarray) -> str | None:
    """Why there is no such correlation of those columns ``[E]``; None where there is one."""
    if len(task) < 3:
        return f"{len(task)} examples: a correlation needs 3 or more"
    if not _varies(grounding):
        return f"grounding is {grounding[0]:g} in all examples"
    if not _varies(task):
        if kind == "point_biserial":
            return f"one class only: the task is {'right' if task[0] else 'wrong'} in all examples"
        return f"the task score is {task[0]:g} in all examples"
    return None


def _varies(values: np.ndarray) -> bool:
    """Whether values differ by more than rounding."""
    return bool(np.ptp(values) > NOISE * np.abs(values).max())


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    deviation = np.sqrt((centred**2).mean())
    return centred / deviation if _varies(values) else np.full_like(values, np.nan)


def _moment_correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's r from sums ``[R, 6]`` of 1, x, y, x^2, y^2, xy; NaN where x or y does not vary."""
    _, x, y, xx, yy, xy = (sums / sums[:, :1]).T
    var_x, var_y = xx - x * x, yy - y * y
    varies = (var_x > NOISE * xx) & (var_y > NOISE * yy)
    r = (xy - x * y) / np.sqrt(np.where(varies, var_x * var_y, np.nan))
    return r.clip(-1, 1)


def _spearman_statistic(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Statistic:
    ties = [np.unique(values, return_inverse=True)[1] for values in (x, y)]

    def statistic(weights: np.ndarray) -> np.ndarray:
        rank_x, rank_y = (_weighted_ranks(codes, weights) for codes in ties)
        columns = (np.ones_like(weights), rank_x, rank_y, rank_x**2, rank_y**2, rank_x * rank_y)
        return _moment_correlation(np.stack([(weights * column).sum(1) for column in columns], 1))

    return Statistic.of_weights(statistic, groups)


def _weighted_ranks(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks ``[R, E]``, centred on 0, of values that are drawn ``weights`` ``[R, E]`` times each.

    codes: ``[E]``, the values as 0..U-1 in ascending order. In a resample, a value's rank is the weight below it
    and half of its own.
    """
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    own = np.add.reduceat(weights[:, order], starts, axis=1)  # [R, U]
    ranks = own.cumsum(1) - own / 2
    total = weights.sum(1, keepdims=True)
    return (ranks / total - 0.5)[:, codes]
