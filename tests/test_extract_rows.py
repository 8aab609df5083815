"""Rows read straight from the files of shards are those that h5py reads, whatever the storage and the order."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import extract.rows
from extract.rows import JoinedRows, Part, release_maps
from extract.store import TABLES, ShardWriter, read_shards
from grounding.errors import BadInput

NAME = "block.0/phrase"
GZIP = {"compression": "gzip", "shuffle": True}
LENGTHS = ([7], [1], [50, 0, 33, 1], [0, 0, 5, 0], [0], [0, 0])


def write(path: Path, length: int, dtype: str, shape=(3,), chunk=4, seed=0, **filters) -> Part:
    """A file of one dataset that grew batch by batch, between others."""
    values = np.random.default_rng(seed).standard_normal((length, *shape)).astype(np.float32)
    stored = {"bfloat16": "uint16"}.get(dtype, dtype)
    with h5py.File(path, "x") as file:
        other = file.create_dataset("other", (0, 5), "f4", maxshape=(None, 5), chunks=(2, 5))
        data = file.create_dataset(
            NAME, (0, *shape), stored, maxshape=(None, *shape), chunks=(chunk, *shape), **filters
        )
        if dtype == "bfloat16":
            data.attrs["dtype"] = "bfloat16"
            values = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        for begin in range(0, length, 3):
            part = values[begin : begin + 3]
            data.resize(begin + len(part), axis=0)
            data[begin:] = part
            other.resize(begin + 1, axis=0)
            other[begin] = 1.0
            file.flush()  # gives both their places now
    return Part(path, str(path), length)


def by_h5py(parts: list[Part]) -> np.ndarray:
    found = []
    for part in parts:
        with h5py.File(part.path) as file:
            values, bfloat16 = file[NAME][:], "dtype" in file[NAME].attrs
        if bfloat16:
            values = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float().numpy()
        found.append(values.astype(np.float32))
    return np.concatenate(found)


def without_hdf5(monkeypatch) -> None:
    def closed(*arguments, **options):
        raise AssertionError("a file was opened with h5py")

    monkeypatch.setattr(h5py, "File", closed)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("filters", [{}, GZIP, {"compression": "lzf"}, {"fletcher32": True}], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", ">f4"])
def test_rows_are_those_that_h5py_reads(tmp_path, dtype, filters, lengths):
    parts = [write(tmp_path / f"{k}.h5", n, dtype, seed=k, **filters) for k, n in enumerate(lengths)]
    expected, rows = by_h5py(parts), JoinedRows(NAME, parts)
    found = rows.read()
    assert found.dtype == np.float32
    assert len(rows) == len(expected) == sum(lengths)
    np.testing.assert_array_equal(found, expected)
    random = np.random.default_rng(1)
    for count in (0, 1, 20, 200) if len(expected) else (0,):
        chosen = random.integers(len(expected), size=count) if count else []
        np.testing.assert_array_equal(rows.read(chosen), expected[chosen] if count else expected[:0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", ">f4"])
def test_stretches_of_rows_are_copied_in_one_go(tmp_path, monkeypatch, dtype):
    parts = [write(tmp_path / f"{k}.h5", 200, dtype, chunk=64, seed=k) for k in range(2)]
    rows, expected = JoinedRows(NAME, parts), by_h5py(parts)
    chosen = np.concatenate([np.arange(90), np.arange(250, 400), np.arange(90, 130), np.arange(60, 80)])
    lengths, runs = [], extract.rows._runs

    def counted(*arguments):
        found = runs(*arguments)
        lengths.extend(last - first for first, last in found)
        return found

    monkeypatch.setattr(extract.rows, "_runs", counted)
    np.testing.assert_array_equal(rows.read(chosen), expected[chosen])
    np.testing.assert_array_equal(rows.read(), expected)
    assert sum(lengths) == len(chosen) + len(expected)
    assert max(lengths) <= 64  # chunks of other data lie between


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)], ids=str)
def test_rows_of_any_shape(tmp_path, shape):
    parts = [write(tmp_path / f"{k}.h5", 30, "float16", shape, chunk=8, seed=k) for k in range(2)]
    chosen = [59, 0, 31, 31, 29, 30]
    np.testing.assert_array_equal(JoinedRows(NAME, parts).read(chosen), by_h5py(parts)[chosen])


def test_plain_chunks_are_read_without_hdf5_and_only_looked_up_once(tmp_path, monkeypatch):
    parts = [write(tmp_path / f"{k}.h5", 40, "float16", seed=k) for k in range(3)]
    rows, expected = JoinedRows(NAME, parts), by_h5py(parts)
    rows.read([0, 50])
    without_hdf5(monkeypatch)
    np.testing.assert_array_equal(rows.read(np.arange(79, -1, -1)), expected[79::-1])
    with pytest.raises(AssertionError, match="opened with h5py"):
        rows.read([80])  # the third file, of which nothing was read yet


def test_what_cannot_be_read_as_it_lies_goes_through_h5py(tmp_path):
    parts = [
        write(tmp_path / "plain.h5", 20, "float16", seed=0),
        write(tmp_path / "packed.h5", 20, "float16", seed=1, **GZIP),
        write(tmp_path / "other-chunks.h5", 20, "float16", chunk=7, seed=2),
        write(tmp_path / "other-dtype.h5", 20, "bfloat16", seed=3),
        write(tmp_path / "unwritten.h5", 20, "float16", seed=4),
    ]
    with h5py.File(parts[-1].path, "a") as file:
        file[NAME].resize(90, axis=0)  # chunks that nothing was written to: they read as zeros
        file[NAME][85:] = 3.0
    parts[-1] = Part(parts[-1].path, "", 90)
    chosen = np.random.default_rng(0).permutation(170)
    for first in range(len(parts)):  # the first decides what the others are compared with
        turned = parts[first:] + parts[:first]
        np.testing.assert_array_equal(JoinedRows(NAME, turned).read(chosen), by_h5py(turned)[chosen])


def test_rows_out_of_range_are_refused(tmp_path):
    rows = JoinedRows(NAME, [write(tmp_path / "0.h5", 5, "float16"), write(tmp_path / "1.h5", 5, "float16")])
    for wrong in ([10], [-1, 3]):
        with pytest.raises(BadInput, match=rf"{NAME}: rows {min(wrong)} to {max(wrong)}; accepted: 0 to 9"):
            rows.read(wrong)


def test_what_was_learned_of_the_files_can_be_pickled(tmp_path, monkeypatch):
    parts = [write(tmp_path / f"{k}.h5", 40, "float16", seed=k) for k in range(2)]
    rows = JoinedRows(NAME, parts)
    expected = rows.read()
    without_hdf5(monkeypatch)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows)).read(), expected)


def test_a_file_that_took_the_place_of_another_is_read_anew(tmp_path):
    old = write(tmp_path / "x.h5", 9, "float16", seed=0)
    before = JoinedRows(NAME, [old]).read()
    old.path.unlink()
    new = Part(write(old.path, 9, "float16", seed=1).path, "other bytes", 9)
    found = JoinedRows(NAME, [new]).read()
    np.testing.assert_array_equal(found, by_h5py([new]))
    assert not np.array_equal(found, before)


def test_shards_as_they_are_written(tmp_path):
    random, written = np.random.default_rng(0), []
    for k in range(3):
        writer = ShardWriter(tmp_path, k, "t", {("block.0", "phrase"): 96, ("block.1", "phrase"): 40})
        for size in (300, 1, 450):
            written.append(random.standard_normal((size, 96)).astype(np.float16))
            writer.append("block.0", "phrase", written[-1])
            writer.append("block.1", "phrase", np.zeros((size, 40), np.float16))
        writer.commit(0, 1, dict.fromkeys(TABLES, 1), {name: {"id": np.arange(1)} for name in TABLES})
    parts = [
        Part(tmp_path / name, stored.sha256, stored.rows[NAME])
        for shard in read_shards(tmp_path)
        for name, stored in shard.files.items()
        if NAME in stored.rows
    ]
    expected, chosen = np.concatenate(written).astype(np.float32), random.permutation(2253)
    np.testing.assert_array_equal(JoinedRows(NAME, parts).read(chosen), expected[chosen])


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> JoinedRows:
    """40 MB of rows."""
    folder = tmp_path_factory.mktemp("large")
    parts = []
    for k in range(2):
        with h5py.File(folder / f"{k}.h5", "x") as file:
            file.create_dataset(NAME, data=np.ones((40_000, 256), np.float16), chunks=(128, 256))
        parts.append(Part(folder / f"{k}.h5", "", 40_000))
    return JoinedRows(NAME, parts)


def test_reading_in_turn_takes_memory_for_what_is_asked_for(large):
    resident = _resident_file_bytes()
    tracemalloc.start()
    for begin in range(0, len(large), 1000):
        assert large.read(np.arange(begin, begin + 1000)).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6  # 1 MB of float32, 1 MB as stored and half of that again
    assert _resident_file_bytes() - resident < 4e6  # of 40 MB of maps


def test_what_rows_in_no_order_took_is_given_back_when_asked(large):
    release_maps()
    resident = _resident_file_bytes()
    for chosen in np.random.default_rng(0).permutation(len(large))[:20_000].reshape(-1, 500):
        large.read(chosen)
    assert _resident_file_bytes() - resident > 20e6
    release_maps()
    assert _resident_file_bytes() - resident < 4e6
    assert large.read([0, 79_999]).all()


def test_reading_all_takes_little_beside_the_result(large):
    tracemalloc.start()
    found = large.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < found.nbytes + 100 * len(large) + 4e6  # numbers of rows, and a block


def _resident_file_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc")
    return 1024 * int(status.read_text(encoding="ascii").partition("RssFile:")[2].split()[0])
