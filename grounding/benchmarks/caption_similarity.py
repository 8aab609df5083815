"""Which other images of a split fit a caption best, judged by their own captions: distractors that are hard.

The study ranks images by a contrastive image-text model. Here captions are compared with captions, by an encoder that
can be replaced: TF-IDF needs neither weights nor a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from grounding.errors import BadInput

# From N captions to vectors: dense or sparse [N, D], whose cosines say how alike captions are.
CaptionEncoder = Callable[[Sequence[str]], Any]

_CHUNK = 256  # captions compared at a time


def tfidf(captions: Sequence[str]) -> sparse.csr_matrix:
    """Words weighted by how rare they are among these captions, sparse ``[N, words]``."""
    return TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(captions)


# By the name that options give; more can be added.
ENCODERS: dict[str, CaptionEncoder] = {"tfidf": tfidf}


def nearest_images(
    captions: Sequence[str], images: Sequence[str], encoder: CaptionEncoder, count: int
) -> Iterator[list[str]]:
    """For each caption in turn, the ``count`` other images that fit it best, best first.

    captions, images: N captions and the image of each. An image fits as its captions do on average (mean cosine). Ties
    go by the order in which images come first. Raises BadInput for an encoder that gives no N vectors.
    """
    vectors = encoder(captions)
    if getattr(vectors, "ndim", 0) != 2 or vectors.shape[0] != len(captions):
        shape = getattr(vectors, "shape", None)
        raise BadInput(f"the caption encoder gave {shape} for {len(captions)} captions; accepted: [N, D]")
    vectors = sparse.csr_matrix(normalize(vectors))
    names = list(dict.fromkeys(images))
    place = {name: index for index, name in enumerate(names)}
    owners = np.array([place[image] for image in images])
    share = 1 / np.bincount(owners)[owners]
    mean = sparse.csr_matrix((share, (owners, np.arange(len(owners)))), (len(names), len(owners))) @ vectors
    for begin in range(0, len(captions), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        cosines = (vectors[rows] @ mean.T).toarray().round(6)  # [rows, images]; rounded: ties are ties everywhere
        cosines[np.arange(len(cosines)), owners[rows]] = -np.inf
        for row in cosines:
            yield [names[index] for index in _largest(row, min(count, len(names) - 1))]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest, largest first, ties by index."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    least = np.partition(values, -count)[-count]
    enough = np.flatnonzero(values >= least)
    return enough[np.lexsort((enough, -values[enough]))][:count]
