"""Task success by how well phrases are grounded: the numbers of the study's bar chart."""

from __future__ import annotations

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.values import check_counts

BARS = 40  # of Kojima et al. (arXiv 2309.02691), published code


def success_bars(grounding: np.ndarray, success: np.ndarray, bars: int = BARS) -> pd.DataFrame:
    """Share of solved examples in equal intervals of grounding, from 0 to its maximum: one row a bar.

    grounding, success: ``[E]``, 0 or more, and 0 or 1. Columns: low, high (of grounding), n, success (NaN where no
    example is). Raises BadInput for lengths that differ, values below 0 or not finite, and fewer bars than 1.
    """
    grounding, success = np.asarray(grounding, dtype=np.float64), np.asarray(success, dtype=np.float64)
    if grounding.shape != success.shape or grounding.ndim != 1:
        raise BadInput(f"grounding {grounding.shape} and success {success.shape} do not fit; accepted: [E] each")
    check_counts(bars=bars)
    if not np.isfinite(grounding).all() or (grounding < 0).any():
        raise BadInput("grounding holds values below 0 or not finite")
    edges = np.linspace(0, (grounding.max() if len(grounding) else 1.0) + 1e-6, bars + 1)
    place = np.digitize(grounding, edges) - 1
    count = np.bincount(place, minlength=bars)
    solved = np.bincount(place, success, minlength=bars)
    with np.errstate(invalid="ignore"):
        share = np.where(count > 0, solved / np.maximum(count, 1), np.nan)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": count, "success": share})
