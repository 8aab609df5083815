"""p-values of bootstrap draws, and Holm's correction for having looked at many sites."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.scores import RESAMPLES

LEVEL = 0.05


def p_above(drawn: np.ndarray, reference: float = 0.0) -> float:
    """One-sided p of a figure being at most ``reference``: (1 + #{draws <= reference}) / (1 + draws).

    The share of the bootstrap distribution at or below the reference, which inverts the percentile interval (Efron and
    Tibshirani 1993, section 15.4); the figure itself is counted, so that p is never 0 (Phipson and Smyth 2010). drawn:
    resampled figures ``[R]``; undefined ones (NaN) are left out. NaN without any, and for a reference that is not known
    (NaN).
    """
    defined = drawn[~np.isnan(drawn)]
    if not len(defined) or np.isnan(reference):
        return float("nan")
    return float((1 + (defined <= reference).sum()) / (1 + len(defined)))


def enough_resamples(tests: int) -> int:
    """Resamples from which on the smallest p of ``p_above``, 1 / (1 + R), passes Holm's correction of so many tests."""
    return max(RESAMPLES, math.ceil(tests / LEVEL))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values ``[N]`` corrected for their number by Holm's step-down method (Holm 1979).

    The k-th smallest (from 0) is multiplied by N - k, is at least the one before it, and at most 1. As
    ``multipletests`` of statsmodels has it, which collects the garbage of the whole process at every call.

    >>> holm(np.array([0.03, 0.01, 0.4])).round(3).tolist()
    [0.06, 0.03, 0.4]
    """
    order = np.argsort(p)
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def with_holm(table: pd.DataFrame, columns: Sequence[str], family: Sequence[str]) -> pd.DataFrame:
    """The table with a column ``<name>_holm`` after each column of p-values: corrected for the rows of a family.

    family: columns whose equal values make a family (all but the site's). Holm 1979 holds the chance of any false
    finding in a family at the level, whatever the dependence between its tests; p-values that are missing count not.
    """
    corrected = table.copy()
    for name in columns:
        values = pd.Series(np.nan, index=table.index)
        known = table[table[name].notna()]
        for _, rows in known.groupby(list(family), sort=False, dropna=False):
            values[rows.index] = holm(rows[name].to_numpy())
        corrected.insert(corrected.columns.get_loc(name) + 1, f"{name}_holm", values)  # type: ignore[arg-type]
    return corrected
