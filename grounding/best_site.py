"""The site that stands for a probe."""

from __future__ import annotations

import pandas as pd


def best_site(rows: pd.DataFrame) -> pd.Series:
    """Of a sweep's rows of one probe, a row a site, that of the lowest validation loss: test figures do not choose it.

    >>> best_site(pd.DataFrame({"site": ["a", "b"], "value": [0.9, 0.8], "validation_loss": [0.5, 0.4]}))["site"]
    'b'
    """
    return rows.loc[rows["validation_loss"].idxmin()]
