"""Standardised rows of one view of several sites: in memory, or read from disk whenever some of them are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from probe.estimators.blocks import CHUNK, ArrayOrRows
from probe.stored import StoredRows

_MAPPED = 2**29


class SiteRows(Protocol):
    """Rows ``[J, n, D]`` of J sites."""

    @property
    def jobs(self) -> int:
        """J."""

    @property
    def width(self) -> int:
        """D."""

    def take(self, rows: Tensor, jobs: Tensor | None = None) -> Tensor:
        """Some rows (int64 ``[m]``) of every site, or of some (int64 ``[A]``): ``[J or A, m, D]``."""

    def of_jobs(self, chosen: Tensor) -> SiteRows:
        """Some sites' rows (a mask or int64 numbers)."""

    def along(self, axes: Tensor) -> SiteRows:
        """Coordinates of the rows on axes ``[J, D, N]``."""


@dataclass(frozen=True)
class RowsInMemory:
    """All rows as one tensor ``[J, n, D]``."""

    values: Tensor

    @property
    def jobs(self) -> int:
        """J."""
        return len(self.values)

    @property
    def width(self) -> int:
        """D."""
        return self.values.shape[2]

    def take(self, rows: Tensor, jobs: Tensor | None = None) -> Tensor:
        """Some rows of every site, or of some."""
        return self.values[:, rows] if jobs is None else self.values[jobs[:, None], rows]

    def of_jobs(self, chosen: Tensor) -> RowsInMemory:
        """Some sites' rows."""
        return RowsInMemory(self.values[chosen])

    def along(self, axes: Tensor) -> RowsInMemory:
        """Coordinates of the rows on axes."""
        return RowsInMemory(self.values @ axes)


@dataclass
class RowsOnDisk:
    """Rows ``used`` of each source, standardised with its mean and scale ``[D]``.

    The last answer is kept: the rows and their coordinates are asked for one after the other. Rows in no order leave
    pages of the files in the process's memory, which are given back once there may be _MAPPED bytes of them.
    """

    sources: Sequence[StoredRows]
    used: np.ndarray
    mean: Sequence[np.ndarray]
    scale: Sequence[np.ndarray]
    device: torch.device
    _last: tuple[Tensor, Tensor] | None = None
    _mapped: int = 0

    @property
    def jobs(self) -> int:
        """J."""
        return len(self.sources)

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean[0])

    def take(self, rows: Tensor, jobs: Tensor | None = None) -> Tensor:
        """Some rows of every site, or of some."""
        if jobs is not None:
            return self._read(rows, jobs.tolist())
        if self._last is None or not torch.equal(self._last[0], rows):
            self._last = None  # its memory, before there is another
            self._last = rows, self._read(rows, range(self.jobs))
        return self._last[1]

    def _read(self, rows: Tensor, jobs: Sequence[int]) -> Tensor:
        unique, back = rows.cpu().unique(return_inverse=True)
        wanted = self.used[unique.numpy()]
        found = torch.empty(len(jobs), len(rows), self.width)
        for place, job in zip(found, jobs, strict=True):
            values = self.sources[job][wanted]
            values -= self.mean[job]
            values /= self.scale[job]
            torch.index_select(torch.from_numpy(values), 0, back, out=place)
        self._mapped += found.nbytes
        if self._mapped > _MAPPED:
            self.sources[0].release()
            self._mapped = 0
        return found.to(self.device)

    def of_jobs(self, chosen: Tensor) -> RowsOnDisk:
        """Some sites' rows."""
        kept = torch.arange(self.jobs)[chosen.cpu()].tolist()
        sources, mean, scale = ([values[job] for job in kept] for values in (self.sources, self.mean, self.scale))
        return RowsOnDisk(sources, self.used, mean, scale, self.device)

    def along(self, axes: Tensor) -> RowsAlongAxes:
        """Coordinates of the rows on axes."""
        return RowsAlongAxes(self, axes)


@dataclass(frozen=True)
class RowsAlongAxes:
    """Coordinates of rows on axes ``[J, D, N]``, computed when they are asked for."""

    rows: RowsOnDisk
    axes: Tensor

    @property
    def jobs(self) -> int:
        """J."""
        return self.rows.jobs

    @property
    def width(self) -> int:
        """N."""
        return self.axes.shape[2]

    def take(self, rows: Tensor, jobs: Tensor | None = None) -> Tensor:
        """Some rows of every site, or of some."""
        return self.rows.take(rows, jobs) @ (self.axes if jobs is None else self.axes[jobs])

    def of_jobs(self, chosen: Tensor) -> RowsAlongAxes:
        """Some sites' rows."""
        return RowsAlongAxes(self.rows.of_jobs(chosen), self.axes[chosen])

    def along(self, axes: Tensor) -> RowsAlongAxes:
        """Coordinates of the coordinates on further axes."""
        return RowsAlongAxes(self.rows, self.axes @ axes)


def site_rows(
    sources: Sequence[ArrayOrRows],
    used: np.ndarray,
    mean: Sequence[np.ndarray],
    scale: Sequence[np.ndarray],
    device: torch.device,
) -> SiteRows:
    """Rows ``used`` of each source, standardised: on disk if a source is, else in memory."""
    if isinstance(sources[0], StoredRows):
        return RowsOnDisk(sources, used, mean, scale, device)  # type: ignore[arg-type]
    values = [(rows[used] - m) / s for rows, m, s in zip(sources, mean, scale, strict=True)]
    return RowsInMemory(torch.from_numpy(np.stack(values)).to(device))


def row_moments(rows: ArrayOrRows, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (1 where constant) of each column over the rows ``used``, float32 ``[D]``.

    Every row is read once: moments of chunks are joined (Chan, Golub and LeVeque 1983).
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for begin in range(0, len(used), CHUNK):
        part = rows[used[begin : begin + CHUNK]].astype(np.float64)
        own = part.mean(0)
        away = own - mean
        total = count + len(part)
        squares = squares + ((part - own) ** 2).sum(0) + away**2 * (count * len(part) / total)
        mean, count = mean + away * (len(part) / total), total
    scale = np.sqrt(squares / count)
    # Rounding leaves a tiny deviation in a column that is constant.
    constant = scale <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    return mean.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32)
