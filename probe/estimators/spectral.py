"""The axes along which phrases and regions that belong together vary together."""

from __future__ import annotations

import torch
from torch import Tensor

from probe.estimators.chunks import Chunks


def cross_moment_axes(chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """Singular axes of M = mean over pairs of (y - mean y) p r', the downhill direction of a bilinear form at W = 0.

    Returns left ``[J, Dp, N]``, sizes ``[J, N]`` in falling order and right ``[J, Dr, N]``, N = min(Dp, Dr), with
    M = left diag(sizes) right'. Coordinate i of a phrase on left and of a region on right belong together, whatever
    bases the two were given in (partial least squares uses the same axes: Wegelin 2000, section 3).
    """
    batch = chunks.batch
    moment = batch.target.new_zeros(batch.phrase.jobs, batch.phrase.width, batch.region.width)
    for chunk in chunks.of():
        residual = chunk.positive - chunk.count * batch.target.mean()  # [e, m, k]
        region_sums = residual @ chunk.rows["region"]  # [J, e, m, Dr]
        moment += chunk.rows["phrase"].flatten(1, 2).mT @ region_sums.flatten(1, 2)
    moment /= len(batch.target)
    left, sizes, right = torch.linalg.svd(moment, full_matrices=False)
    return left, sizes, right.mT
