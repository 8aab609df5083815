"""Attention sinks: cells that get attention whatever is asked.

Xiao et al. 2023 (arXiv 2309.17453); in vision transformers Darcet et al. 2023 (arXiv 2309.16588); in models that read
text, Kang et al. 2025 (arXiv 2503.03321).
"""

from __future__ import annotations

import numpy as np


def without_sinks(maps: np.ndarray, example: np.ndarray) -> np.ndarray:
    """What a phrase looks at beyond the mean of the example's other phrases, at least 0: of the shape of ``maps``.

    maps: ``[P, ...]``, one a phrase; those of an example have one shape. example: int64 ``[P]``, which example each
    phrase belongs to. A cell that every phrase attends to alike is left with nothing. The only phrase of an example
    stays as it is: there is nothing to compare it with.

    >>> without_sinks(np.array([[0.6, 0.4], [0.6, 0.1], [0.5, 0.5]]), np.array([0, 0, 1]))
    array([[0. , 0.3],
           [0. , 0. ],
           [0.5, 0.5]])
    """
    _, number, count = np.unique(example, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), *maps.shape[1:]))
    np.add.at(total, number, maps)
    alone = (count[number] == 1).reshape(-1, *[1] * (maps.ndim - 1))
    others = (total[number] - maps) / np.maximum(count[number] - 1, 1).reshape(alone.shape)
    return np.where(alone, maps, np.maximum(maps - others, 0))
