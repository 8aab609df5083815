"""Opening a run: activations as arrays, everything else as tables. Needs no torch.

    run = Run.open("runs/x")
    run.read("block.7", "phrase", rows=[0, 5])      # float32 [2, D], aligned with run.phrases
    run.attention("block.7", phrase_row=5)          # float32 [heads, rows, columns] of the canvas

Nothing stays open between calls, so a Run can be shared with worker processes, forked or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from extract.store import BFLOAT16, VIRTUAL, Shard, read_manifest, read_shards
from extract.tables import read_table
from grounding.errors import BadInput, unknown_choice

_SPARSE = 8  # rows are read one by one where fewer than one in this many is wanted


@dataclass(frozen=True)
class SiteInfo:
    """A site of a run. views: those stored under its own name; partners supply phrase or region rows it lacks."""

    name: str
    stage: str
    layer: int
    streams: tuple[str, ...]
    width: int
    views: tuple[str, ...]
    heads: int | None = None
    phrase_partner: str | None = None
    region_partner: str | None = None


class Run:
    """A finished extraction (``Run.open``). Row i of a table is row i of the view it describes."""

    def __init__(self, path: Path, manifest: dict[str, Any], shards: Sequence[Shard]):
        self.path = path
        self.manifest = manifest
        self.shards = tuple(shards)
        self.sites = [
            SiteInfo(**{**site, "streams": tuple(site["streams"]), "views": tuple(site["views"])})
            for site in manifest["sites"]
        ]

    @classmethod
    def open(cls, path: Path | str, allow_partial: bool = False) -> Run:
        """Open a run. Raises BadInput if ``path`` is not a run, or lacks files; or shards, unless ``allow_partial``."""
        path = Path(path)
        manifest = read_manifest(path)
        if not manifest["complete"] and not allow_partial:
            done = len(read_shards(path))
            raise BadInput(f"run {str(path)!r} has {done} of {manifest['shards']} shards; finish it: extract again")
        if not (path / VIRTUAL).is_file():
            raise BadInput(f"run {str(path)!r} has no {VIRTUAL}; extract again with the same arguments to make it")
        with h5py.File(path / VIRTUAL, "r", locking=False) as file:
            listed = set(file.attrs["shards"].tolist())
        shards = [shard for shard in read_shards(path) if shard.shard in listed]
        missing = [name for shard in shards for name in shard.files if not (path / name).is_file()]
        if missing or len(shards) < len(listed):
            raise BadInput(f"run {str(path)!r} lacks {missing[0] if missing else 'records of its shards'}")
        return cls(path, manifest, shards)

    @cached_property
    def examples(self) -> pd.DataFrame:
        """One row an example: ids, groups, grid, task outcome."""
        return self._table("examples")

    @cached_property
    def phrases(self) -> pd.DataFrame:
        """One row a phrase: example (row number), text, spans, and where the model itself puts it."""
        return self._table("phrases")

    @cached_property
    def regions(self) -> pd.DataFrame:
        """One row a candidate region: example and phrase (row numbers, -1 for an extra box), image, box."""
        return self._table("regions")

    def site(self, name: str) -> SiteInfo:
        """A site by name. Raises BadInput for an unknown one."""
        for site in self.sites:
            if site.name == name:
                return site
        raise unknown_choice("site", name, [site.name for site in self.sites])

    def read(self, site: str, view: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """``phrase`` or ``region`` rows of a site, or of its partner where it lacks the stream: float32 ``[n, D]``.

        rows: numbers into ``phrases`` or ``regions``, in any order, repeats allowed; None for all.
        Raises BadInput for an unknown site or view, one that is not stored, or rows out of range.
        """
        if view not in ("phrase", "region"):
            raise unknown_choice("view", view, ("phrase", "region"))
        info = self.site(site)
        if view not in info.views:
            partner = info.phrase_partner if view == "phrase" else info.region_partner
            info = self.site(partner) if partner is not None else info
        self._require(info, view)
        return self._rows(view, f"{info.name}/{view}", rows)

    def attention(self, site: str, phrase_row: int) -> np.ndarray:
        """Attention of a phrase over its example's canvas: float32 ``[heads, grid_rows, grid_columns]``.

        Not renormalised over the image: the rest up to one went to other tokens. Candidate i of N is the rows
        ``i * grid_rows / N`` on. Raises BadInput where it is not stored.
        """
        self._require(self.site(site), "attention")
        begin, end = self._ragged(self._attention_offsets, phrase_row, "phrase_row")
        example = self.examples.iloc[self.phrases["example"].iloc[phrase_row]]
        cells = self._rows("attention", f"{site}/attention", np.arange(begin, end))
        return cells.T.reshape(-1, example["grid_rows"], example["grid_columns"])

    def tokens(self, site: str, example_row: int) -> np.ndarray:
        """States of an example's real tokens, float32 ``[tokens, D]``: text, then image (raster), then queries.

        Raises BadInput where they are not stored.
        """
        self._require(self.site(site), "tokens")
        with h5py.File(self.path / VIRTUAL, "r", locking=False) as file:
            offsets = _offsets(file[f"{site}/tokens_lengths"][:])
        return self._rows("tokens", f"{site}/tokens", np.arange(*self._ragged(offsets, example_row, "example_row")))

    def text_offsets(self, example_row: int) -> np.ndarray:
        """Caption characters ``[begin, end)`` of an example's text tokens, int32 ``[text tokens, 2]``."""
        begin, end = self._ragged(_offsets(self.examples["text_tokens"]), example_row, "example_row")
        with h5py.File(self.path / VIRTUAL, "r", locking=False) as file:
            return file["meta/text_offsets"][begin:end]

    def heatmap(self, phrase_row: int) -> np.ndarray | None:
        """The model's own heatmap of a phrase, float32 ``[n_images, h, w]``, sum one; None for a model without."""
        begin, end = self._ragged(self._heatmap_offsets, phrase_row, "phrase_row")
        if begin == end:
            return None
        phrase = self.phrases.iloc[phrase_row]
        cells = self._rows("meta", "meta/heatmaps", np.arange(begin, end))
        return (cells / cells.sum()).reshape(-1, phrase["heatmap_rows"], phrase["heatmap_columns"])

    def _table(self, name: str) -> pd.DataFrame:
        with h5py.File(self.path / VIRTUAL, "r", locking=False) as file:
            return read_table(file["meta"][name])

    @cached_property
    def _attention_offsets(self) -> np.ndarray:
        with h5py.File(self.path / VIRTUAL, "r", locking=False) as file:
            return file["meta/attention_offsets"][:]

    @cached_property
    def _heatmap_offsets(self) -> np.ndarray:
        images = self.examples["n_images"].to_numpy()[self.phrases["example"].to_numpy()]
        return _offsets(images * self.phrases["heatmap_rows"] * self.phrases["heatmap_columns"])

    def _require(self, site: SiteInfo, view: str) -> None:
        if view not in site.views:
            raise BadInput(f"site {site.name!r} has no view {view!r} in this run; it has {', '.join(site.views)}")

    def _ragged(self, offsets: np.ndarray, row: int, name: str) -> tuple[int, int]:
        if not 0 <= row < len(offsets) - 1:
            raise BadInput(f"{name} {row} is out of range; accepted: 0 to {len(offsets) - 2}")
        return int(offsets[row]), int(offsets[row + 1])

    def _rows(self, view: str, name: str, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Rows of a dataset as if its shards were one, read straight from them: float32 ``[n, ...]``."""
        files = [(shard.file_with(name), shard.rows_of(name)) for shard in self.shards]
        offsets = _offsets([length for _, length in files])
        wanted = np.arange(offsets[-1]) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= offsets[-1]):
            raise BadInput(f"{name}: rows {wanted.min()} to {wanted.max()}; accepted: 0 to {offsets[-1] - 1}")
        unique, back = np.unique(wanted, return_inverse=True)
        parts = []
        for (file_name, length), begin in zip(files, offsets, strict=False):
            first, last = np.searchsorted(unique, [begin, begin + length])
            if first < last:
                with h5py.File(self.path / file_name, "r", locking=False) as file:
                    parts.append(_select(file[name], unique[first:last] - begin))
        if not parts:
            with h5py.File(self.path / files[0][0], "r", locking=False) as file:
                return np.zeros((0, *file[name].shape[1:]), dtype=np.float32)
        found = np.concatenate(parts)
        return found if len(unique) == len(wanted) and (back[1:] > back[:-1]).all() else found[back]


def _select(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Increasing rows of a dataset as float32; a dense choice is cut out of one read."""
    begin, end = int(rows[0]), int(rows[-1]) + 1
    if end - begin > _SPARSE * len(rows):
        return _decoded(dataset, dataset[rows])
    block = dataset[begin:end]
    return _decoded(dataset, block if len(block) == len(rows) else block[rows - begin])


def _decoded(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Stored rows as float32; those of bfloat16 are its upper halves."""
    if dataset.attrs.get("dtype") == BFLOAT16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def _offsets(lengths: Sequence[int] | np.ndarray | pd.Series) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
