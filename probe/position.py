"""The position-only control: where a region is instead of what the model makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from probe.features import PairFeatures
from probe.pairs import BOX


def position_rows(regions: pd.DataFrame) -> np.ndarray:
    """Place of each region of a run: float32 ``[R, 5 + C]``.

    x1, y1, x2, y2 and area of its box, relative to its own image, and which of the C candidate images that is (one
    column each). regions: the run's table.
    """
    boxes = regions[BOX].to_numpy(dtype=np.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    candidate = regions["image_index"].to_numpy()
    return np.column_stack([boxes, area, candidate[:, None] == np.arange(candidate.max() + 1)]).astype(np.float32)


def position_only(features: PairFeatures, regions: pd.DataFrame) -> PairFeatures:
    """The same pairs with the phrases' states as they are and ``position_rows`` for the regions' states.

    A probe does well on these where the caption, or what a phrase has seen of the image, tells the place. What a
    probe reads off the region's states too is what it has above that.
    """
    return replace(features, region=position_rows(regions))
