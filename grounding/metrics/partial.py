"""Task and grounding given covariates: what is left of their correlation where, say, length explains some of both."""

from __future__ import annotations

import numpy as np

from grounding.errors import BadInput
from grounding.metrics.intervals import RESAMPLES, bootstrap_sums
from grounding.metrics.joint import NOISE, PERMUTATIONS, Correlation, check_columns, permutation_p, undefined


def partial_correlation(
    task: np.ndarray,
    grounding: np.ndarray,
    covariates: np.ndarray,
    groups: np.ndarray,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Correlation:
    """Pearson's r of the parts of task ``[E]`` and grounding ``[E]`` that no linear function of covariates explains.

    covariates: ``[E, K]``; constant and redundant ones do no harm. groups: E labels (images) that are resampled
    whole; covariates are fitted anew in every resample. p permutes the residuals (Kennedy 1995). Raises BadInput as
    ``correlate`` does; undefined cases are returned, with a reason.
    """
    task, grounding = check_columns(task, grounding, groups)
    covariates = np.asarray(covariates, dtype=np.float64)
    if covariates.ndim != 2 or len(covariates) != len(task):
        raise BadInput(f"covariates {covariates.shape} do not fit {len(task)} examples; accepted: [E, K]")
    if not np.isfinite(covariates).all():
        raise BadInput("covariates hold numbers that are not finite")
    columns = np.column_stack([task, grounding, covariates])
    residuals = _residuals(columns) if len(task) else columns
    reason = undefined("pearson", task, grounding) or _explained(columns, residuals)
    if reason:
        return Correlation(None, None, None, len(task), len(set(np.asarray(groups).tolist())), reason)
    spread = columns.std(0)
    whitened = (columns - columns.mean(0)) / np.where(spread > 0, spread, 1.0)
    whitened = np.column_stack([np.ones(len(task)), whitened])
    products = (whitened[:, :, None] * whitened[:, None, :]).reshape(len(task), -1)
    estimate = bootstrap_sums(_from_products, products, groups, resamples, seed)
    return Correlation(**vars(estimate), p=permutation_p(residuals[:, 0], residuals[:, 1], permutations, seed))


def _from_products(sums: np.ndarray) -> np.ndarray:
    """Partial r from sums ``[R, (1 + 2 + K) ** 2]`` of all products of 1, x, y and covariates; NaN where undefined."""
    size = round(sums.shape[1] ** 0.5)
    moments = sums.reshape(-1, size, size) / sums[:, :1, None]
    covariance = moments[:, 1:, 1:] - moments[:, 1:, :1] * moments[:, :1, 1:]
    own, shared, given = covariance[:, :2, :2], covariance[:, :2, 2:], covariance[:, 2:, 2:]
    left = own - shared @ np.linalg.pinv(given, rcond=NOISE, hermitian=True) @ shared.transpose(0, 2, 1)
    variances = left[:, [0, 1], [0, 1]]
    defined = (variances > NOISE).all(1)
    r = left[:, 0, 1] / np.sqrt(np.where(defined, variances.prod(1), np.nan))
    return r.clip(-1, 1)


def _residuals(columns: np.ndarray) -> np.ndarray:
    """What a least-squares fit of the covariates (columns from 2 on) and a constant leaves of columns 0 and 1."""
    given = np.column_stack([np.ones(len(columns)), columns[:, 2:]])
    given = given / np.abs(given).max(0).clip(min=1e-300)
    return columns[:, :2] - given @ np.linalg.lstsq(given, columns[:, :2], rcond=None)[0]


def _explained(columns: np.ndarray, residuals: np.ndarray) -> str | None:
    for name, column, left in zip(("task score", "grounding"), columns.T, residuals.T, strict=False):
        if left.var() <= NOISE * column.var():
            return f"the covariates explain all of the {name} in {len(columns)} examples"
    return None
