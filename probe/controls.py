"""Control labels: answers that can only be memorised, after Hewitt and Liang (2019).

A control task gives every *type* a random answer (Hewitt and Liang 2019, arXiv 1909.03368, section 2), so that a
probe that does well on it does so by its own capacity. For a pair of a phrase and a region the answer is a
random taste: each phrase type ranks the places of an image (the cells of a grid) in its own random order, and
of a phrase's candidates those in the most liked places "belong". The rule reads the phrase's type and the
box's place, can be memorised from them, and says nothing of which region the phrase means. Each phrase keeps
its number of positives, so chance is the same as for the real labels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from probe.pairs import PairTable

CELLS = 4


def control_labels(
    pairs: PairTable, phrase_types: np.ndarray, regions: pd.DataFrame, seed: int = 0, cells: int = CELLS
) -> np.ndarray:
    """Random labels by phrase type and place: bool ``[n]``, as many positives a phrase as ``pairs.label``.

    phrase_types: ``[n_phrases]`` strings. regions: the run's table (boxes relative to their own image).
    The place of a box is the cell of its centre on a ``cells`` x ``cells`` grid; within a cell a type
    prefers the larger or the smaller boxes, at random. Equal boxes are ordered at random.

    Raises BadInput when there are fewer than two places, which leaves nothing to memorise.
    """
    if cells < 2:
        raise BadInput(f"cells {cells} is too small; accepted: 2 or more")
    random = np.random.default_rng(seed)
    places, areas = _places(regions, cells)
    if len(np.unique(places[pairs.region])) < 2:
        raise BadInput(
            "control labels cannot be built: all regions are centred in one place; leave out the control 'labels'"
        )
    types = np.unique(phrase_types, return_inverse=True)[1]
    taste = random.random((types.max() + 1, cells * cells))
    size_taste = random.choice([-1.0, 1.0], types.max() + 1)
    kind = types[pairs.phrase]
    liking = taste[kind, places[pairs.region]]
    size_liking = size_taste[kind] * areas[pairs.region]
    order = np.lexsort((random.random(len(pairs)), -size_liking, -liking, pairs.phrase))
    phrase = pairs.phrase[order]
    starts = np.flatnonzero(np.r_[True, phrase[1:] != phrase[:-1]])
    rank = np.arange(len(phrase)) - np.repeat(starts, np.diff(np.r_[starts, len(phrase)]))
    positives = np.bincount(pairs.phrase[pairs.label], minlength=pairs.phrase.max() + 1)
    labels = np.empty(len(pairs), dtype=bool)
    labels[order] = rank < positives[phrase]
    return labels


def seen_types(pairs: PairTable, phrase_types: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of the test phrases whose type occurs in train: only for these can the control be memorised.

    train, test: bool ``[n]`` masks over the pairs.
    """
    known = np.unique(phrase_types[np.unique(pairs.phrase[train])])
    asked = phrase_types[np.unique(pairs.phrase[test])]
    return float(np.isin(asked, known).mean())


def _places(regions: pd.DataFrame, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid cell of each box's centre (``row * cells + column``) and its area."""
    x1, y1, x2, y2 = (regions[name].to_numpy(dtype=np.float64) for name in ("x1", "y1", "x2", "y2"))
    column = np.clip(((x1 + x2) / 2 * cells).astype(np.int64), 0, cells - 1)
    row = np.clip(((y1 + y2) / 2 * cells).astype(np.int64), 0, cells - 1)
    return row * cells + column, (x2 - x1) * (y2 - y1)
