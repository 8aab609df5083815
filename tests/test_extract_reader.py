"""Reading a run: several sites at once, views in turn, and what is refused. The rest is in test_extract_run."""

from __future__ import annotations

import json
import pickle
import shutil

import h5py
import numpy as np
import pytest
from tiny_run import ALL_VIEWS, run_tiny

from extract.reader import Run
from grounding.errors import BadInput


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x")


def joined(run: Run, name: str) -> np.ndarray:
    """A dataset as h5py reads it through the file that joins the shards."""
    with h5py.File(run.path / "activations.h5") as file:
        return file[name][:].astype(np.float32)


def test_several_sites_are_read_at_once_and_aligned(run):
    found = run.read(["block.1", "text.0", "decoder.0"], "phrase", [7, 2, 2])
    assert found.shape == (3, 3, 16)
    for site, part in zip(("block.1", "text.0", "decoder.0"), found, strict=True):
        np.testing.assert_array_equal(part, run.read(site, "phrase", [7, 2, 2]))
    np.testing.assert_array_equal(found[0], found[2])  # decoder.0 has the phrases of block.1
    with pytest.raises(BadInput, match=r"sites have tokens rows of shapes \{'text.0': \(\d+, 16\), 'block.0'.*of one"):
        run.read(["text.0", "block.0"], "tokens")
    with pytest.raises(BadInput, match="accepted: one site or more"):
        run.read([], "phrase")


@pytest.mark.parametrize("view", ALL_VIEWS)
def test_every_view_is_read_whole_and_in_turn(run, view):
    expected = joined(run, f"block.0/{view}")
    np.testing.assert_array_equal(run.read("block.0", view), expected)
    batches = list(run.batches("block.0", view, 7))
    assert {len(batch) for batch in batches[:-1]} == {7}
    np.testing.assert_array_equal(np.concatenate(batches), expected)


def test_several_sites_in_turn(run):
    batches = list(run.batches(["block.0", "block.1"], "region", 50))
    assert batches[0].shape == (2, 50, 16)
    np.testing.assert_array_equal(np.concatenate(batches, axis=1), run.read(["block.0", "block.1"], "region"))


def test_batches_refuse_what_read_refuses(run):
    with pytest.raises(BadInput, match="size 0 is not a number of rows; accepted: 1 or more"):
        next(run.batches("block.0", "phrase", 0))
    with pytest.raises(BadInput, match="view 'pixels' is unknown; accepted: phrase, region, attention, tokens"):
        next(run.batches("block.0", "pixels", 8))
    with pytest.raises(BadInput, match=r"site 'text.0' has no view 'attention' in this run; it has phrase, tokens"):
        next(run.batches("text.0", "attention", 8))


def test_a_run_in_use_can_be_pickled(run):
    phrase, tokens = run.read("block.0", "phrase", [3]), run.tokens("block.0", 1)
    again = pickle.loads(pickle.dumps(run))
    np.testing.assert_array_equal(again.read("block.0", "phrase", [3]), phrase)
    np.testing.assert_array_equal(again.tokens("block.0", 1), tokens)
    assert len(again.phrases) == len(run.phrases)


def test_a_view_in_several_files_is_found_and_one_that_a_shard_lacks_is_named(run, tmp_path):
    expected = run.read("block.1", "phrase")
    shutil.copytree(run.path, tmp_path / "x")
    record = tmp_path / "x" / "shard-00001.json"
    values = json.loads(record.read_text())
    stored = values["files"]["shard-00001.phrase.h5"]
    moved = {"block.1/phrase": stored["rows"].pop("block.1/phrase")}
    shutil.copy(tmp_path / "x" / "shard-00001.phrase.h5", tmp_path / "x" / "shard-00001.more.h5")
    values["files"]["shard-00001.more.h5"] = {**stored, "rows": moved}
    record.write_text(json.dumps(values))
    np.testing.assert_array_equal(Run.open(tmp_path / "x").read("block.1", "phrase"), expected)
    del values["files"]["shard-00001.more.h5"]
    record.write_text(json.dumps(values))
    with pytest.raises(BadInput, match=r"shard 1 of run '.*' lacks block.1/phrase; extract again"):
        Run.open(tmp_path / "x").read("block.1", "phrase")


def test_a_run_in_use_goes_to_workers_whose_arrays_cannot_be_written_on(run):
    run.read("block.1", "phrase", [0])  # of the first shard: where the others' rows are is not known yet
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(run, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(sent, buffers=[bytes(buffer.raw()) for buffer in buffers])
    np.testing.assert_array_equal(again.read("block.1", "phrase"), run.read("block.1", "phrase"))
