"""Speed of reading a run, as ratios: ``python perf/reader.py [--dtype float32] [--shards N N]``.

Rows of one site are written into shards beside those of a second one, as extraction does it, and into a ``.npy``. What
is timed gives float32 arrays in memory, the files being in the system's cache: the reader, a memory-mapped ``.npy``
that stays open, and h5py through a virtual dataset over the shards. They take turns, and medians are reported; a ratio
is the time of the ``.npy`` over the other, so that more is faster. Rows are in no order. "First" is a new reader that
has yet to find the chunks, once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py
import numpy as np

from extract.rows import JoinedRows, Part
from extract.store import TABLES, ShardWriter, read_shards

SITE, BESIDE, VIEW = "block.0", "block.1", "phrase"
NAME = f"{SITE}/{VIEW}"
BATCH = 80  # rows that are appended at a time


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    parser.add_argument("--shards", type=int, nargs="+", default=[5, 160])
    parser.add_argument("--chosen", type=int, default=1000, help="rows of a random choice")
    parser.add_argument("--rounds", type=int, default=50, help="of random rows; a tenth of them of the whole site")
    options = parser.parse_args()
    print(f"{options.rows:,} rows of {options.width} {options.dtype}, median of {options.rounds} rounds")
    print("| shards | what | .npy ms | reader ms | reader, ratio | aim | h5py, ratio |\n|---|---|---|---|---|---|---|")
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), shards, options)
            _compare(Path(folder), shards, options)


def _write(folder: Path, shards: int, options: argparse.Namespace) -> None:
    """The shards, a file over all of them, and the ``.npy``."""
    random, each = np.random.default_rng(0), options.rows // shards
    shape = (each * shards, options.width)
    array = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.dtype(options.dtype), shape)
    columns = {(site, VIEW): options.width for site in (SITE, BESIDE)}
    layout = h5py.VirtualLayout(shape, options.dtype)
    for shard in range(shards):
        rows = random.standard_normal((each, options.width), dtype=np.float32).astype(options.dtype)
        array[shard * each : (shard + 1) * each] = rows
        writer = ShardWriter(folder, shard, "perf", columns, options.dtype)
        for begin in range(0, each, BATCH):
            for site in (SITE, BESIDE):
                writer.append(site, VIEW, rows[begin : begin + BATCH])
        writer.commit(0, 1, dict.fromkeys(TABLES, 1), {name: {"id": np.arange(1)} for name in TABLES})
        source = h5py.VirtualSource(folder / f"shard-{shard:05d}.{VIEW}.h5", NAME, (each, options.width))
        layout[shard * each : (shard + 1) * each] = source
    array.flush()
    with h5py.File(folder / "all.h5", "x") as file:
        file.create_virtual_dataset(NAME, layout)


def _open(folder: Path) -> JoinedRows:
    files = [item for shard in read_shards(folder) for item in shard.files.items()]
    return JoinedRows(NAME, [Part(folder / n, f.sha256, f.rows[NAME]) for n, f in files if NAME in f.rows])


def _compare(folder: Path, shards: int, options: argparse.Namespace) -> None:
    """The lines of the table for these files."""
    array, reader = np.asarray(np.load(folder / "rows.npy", mmap_mode="r")), _open(folder)
    random, total = np.random.default_rng(1), len(array)
    choices: dict[str, tuple[Callable[[], np.ndarray | slice], float]] = {
        f"{options.chosen:,} random rows": (lambda: random.choice(total, options.chosen, replace=False), 0.5),
        f"{options.chosen:,} rows in turn": (
            lambda: np.arange(options.chosen) + random.integers(total - options.chosen),
            0.7,
        ),
        "the whole site": (lambda: slice(None), 0.7),
    }
    with h5py.File(folder / "all.h5") as file:
        ways: list[Callable[[np.ndarray | slice], np.ndarray]] = [
            lambda rows: array[rows].astype(np.float32, copy=isinstance(rows, slice)),  # a slice is no copy yet
            lambda rows: reader.read(None if isinstance(rows, slice) else rows),
            lambda rows: _by_h5py(file[NAME], rows),
        ]
        for what, (choose, aim) in choices.items():
            whole = isinstance(choose(), slice)
            rounds = max(3, options.rounds // 10) if whole else options.rounds
            times = [_timed(ways, choose(), check=number == 0) for number in range(rounds + 1)][1:]
            plain, ours, _ = (1e3 * median(column) for column in zip(*times, strict=True))
            ratios = [median(row[0] / row[way] for row in times) for way in (1, 2)]
            line = f"| {shards} | {what} | {plain:.2f} | {ours:.2f} | **{ratios[0]:.2f}** | {aim} | {ratios[1]:.2f} |"
            print(line, flush=True)
    begin = time.perf_counter()
    _open(folder).read(random.choice(total, options.chosen))
    print(f"| {shards} | first {options.chosen:,} random rows | | {1e3 * (time.perf_counter() - begin):.0f} | | | |")


def _by_h5py(dataset: h5py.Dataset, rows: np.ndarray | slice) -> np.ndarray:
    """The same with h5py alone, which wants rows in order."""
    if isinstance(rows, slice):
        return dataset[:].astype(np.float32)
    unique, back = np.unique(rows, return_inverse=True)
    if unique[-1] - unique[0] == len(rows) - 1:
        return dataset[unique[0] : unique[-1] + 1].astype(np.float32)
    return dataset[unique].astype(np.float32)[back]


def _timed(
    ways: list[Callable[[np.ndarray | slice], np.ndarray]], rows: np.ndarray | slice, check: bool
) -> list[float]:
    """Seconds by the clock of each way to read these rows; check: do all of them read the same?"""
    seconds, first = [], None
    for way in ways:
        begin = time.perf_counter()
        found = way(rows)
        seconds.append(time.perf_counter() - begin)
        if check and first is not None and not np.array_equal(found, first):
            raise SystemExit("the ways differ in what they read")
        first = found if check and first is None else first
        del found
    return seconds


if __name__ == "__main__":
    main()
