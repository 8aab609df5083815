"""The position-only control: where a region is instead of what the model makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from probe.features import PairFeatures
from probe.pairs import BOX


def position_rows(regions: pd.DataFrame) -> np.ndarray:
    """Place of each region: float32 ``[R, 5 + C]``, its box x1, y1, x2, y2, the box's area, and its candidate image.

    regions: a table with the boxes, and ``image_index`` where they are relative to the C candidate images, which get a
    column each; without it (boxes on the canvas of all candidates) there is none.
    """
    boxes = regions[BOX].to_numpy(dtype=np.float32)
    columns = [boxes, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])]
    if "image_index" in regions:
        candidate = regions["image_index"].to_numpy()
        columns.append(candidate[:, None] == np.arange(candidate.max() + 1))
    return np.column_stack(columns).astype(np.float32)


def position_only(features: PairFeatures, regions: pd.DataFrame) -> PairFeatures:
    """The same pairs with the phrases' states as they are and ``position_rows`` for the regions' states.

    A probe does well on these where the caption, or what a phrase has seen of the image, tells the place. What a
    probe reads off the region's states too is what it has above that.
    """
    return replace(features, region=position_rows(regions))
