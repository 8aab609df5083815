"""Means over the seeds of a study, with intervals over seeds and over images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

KEYS = ["model", "initialisation", "fraction"]
OVER = ["value", "seeds_low", "seeds_high", "seeds", "images_low", "images_high"]


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


def over_seeds(tables: Iterable[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Mean of ``value`` over the cells' seeds, a row for cells otherwise alike and ``columns``, as ``OVER`` has it.

    The intervals over seeds and, as the mean of the cells' ``low`` and ``high``, over images; ``chance`` where it is.
    Cells without the value do not count; where none has it, the row is left with none.
    """
    held = [table for table in tables if len(table)]
    keys = [*KEYS, *columns]
    if not held:
        return pd.DataFrame(columns=[*keys, *OVER])
    rows = []
    for key, group in pd.concat(held).groupby(keys, sort=False):
        known = group.dropna(subset="value")
        over = (*mean_over_seeds(known["value"].to_numpy()), len(known), known["low"].mean(), known["high"].mean())
        row = dict(zip(keys, key, strict=True)) | dict(zip(OVER, over, strict=True))
        rows.append(row | ({"chance": group["chance"].mean()} if "chance" in group else {}))
    return pd.DataFrame(rows)
