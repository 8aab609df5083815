"""Figures in sentences."""

from __future__ import annotations

import pandas as pd


def figure(row: pd.Series, digits: int = 3) -> str:
    """Its ``value`` with the interval ``low`` to ``high``, or that there is none.

    >>> figure(pd.Series({"value": 0.25, "low": 0.125, "high": 0.5}), 2)
    '0.25 [0.12, 0.50]'
    """
    if pd.isna(row["low"]):
        return f"{row['value']:.{digits}f} (no interval)"
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
