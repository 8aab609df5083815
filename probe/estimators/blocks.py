"""Rows of a site a block at a time, so that what is summed over them never holds them all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from grounding.errors import BadInput
from probe.stored import StoredRows

_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}  # numbers at hand at once: on a processor, what its cache holds
CHUNK = 16_384  # rows scored at once
_SAMPLE = 1024  # rows that tell roughly where the mean is

ArrayOrRows = np.ndarray | StoredRows


class Blocks:
    """Rows ``[n, D]`` on the training device; an array is moved there once, stored rows are read at every pass."""

    def __init__(self, rows: ArrayOrRows, device: str):
        self.device = torch.device(device)
        self.shape = rows.shape
        self._rows = rows
        if not isinstance(rows, StoredRows):
            self._tensor = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(self.device)

    def take(self, rows: slice | np.ndarray) -> Tensor:
        """Some rows (a slice or int64 numbers), float32 ``[len(rows), D]``."""
        if isinstance(self._rows, StoredRows):
            return torch.from_numpy(self._rows[rows]).to(self.device)
        if isinstance(rows, slice):
            return self._tensor[rows]
        return self._tensor.index_select(0, torch.from_numpy(rows).to(self.device))

    def parts(self, columns: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order; columns: how many numbers are made of each row."""
        count, width = self.shape
        size = max(1, _ELEMENTS.get(self.device.type, 2**21) // (width + columns))
        for begin in range(0, count, size):
            part = slice(begin, min(begin + size, count))
            yield part, self.take(part)


def moments(rows: Blocks, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1 where constant) of each column under each weighting, both float32 ``[T, D]``.

    weight: ``[T, n]``, each summing to 1. Raises BadInput for rows that are not finite.
    """
    count, width = rows.shape
    near = rows.take(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)).mean(0)
    first, second = torch.zeros(2, len(weight), width, dtype=torch.float64, device=rows.device)
    for part, block in rows.parts():
        away = block - near  # squares of what is far from 0 would drown the deviation
        first += weight[:, part] @ away
        second += weight[:, part] @ away**2
    if not (first.isfinite().all() and second.isfinite().all()):
        raise BadInput("X holds rows that are not finite (NaN or infinity); leave the site out, or extract it again")
    mean, scale = near + first, (second - first**2).clamp_min(0).sqrt()
    constant = scale <= 10 * torch.finfo(torch.float32).eps * mean.abs()
    return mean.float(), torch.where(constant, 1.0, scale).float()


def gram(rows: Blocks, weight: Tensor, mean: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Weighted mean of z z' over standardised rows z = (x - mean) / scale, ``[D, D]``; weight: ``[n]``.

    dtype: of the products; their sum and the result are float64.
    """
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part, block in rows.parts():
        standard = (block.to(dtype) - mean) / scale
        total += (standard * weight[part, None]).mT @ standard
    return total


def cross_moment(rows: Blocks, weight: Tensor, mean: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """Weighted mean of z v' over standardised rows z and values v ``[n, m]``, float64 ``[D, m]``; weight: ``[n]``."""
    total = torch.zeros(rows.shape[1], values.shape[1], dtype=torch.float64, device=rows.device)
    for part, block in rows.parts():
        total += ((block.double() - mean) / scale).mT @ (values[part] * weight[part, None]).double()
    return total


def row_chunks(X: ArrayOrRows) -> Iterator[np.ndarray]:
    """X a chunk at a time, float32 ``[at most CHUNK, D]``."""
    for begin in range(0, len(X), CHUNK):
        yield X[begin : begin + CHUNK]
