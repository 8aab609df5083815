"""Rows of a dataset that is spread over the files of several shards, about as fast as a memory-mapped ``.npy``.

A chunk without filters lies in its file as it lies in memory. HDF5 says once where the chunks of a file are; from then
on rows are copied out of a map of the file. Compressed chunks, and those that were never written, go through h5py.

A process keeps its last maps, read-only and apart from the objects here: those can be pickled, and used after a fork.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from extract.store import BFLOAT16
from grounding.errors import BadInput

_BLOCK = 1 << 20  # bytes that are copied before they are made float32: few enough to stay in a processor's cache
_RUN = 8  # rows that are copied in one go rather than one by one
_FEW = 1 << 16  # bytes that are not worth giving back: the system maps about as many at a time
_MAPS = 200  # files that a process keeps mapped; each takes a file descriptor, of which some systems allow 256


@dataclass(frozen=True)
class Part:
    """The rows of a dataset that one file holds. sha256: of the file; another content is another file."""

    path: Path
    sha256: str
    rows: int


@dataclass(frozen=True)
class _Layout:
    """How rows are stored. chunk: rows a chunk, None where chunks do not hold whole rows as they are."""

    shape: tuple[int, ...]
    dtype: np.dtype
    bfloat16: bool
    chunk: int | None

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> _Layout:
        plain = dataset.chunks is not None and dataset.chunks[1:] == dataset.shape[1:]
        plain = plain and dataset.id.get_create_plist().get_nfilters() == 0
        bfloat16 = dataset.attrs.get("dtype") == BFLOAT16
        return cls(dataset.shape[1:], dataset.dtype, bfloat16, dataset.chunks[0] if plain else None)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Stored values as floats: bfloat16 is the upper half of a float32, others are what they are."""
        return np.left_shift(values, 16, dtype=np.uint32).view(np.float32) if self.bfloat16 else values


class JoinedRows:
    """The rows of a dataset as if the files that hold them (``parts``, at least one) were one file."""

    def __init__(self, name: str, parts: Sequence[Part]):
        self.name, self.parts = name, tuple(parts)
        self._begin = np.concatenate([[0], np.cumsum([part.rows for part in parts], dtype=np.int64)])
        self._direct: dict[int, bool] = {}  # of the parts looked at so far: is it read without HDF5?
        with h5py.File(parts[0].path, "r", locking=False) as file:
            self._layout = _Layout.of(file[name])
            chunks = -(-np.diff(self._begin) // (self._layout.chunk or len(self) + 1))
            self._chunk_begin = np.concatenate([[0], np.cumsum(chunks, dtype=np.int64)])
            self._offsets = np.full(self._chunk_begin[-1], -1, dtype=np.int64)
            self._direct[0] = self._find_chunks(0, file[name])

    def __len__(self) -> int:
        return int(self._begin[-1])

    def read(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Rows in any order, repeats allowed (None: all): float32 ``[n, ...]``. Raises BadInput out of range."""
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise BadInput(f"{self.name}: rows {wanted.min()} to {wanted.max()}; accepted: 0 to {len(self) - 1}")
        owner = np.searchsorted(self._begin, wanted, side="right") - 1
        local = wanted - self._begin[owner]
        counts = np.bincount(owner, minlength=len(self.parts))
        order, ends = np.argsort(owner, kind="stable"), np.cumsum(counts)
        needed = np.flatnonzero(counts).tolist()
        self._look_at(needed)
        layout, addresses = self._layout, np.empty(0, dtype=np.int64)
        if layout.chunk is not None:
            chunk, within = np.divmod(local, layout.chunk)
            addresses = self._offsets[self._chunk_begin[owner] + chunk] + within * layout.row_bytes
        places = {number: order[ends[number] - counts[number] : ends[number]] for number in needed}
        direct = [number for number in needed if self._direct[number]]
        out = np.empty((len(wanted), *layout.shape), dtype=np.float32)
        if len(wanted) < 2 * _RUN * len(direct):
            out = self._gather(addresses, {number: places[number] for number in direct}, len(wanted))
        else:
            for number in direct:
                _copy(self.parts[number], layout, addresses, places[number], out)
        for number in needed:
            if not self._direct[number]:
                _read_through_hdf5(self.parts[number].path, self.name, local, places[number], out)
        return out

    def _gather(self, addresses: np.ndarray, places: Mapping[int, np.ndarray], count: int) -> np.ndarray:
        """``count`` rows of many parts, few of each: they are made float32 at once, not part by part."""
        layout = self._layout
        stored = np.empty(count, f"V{layout.row_bytes}")
        for number, here in places.items():
            stored[here] = _windows(self.parts[number], layout.row_bytes)[addresses[here]]
        return layout.decode(stored.view(layout.dtype).reshape(-1, *layout.shape)).astype(np.float32, copy=False)

    def _look_at(self, needed: Sequence[int]) -> None:
        """Find the chunks of these parts, unless that is done."""
        for number in needed:
            if number not in self._direct:
                with h5py.File(self.parts[number].path, "r", locking=False) as file:
                    self._direct[number] = self._find_chunks(number, file[self.name])

    def _find_chunks(self, number: int, dataset: h5py.Dataset) -> bool:
        """Note where a part's chunks are; False if it has to be read through h5py."""
        chunk = self._layout.chunk
        if chunk is None or _Layout.of(dataset) != self._layout or len(dataset) != self.parts[number].rows:
            return False
        offsets = self._offsets[self._chunk_begin[number] : self._chunk_begin[number + 1]]
        dataset.id.chunk_iter(_noting(offsets, chunk))
        return bool((offsets >= 0).all())


def _noting(offsets: np.ndarray, rows: int) -> Callable[[h5py.h5d.StoreInfo], None]:
    """What notes the place of a chunk of ``rows`` rows in ``offsets``."""

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.filter_mask == 0:
            offsets[chunk.chunk_offset[0] // rows] = chunk.byte_offset

    return note


@lru_cache(maxsize=_MAPS)
def _map(path: Path, sha256: str) -> mmap.mmap:
    """A file in memory, read-only. sha256: so that a file that took the place of another is not mistaken for it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def release_maps() -> None:
    """Unmap every file of this process that nobody is reading, and with it what was read of it from memory."""
    _map.cache_clear()


def _windows(part: Part, width: int) -> np.ndarray:
    """The ``width`` bytes that begin at every byte of a part's file: a row is the element at its address."""
    mapped = _map(part.path, part.sha256)
    return np.ndarray(len(mapped) - width + 1, f"V{width}", mapped, strides=(1,))


def _copy(part: Part, layout: _Layout, addresses: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Fill the rows ``places`` of ``out`` with those that begin at these bytes of the part's file."""
    mapped, width = _map(part.path, part.sha256), layout.row_bytes
    windows = _windows(part, width)
    step = max(1, _BLOCK // width)
    for begin in range(0, len(places), step):
        here = places[begin : begin + step]
        starts = addresses[here]
        if runs := _runs(here, starts, width):
            for first, last in runs:
                stored = np.ndarray((last - first, *layout.shape), layout.dtype, mapped, starts[first])
                out[here[first] : here[first] + last - first] = layout.decode(stored)
        else:
            out[here] = layout.decode(windows[starts].view(layout.dtype).reshape(-1, *layout.shape))
        if len(here) * width >= _FEW:
            _let_go(mapped, int(starts.min()), int(starts.max()) + width, len(here) * width)


def _runs(places: np.ndarray, starts: np.ndarray, width: int) -> list[tuple[int, int]]:
    """Rows that follow one another, wanted and stored alike, from and to; none where most rows stand alone."""
    if len(places) < 2 * _RUN:
        return []
    breaks = np.flatnonzero((np.diff(starts) != width) | (np.diff(places) != 1)) + 1
    return list(pairwise([0, *breaks.tolist(), len(places)])) if len(places) > _RUN * len(breaks) else []


def _let_go(mapped: mmap.mmap, begin: int, end: int, size: int) -> None:
    """Take pages of which most was read out of the process's memory (they stay in the system's cache)."""
    if size >= (end - begin) // 2 and hasattr(mmap, "MADV_DONTNEED"):
        begin -= begin % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _read_through_hdf5(path: Path, name: str, local: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Fill the rows ``places`` of ``out`` with rows ``local[places]`` of a dataset: no chunk is read twice."""
    rows, back = np.unique(local[places], return_inverse=True)
    with h5py.File(path, "r", locking=False) as file:
        dataset = file[name]
        layout = _Layout.of(dataset)
        chunk = rows // (dataset.chunks or (1,))[0]
        at_once = max(1, _BLOCK // max(1, layout.row_bytes * (dataset.chunks or (1,))[0]))
        apart = (np.diff(chunk) > 1) | (np.diff(chunk // at_once) > 0)
        found = np.empty((len(rows), *layout.shape), dtype=np.float32)
        for group in np.split(np.arange(len(rows)), np.flatnonzero(apart) + 1):
            first, last = rows[group[0]], rows[group[-1]]
            found[group] = layout.decode(dataset[first : last + 1])[rows[group] - first]
    out[places] = found[back]
