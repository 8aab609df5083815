"""Opening a run: activations as arrays, everything else as tables. Needs no torch.

    run = Run.open("runs/x")
    run.read("block.7", "phrase", rows=[0, 5])      # float32 [2, D], aligned with run.phrases
    run.attention("block.7", phrase_row=5)          # float32 [heads, rows, columns] of the canvas

A Run holds no open file, so it can be handed to worker processes, forked or spawned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from extract.relevance.kinds import ATTENDED, ATTENTION, BACK, RELEVANCE
from extract.rows import JoinedRows, Part, release_maps
from extract.store import VIRTUAL, Shard, read_manifest, read_shards
from extract.tables import read_table
from grounding.errors import BadInput, unknown_choice

MAPS = (*ATTENDED, *RELEVANCE)
VIEWS = ("phrase", "region", ATTENTION, "tokens", BACK, *RELEVANCE)


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
        self._datasets: dict[str, JoinedRows] = {}
        self._token_offsets: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what it has found of its files so far: Ray gives workers arrays that cannot be written on."""
        return self.__dict__ | {"_datasets": {}}

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

    def read(self, site: str | Sequence[str], view: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Rows of a view of a site, float32 ``[n, D]``; of several sites at once, ``[sites, n, D]``.

        view: ``phrase`` or ``region``, row for row those of the tables; a site that lacks the stream gives its
        partner's. ``attention`` ``[n, heads]``, relevance ``[n, C]`` and ``tokens``: rows of all phrases or examples,
        one below the other.
        rows: numbers in any order, repeats allowed; None for all.
        Raises BadInput for an unknown site or view, one that is not stored, rows out of range, sites of unequal shapes.
        """
        if isinstance(site, str):
            return self._rows(self._stored(site, view), rows)
        found = [self.read(name, view, rows) for name in site]
        shapes = {name: part.shape for name, part in zip(site, found, strict=True)}
        if len(set(shapes.values())) != 1:
            raise BadInput(f"sites have {view} rows of shapes {shapes}; accepted: one site or more, of one shape")
        return np.stack(found)

    def count(self, site: str, view: str) -> int:
        """Number of rows that ``read`` gives of a site. Raises BadInput as ``read`` does."""
        return len(self._joined(self._stored(site, view)))

    def batches(self, site: str | Sequence[str], view: str, size: int) -> Iterator[np.ndarray]:
        """All rows of a view in order, ``size`` at a time, as ``read`` gives them; memory does not grow with the run.

        Raises BadInput as ``read`` does, and for a size below one.
        """
        if size < 1:
            raise BadInput(f"size {size} is not a number of rows; accepted: 1 or more")
        names = [site] if isinstance(site, str) else site
        total = max((self.count(name, view) for name in names), default=0)
        for begin in range(0, total, size):
            yield self.read(site, view, np.arange(begin, min(begin + size, total)))

    @staticmethod
    def release() -> None:
        """Give back the memory that rows in no order took: a process keeps files of runs mapped, and maps them anew."""
        release_maps()

    def attention(self, site: str, phrase_row: int) -> np.ndarray:
        """Attention of a phrase over its example's canvas: float32 ``[heads, grid_rows, grid_columns]``.

        Not renormalised over the image: the rest up to one went to other tokens. Candidate i of N is the rows
        ``i * grid_rows / N`` on. Raises BadInput where it is not stored.
        """
        return self.maps(site, "attention", phrase_row)

    def maps(self, site: str, view: str, phrase_row: int) -> np.ndarray:
        """A phrase's maps of its example's canvas in a view of ``MAPS``: float32 ``[C, grid_rows, grid_columns]``.

        C: heads of attention, there and back, and of ``relevance.gradient-attention``, else 1. Raises BadInput where it
        is not stored.
        """
        if view not in MAPS:
            raise unknown_choice("view", view, MAPS)
        self._require(self.site(site), view)
        begin, end = self._ragged(self.cell_offsets, phrase_row, "phrase_row")
        example = self.examples.iloc[self.phrases["example"].iloc[phrase_row]]
        cells = self._rows(f"{site}/{view}", np.arange(begin, end))
        return cells.T.reshape(-1, example["grid_rows"], example["grid_columns"])

    def completeness(self, site: str, view: str = "relevance.integrated-gradients") -> np.ndarray:
        """Of each phrase's integrated gradients: how much the score changes from baseline to input, and by how much the
        attributions fail to sum to that; float32 ``[phrases, 2]``. Raises BadInput where they are not stored."""
        self._require(self.site(site), view)
        return self._rows(f"{site}/{view}_change", None)

    def tokens(self, site: str, example_row: int) -> np.ndarray:
        """States of an example's real tokens, float32 ``[tokens, D]``: text, then image (raster), then queries.

        Raises BadInput where they are not stored.
        """
        self._require(self.site(site), "tokens")
        if site not in self._token_offsets:
            with h5py.File(self.path / VIRTUAL, "r", locking=False) as file:
                self._token_offsets[site] = _offsets(file[f"{site}/tokens_lengths"][:])
        offsets = self._token_offsets[site]
        return self._rows(f"{site}/tokens", np.arange(*self._ragged(offsets, example_row, "example_row")))

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
        cells = self._rows("meta/heatmaps", np.arange(begin, end))
        return (cells / cells.sum()).reshape(-1, phrase["heatmap_rows"], phrase["heatmap_columns"])

    def _stored(self, site: str, view: str) -> str:
        """Name of the dataset that holds a view of a site, or of the partner that stands in for it."""
        if view not in VIEWS:
            raise unknown_choice("view", view, VIEWS)
        info = self.site(site)
        partner = {"phrase": info.phrase_partner, "region": info.region_partner}.get(view)
        if view not in info.views and partner is not None:
            info = self.site(partner)
        self._require(info, view)
        return f"{info.name}/{view}"

    def _table(self, name: str) -> pd.DataFrame:
        with h5py.File(self.path / VIRTUAL, "r", locking=False) as file:
            return read_table(file["meta"][name])

    @cached_property
    def cell_offsets(self) -> np.ndarray:
        """First row of each phrase in a view of image cells (``attention``), and the end of the last, int64."""
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

    def _rows(self, name: str, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Rows of a dataset as if its shards were one: float32 ``[n, ...]``."""
        return self._joined(name).read(rows)

    def _joined(self, name: str) -> JoinedRows:
        if name not in self._datasets:
            self._datasets[name] = JoinedRows(name, [self._part(shard, name) for shard in self.shards])
        return self._datasets[name]

    def _part(self, shard: Shard, name: str) -> Part:
        if name not in shard.datasets:
            raise BadInput(f"shard {shard.shard} of run {str(self.path)!r} lacks {name}; extract again to mend it")
        held = shard.file_with(name)
        return Part(self.path / held, shard.files[held].sha256, shard.rows_of(name))


def _offsets(lengths: Sequence[int] | np.ndarray | pd.Series) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
