"""A run on disk: immutable shards, each a file a view, and a side-car that is written last and vouches for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from extract.relevance.kinds import has_change, is_relevance
from extract.tables import Columns, write_table
from grounding.errors import BadInput

FORMAT = 2
MANIFEST, VIRTUAL = "manifest.json", "activations.h5"
META = "meta"  # the file of a shard that holds its tables
BFLOAT16 = "bfloat16"  # numpy has none: its bits are stored as uint16, with this in the attribute ``dtype``
TABLES = ("examples", "phrases", "regions")
COMPRESSIONS = ("none", "lzf", "gzip")
CHUNK_BYTES = 65536  # small enough to read single rows, large enough that an index of chunks costs nothing
LEAST_FREE = 1 << 20  # bytes of the disk that are left alone, for what HDF5 writes beside the rows
WRITE_BYTES = 1 << 20  # rows of a dataset wait until they are this many bytes


@dataclass(frozen=True)
class StoredFile:
    """A file of a shard. rows: dataset path -> number of rows; peaks: -> a bound of its magnitudes."""

    view: str
    bytes: int
    sha256: str
    rows: dict[str, int]
    peaks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A complete shard: examples ``begin`` to ``end`` of the list, less those skipped.

    examples, phrases, regions: rows of its tables. skipped: (id, reason). dropped_phrases: (example id, phrase id).
    made_with: batch size, threads, device and versions; equal ones promise equal bytes. part: 0, or the number of a
    later addition of views or sites, whose record names only the files that it added.
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
    part: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Rows of its tables, by their names."""
        return {name: getattr(self, name) for name in TABLES}

    @property
    def meta_file(self) -> str:
        """Name of the file that holds the tables."""
        return next(name for name, file in self.files.items() if file.view == META)

    def file_with(self, dataset: str) -> str:
        """Name of the file that holds a dataset."""
        return next(name for name, file in self.files.items() if dataset in file.rows)

    def rows_of(self, dataset: str) -> int:
        """How many rows a dataset has in this shard."""
        return self.files[self.file_with(dataset)].rows[dataset]

    @property
    def datasets(self) -> dict[str, str]:
        """Dataset -> the view it belongs to."""
        return {dataset: file.view for file in self.files.values() for dataset in file.rows}


class ShardWriter:
    """Writes one shard under temporary names; only ``commit`` gives its files their names.

    columns: (site, view) -> channels of its rows. dtype: float16, float32 or bfloat16 (relevance is always float32: its
    values can be very small). token: makes the temporary names
    this worker's own. part: 0 for a shard with its tables; else only the views' files are written. compression: one
    of ``COMPRESSIONS``, of the views.
    """

    def __init__(
        self,
        folder: Path,
        shard: int,
        token: str,
        columns: Mapping[tuple[str, str], int],
        dtype: str = "float16",
        part: int = 0,
        compression: str = "none",
    ):
        self.folder, self.shard, self.token, self.part = folder, shard, token, part
        self.compression = None if compression == "none" else compression
        self._rows: dict[str, dict[str, int]] = {}
        self._peaks: dict[str, dict[str, float]] = {}
        self._files: dict[str, h5py.File] = {}
        self._waiting: dict[tuple[str, str], list[np.ndarray]] = {}
        self._require_space(0)
        try:
            views = [*dict.fromkeys(view for _, view in columns), META]
            with emptied_on_failure([self._temporary(view) for view in views]):
                for (site, view), width in columns.items():
                    self._create(view, f"{site}/{view}", (width,), "float32" if is_relevance(view) else dtype)
                    if view == "tokens":
                        self._create(view, f"{site}/tokens_lengths", (), "int32")
                    if has_change(view):
                        self._create(view, f"{site}/{view}_change", (2,), "float32")
                if part == 0:
                    self._create(META, "meta/heatmaps", (), "float16")
                    self._create(META, "meta/text_offsets", (2,), "int32")
                for file in self._files.values():
                    file.flush()
        except BaseException:
            self.abort()
            raise

    def append(self, site: str, view: str, rows: np.ndarray, peak: float = 0.0) -> None:
        """Add rows ``[n, channels]`` of a site to a view; peak: a bound of their magnitudes."""
        self._append(view, f"{site}/{view}", rows)
        peaks = self._peaks[view]
        peaks[f"{site}/{view}"] = max(peak, peaks.get(f"{site}/{view}", 0.0))

    def append_lengths(self, site: str, lengths: np.ndarray) -> None:
        """Add how many rows of the view ``tokens`` belong to each of the next examples, int ``[n]``."""
        self._append("tokens", f"{site}/tokens_lengths", lengths)

    def append_change(self, site: str, view: str, rows: np.ndarray) -> None:
        """Add what stands beside integrated gradients of the next phrases, ``[n, 2]``."""
        self._append(view, f"{site}/{view}_change", rows)

    def append_meta(self, name: str, rows: np.ndarray) -> None:
        """Add rows to the ragged tables ``heatmaps`` or ``text_offsets``."""
        self._append("meta", f"meta/{name}", rows)

    def commit(
        self, begin: int, end: int, counts: Mapping[str, int], tables: Mapping[str, Columns], **notes: Any
    ) -> None:
        """Write the tables, then flush, checksum and rename every file, and last of all the side-car.

        counts: rows of the shard's tables, which a later part counts but does not write.
        """
        try:
            for waiting in list(self._waiting):
                self._write(*waiting)
            self._require_space(0)
            for name, table in tables.items():
                write_table(self._files[META].require_group("meta"), name, table)
            files = {}
            with emptied_on_failure([self._temporary(view) for view in self._files]):
                for file in self._files.values():
                    file.flush()
            for view, file in self._files.items():
                file.close()
                path = self._temporary(view)
                _sync(path)
                size, found = path.stat().st_size, checksum(path)
                files[f"{self._stem}.{view}.h5"] = StoredFile(view, size, found, self._rows[view], self._peaks[view])
            for view in self._files:
                self._temporary(view).replace(self.folder / f"{self._stem}.{view}.h5")
            about = {"shard": self.shard, "begin": begin, "end": end, **counts, "part": self.part, **notes}
            record = about | {"files": {name: asdict(file) for name, file in files.items()}}
            write_json(_record(self.folder, self.shard, self.part), record, self.token)
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
        return _record(self.folder, self.shard, self.part).stem

    def _temporary(self, view: str) -> Path:
        return self.folder / f"{self._stem}.{view}.h5.tmp-{self.token}"

    def _create(self, view: str, name: str, shape: tuple[int, ...], dtype: str) -> None:
        if view not in self._files:
            # one writer, a name nobody else uses: no lock is needed, and not every file system has one
            self._files[view] = h5py.File(self._temporary(view), "x", locking=False, rdcc_nbytes=1 << 20)
            self._rows[view], self._peaks[view] = {}, {}
        kept = np.dtype("uint16" if dtype == BFLOAT16 else dtype)
        chunk = rows_a_chunk(int(np.prod(shape)) * kept.itemsize)
        compression = None if view == META else self.compression
        created = self._files[view].create_dataset(
            name, (0, *shape), kept, maxshape=(None, *shape), chunks=(chunk, *shape), compression=compression
        )
        if dtype == BFLOAT16:
            created.attrs["dtype"] = BFLOAT16
        self._rows[view][name] = 0

    def _require_space(self, more: int) -> None:
        """Raise OSError where the disk would be full: HDF5 itself fails in bad order, and may crash the process."""
        if shutil.disk_usage(self.folder).free < more + LEAST_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
        self._require_space(rows.nbytes)
        with emptied_on_failure([self._temporary(view) for view in self._files]):
            dataset.resize(end, axis=0)
            dataset[begin:end] = rows
            dataset.flush()
        self._rows[view][name] = end


def rows_a_chunk(row_bytes: int) -> int:
    """Rows of a dataset that are stored together, which is also the least that it takes on disk."""
    return max(1, CHUNK_BYTES // row_bytes)


def is_complete(folder: Path, shard: int, part: int = 0) -> bool:
    """Is a part of a shard done? Its side-car is written when everything else of it is, and names its files."""
    path = _record(folder, shard, part)
    return path.is_file() and all((folder / name).is_file() for name in _read_record(path).files)


def discard(folder: Path, shard: int, part: int = 0) -> None:
    """Make a part of a shard count as not done, so that it is written again: its side-car goes, its files will be
    replaced."""
    _record(folder, shard, part).unlink(missing_ok=True)


def check_counts(folder: Path, shard: int, counts: Mapping[str, int]) -> None:
    """Raise BadInput where a later part of a shard has other numbers of rows than its tables."""
    there = _read_record(_record(folder, shard, 0)).counts
    if there != dict(counts):
        raise BadInput(
            f"shard {shard} of {str(folder)!r} has {there}, but now {dict(counts)} were found: other examples"
        )


def read_shards(folder: Path) -> list[Shard]:
    """The complete shards of a run, in order, each with the files of its later parts.

    Raises BadInput for a side-car that cannot be read.
    """
    records = read_records(folder)
    added: dict[int, dict[str, StoredFile]] = {}
    for record in records:
        added.setdefault(record.shard, {}).update(record.files)
    return [replace(record, files=added[record.shard]) for record in records if record.part == 0]


def read_records(folder: Path) -> list[Shard]:
    """The records of all complete parts of a run's shards, by shard and part; BadInput as for ``read_shards``."""
    records = [_read_record(path) for path in folder.glob("shard-*.json")]
    return sorted(records, key=lambda record: (record.shard, record.part))


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


@contextmanager
def emptied_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """Round writing to HDF5 files: where it fails, empty them at once, so that what HDF5 still holds fits on closing.

    On a full disk it would lose that without a word, and take the whole process down. Raises OSError with its number,
    which h5py has only in the text of its errors, of several kinds.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        for path in paths:
            with suppress(FileNotFoundError):
                os.truncate(path, 0)
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def checksum(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def faults(folder: Path | str) -> dict[tuple[int, int], list[str]]:
    """What is wrong with a run: (shard, part) -> a line a fault; empty if nothing is.

    Every file of every shard is read again and compared with its checksum; missing shards are named.
    Raises BadInput if ``folder`` is not a run.
    """
    folder = Path(folder)
    manifest, records = read_manifest(folder), read_records(folder)
    present = {(record.shard, record.part) for record in records}
    parts = [number for number, part in enumerate(manifest["parts"]) if part["complete"] or number == 0]
    wanted = [(shard, part) for shard in range(manifest["shards"]) for part in parts]
    found = {key: [f"shard {_record(folder, *key).stem[6:]} is missing"] for key in wanted if key not in present}
    for record in records:
        wrong = [fault for name, stored in record.files.items() if (fault := _fault(folder / name, stored))]
        if wrong:
            found[record.shard, record.part] = wrong
    return found


def verify_run(folder: Path | str, drop: bool = False) -> list[str]:
    """The lines of ``faults``, in the order of shards.

    drop: make the damaged parts of shards count as not written, so that extracting again writes them, and only them.
    """
    found = faults(folder)
    if drop:
        for shard, part in found:
            discard(Path(folder), shard, part)
    return [line for _, lines in sorted(found.items()) for line in lines]


def _fault(path: Path, stored: StoredFile) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != stored.bytes:
        return f"{path.name} has {path.stat().st_size} bytes, {stored.bytes} were written"
    return f"{path.name} has other bytes than were written" if checksum(path) != stored.sha256 else None


def _record(folder: Path, shard: int, part: int) -> Path:
    """The side-car of a part of a shard."""
    return folder / (f"shard-{shard:05d}.json" if part == 0 else f"shard-{shard:05d}.part{part}.json")


def _read_record(path: Path) -> Shard:
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
