"""Task and grounding given covariates: what is left of their correlation where, say, length explains some of both."""

from __future__ import annotations

import numpy as np

from grounding.errors import BadInput
from grounding.metrics.intervals import RESAMPLES, Statistic
from grounding.metrics.joint import NOISE, PERMUTATIONS, Correlation, check_columns, estimate_links, undefined


def partial_correlations(
    task: np.ndarray,
    groundings: np.ndarray,
    covariates: np.ndarray,
    groups: np.ndarray,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[Correlation]:
    """Pearson's r of the parts of task ``[E]`` and groundings ``[E, S]`` that the covariates do not explain linearly.

    covariates: ``[E, K]``; constant and redundant ones do no harm. groups: E labels (images) that are resampled
    whole; covariates are fitted anew in every resample. p permutes the residuals (Kennedy 1995). Raises BadInput as
    ``correlations`` does; undefined cases are returned, with a reason.
    """
    task, groundings = check_columns(task, groundings, groups)
    covariates = np.asarray(covariates, dtype=np.float64)
    if covariates.ndim != 2 or len(covariates) != len(task):
        raise BadInput(f"covariates {covariates.shape} do not fit {len(task)} examples; accepted: [E, K]")
    if not np.isfinite(covariates).all():
        raise BadInput("covariates hold numbers that are not finite")
    left = _residuals(np.column_stack([task, groundings]), covariates)
    reasons = [
        undefined("pearson", task, grounding) or explained(task, grounding, covariates) for grounding in groundings.T
    ]
    return estimate_links(
        lambda number: partial_statistic(task, groundings[:, number], covariates, groups),
        (left[:, 0], left[:, 1:]),
        reasons,
        groups,
        resamples,
        permutations,
        seed,
    )


def partial_statistic(task: np.ndarray, grounding: np.ndarray, covariates: np.ndarray, groups: np.ndarray) -> Statistic:
    """A partial correlation of columns ``[E]`` that both vary, ready to be resampled."""
    columns = np.column_stack([task, grounding, covariates])
    spread = columns.std(0)
    whitened = (columns - columns.mean(0)) / np.where(spread > 0, spread, 1.0)
    whitened = np.column_stack([np.ones(len(task)), whitened])
    products = (whitened[:, :, None] * whitened[:, None, :]).reshape(len(task), -1)
    return Statistic.of_sums(_from_products, products, groups)


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


def explained(task: np.ndarray, grounding: np.ndarray, covariates: np.ndarray) -> str | None:
    """Why nothing of the columns ``[E]`` is left to correlate, given covariates ``[E, K]``; None where something is."""
    columns = np.column_stack([task, grounding])
    left = _residuals(columns, covariates)
    for name, column, rest in zip(("task score", "grounding"), columns.T, left.T, strict=True):
        if rest.var() <= NOISE * column.var():
            return f"the covariates explain all of the {name} in {len(task)} examples"
    return None


def _residuals(columns: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """What a least-squares fit of the covariates and a constant leaves of the columns ``[E, C]``."""
    if not len(columns):
        return columns
    given = np.column_stack([np.ones(len(columns)), covariates])
    given = given / np.abs(given).max(0).clip(min=1e-300)
    return columns - given @ np.linalg.lstsq(given, columns, rcond=None)[0]
