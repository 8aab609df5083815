"""A run on disk: immutable shards, each a file a view, and a side-car that is written last and vouches for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from extract.tables import Columns, length, write_table
from grounding.errors import BadInput

FORMAT = 1
MANIFEST, VIRTUAL = "manifest.json", "activations.h5"
CHUNK_BYTES = 65536  # small enough to read single rows, large enough that an index of chunks costs nothing
WRITE_BYTES = 1 << 20  # rows of a dataset wait until they are this many bytes


@dataclass(frozen=True)
class StoredFile:
    """A file of a shard. rows: dataset path -> number of rows."""

    view: str
    bytes: int
    sha256: str
    rows: dict[str, int]


@dataclass(frozen=True)
class Shard:
    """A complete shard: examples ``begin`` to ``end`` of the list, less those skipped.

    examples, phrases, regions: rows of its tables. skipped: (id, reason). dropped_phrases: (example id, phrase id).
    made_with: batch size, threads, device and versions; equal ones promise equal bytes.
    """

    shard: int
    begin: int
    end: int
    examples: int
    phrases: int
    regions: int
    skipped: list[list[str]] = field(default_factory=list)
    dropped_phrases: list[list[str]] = field(default_factory=list)
    made_with: dict[str, Any] = field(default_factory=dict)
    files: dict[str, StoredFile] = field(default_factory=dict)

    def file_of(self, view: str) -> str:
        """Name of the file that holds a view."""
        return next(name for name, file in self.files.items() if file.view == view)


class ShardWriter:
    """Writes one shard under temporary names; only ``commit`` gives its files their names.

    columns: (site, view) -> channels of its rows. token: makes the temporary names this worker's own.
    """

    def __init__(
        self, folder: Path, shard: int, token: str, columns: Mapping[tuple[str, str], int], dtype: str = "float16"
    ):
        self.folder, self.shard, self.token = folder, shard, token
        self._rows: dict[str, dict[str, int]] = {}
        self._files: dict[str, h5py.File] = {}
        self._waiting: dict[tuple[str, str], list[np.ndarray]] = {}
        try:
            for (site, view), width in columns.items():
                self._create(view, f"{site}/{view}", (width,), dtype)
            self._create("meta", "meta/heatmaps", (), "float16")
            self._create("meta", "meta/text_offsets", (2,), "int32")
        except BaseException:
            self.abort()
            raise

    def append(self, site: str, view: str, rows: np.ndarray) -> None:
        """Add rows ``[n, channels]`` of a site to a view."""
        self._append(view, f"{site}/{view}", rows)

    def append_meta(self, name: str, rows: np.ndarray) -> None:
        """Add rows to the ragged tables ``heatmaps`` or ``text_offsets``."""
        self._append("meta", f"meta/{name}", rows)

    def commit(self, begin: int, end: int, tables: Mapping[str, Columns], **notes: Any) -> None:
        """Write the tables, then flush, checksum and rename every file, and last of all the side-car."""
        try:
            for waiting in list(self._waiting):
                self._write(*waiting)
            for name, table in tables.items():
                write_table(self._files["meta"].require_group("meta"), name, table)
            files = {}
            for view, file in self._files.items():
                file.close()
                path = self._temporary(view)
                _sync(path)
                rows = self._rows[view]
                files[f"{self._stem}.{view}.h5"] = StoredFile(view, path.stat().st_size, checksum(path), rows)
            for view in self._files:
                self._temporary(view).replace(self.folder / f"{self._stem}.{view}.h5")
            examples, phrases, regions = (length(tables[name]) for name in ("examples", "phrases", "regions"))
            shard = Shard(self.shard, begin, end, examples, phrases, regions, **notes, files=files)
            write_json(self.folder / f"{self._stem}.json", asdict(shard), self.token)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close and remove what is not committed."""
        for view, file in self._files.items():
            file.close()
            self._temporary(view).unlink(missing_ok=True)

    @property
    def _stem(self) -> str:
        return f"shard-{self.shard:05d}"

    def _temporary(self, view: str) -> Path:
        return self.folder / f"{self._stem}.{view}.h5.tmp-{self.token}"

    def _create(self, view: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
        if view not in self._files:
            # one writer, a name nobody else uses: no lock is needed, and not every file system has one
            self._files[view] = h5py.File(self._temporary(view), "x", locking=False, rdcc_nbytes=1 << 20)
            self._rows[view] = {}
        chunk = max(1, CHUNK_BYTES // (int(np.prod(shape)) * np.dtype(dtype).itemsize))
        self._files[view].create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape))
        self._rows[view][name] = 0

    def _append(self, view: str, name: str, rows: np.ndarray) -> None:
        waiting = self._waiting.setdefault((view, name), [])
        waiting.append(rows)
        if sum(part.nbytes for part in waiting) >= WRITE_BYTES:
            self._write(view, name)

    def _write(self, view: str, name: str) -> None:
        """Write the rows that wait: HDF5 takes as long for a few rows as for many."""
        rows = np.concatenate(self._waiting.pop((view, name)))
        dataset, begin = self._files[view][name], self._rows[view][name]
        if rows.shape[1:] != dataset.shape[1:]:
            raise BadInput(f"{name}: rows have shape {rows.shape[1:]}; accepted: {dataset.shape[1:]}, as its site says")
        end = begin + len(rows)
        dataset.resize(end, axis=0)
        dataset[begin:end] = rows
        self._rows[view][name] = end


def is_complete(folder: Path, shard: int) -> bool:
    """Is a shard done? Its side-car is written when everything else of it is, and names its files."""
    path = folder / f"shard-{shard:05d}.json"
    return path.is_file() and all((folder / name).is_file() for name in _read_shard(path).files)


def discard(folder: Path, shard: int) -> None:
    """Make a shard count as not done, so that it is written again: its side-car goes, its files will be replaced."""
    (folder / f"shard-{shard:05d}.json").unlink(missing_ok=True)


def read_shards(folder: Path) -> list[Shard]:
    """The complete shards of a run, in order. Raises BadInput for a side-car that cannot be read."""
    return [_read_shard(path) for path in sorted(folder.glob("shard-*.json"))]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run. Raises BadInput where ``folder`` is not one, or is of another format."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BadInput(f"run {str(folder)!r} is not a folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{str(folder)!r} is not a run: it has no {MANIFEST}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadInput(f"{path} is not a run of format {FORMAT}")
    return manifest


def write_json(path: Path, content: Mapping[str, Any], token: str) -> None:
    """Write JSON so that the name holds either the old content or the new, whenever the power goes."""
    temporary = path.with_name(f"{path.name}.tmp-{token}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, on the disk too."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def checksum(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_run(folder: Path | str) -> list[str]:
    """What is wrong with a run, a line a fault; empty if nothing is.

    Every file of every shard is read again and compared with its checksum; missing shards are named.
    Raises BadInput if ``folder`` is not a run.
    """
    folder = Path(folder)
    manifest, shards = read_manifest(folder), read_shards(folder)
    present = {shard.shard for shard in shards}
    faults = [f"shard {k} is missing" for k in range(manifest["shards"]) if k not in present]
    for shard in shards:
        for name, stored in shard.files.items():
            path = folder / name
            if not path.is_file():
                faults.append(f"{name} is missing")
            elif path.stat().st_size != stored.bytes:
                faults.append(f"{name} has {path.stat().st_size} bytes, {stored.bytes} were written")
            elif checksum(path) != stored.sha256:
                faults.append(f"{name} has other bytes than were written")
    return faults


def _read_shard(path: Path) -> Shard:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        files = {name: StoredFile(**file) for name, file in values.pop("files").items()}
        return Shard(**values, files=files)
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path} is not the record of a shard: {error}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
