"""Settings of an extraction: storage, compression, batch size, order of the examples, Ctrl-C, estimates, inspection."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import TinyModel, tiny_games
from tiny_run import ALL_VIEWS, IDENTITY, contents, run_tiny

from extract.batch_size import find_batch_size
from extract.collect import choose_views
from extract.estimate import estimate
from extract.inspect_run import describe_run, is_run
from extract.interrupts import Interrupts
from extract.loading import split_shard
from extract.reader import Run
from extract.run import extract
from extract.shards import Extractor, Options
from grounding.errors import BadInput


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x", dtype="float32")


def test_bfloat16_is_the_rounding_of_the_exact_values(exact, tmp_path):
    short = run_tiny(tmp_path / "x", dtype="bfloat16")
    for view in ("phrase", "region"):
        rounded = torch.from_numpy(exact.read("block.1", view)).bfloat16().float().numpy()
        np.testing.assert_array_equal(short.read("block.1", view), rounded)
        np.testing.assert_array_equal(short.read("block.1", view, [5, 0, 5]), rounded[[5, 0, 5]])
    with h5py.File(short.path / "activations.h5") as file:
        assert file["block.1/phrase"].dtype == np.uint16
        assert file["block.1/phrase"].attrs["dtype"] == "bfloat16"


def test_what_does_not_fit_float16_fits_bfloat16(tmp_path):
    model = TinyModel()
    model.words.weight.data[:, 5] = 1e6
    run = extract(model, tiny_games(4), tmp_path / "x", identity=IDENTITY, dtype="bfloat16")
    assert run.read("text.0", "phrase")[:, 5] == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize("kind", ["lzf", "gzip"])
def test_compression_changes_the_files_and_no_value(exact, tmp_path, kind):
    run = run_tiny(tmp_path / "x", dtype="float32", compression=kind)
    assert contents(run.path) == contents(exact.path)
    with h5py.File(run.path / "shard-00000.tokens.h5") as file:
        assert file["block.1/tokens"].compression == kind


def test_the_batch_size_is_the_first_that_a_larger_one_does_not_beat(monkeypatch):
    model, seconds = TinyModel(), {1: 1.0, 2: 1.2, 4: 2.4, 8: 1.0}
    extractor = Extractor(model, choose_views(model.sites(), ["phrase"]), Options())

    def timed(extractor, prepared):
        return seconds[len(prepared.ready.batch)], None

    monkeypatch.setattr("extract.batch_size.time_batch", timed)
    assert find_batch_size(extractor, tiny_games(10)) == 2

    def full(extractor, prepared):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("extract.batch_size.time_batch", full)
    with pytest.raises(BadInput, match="not even one example fits"):
        find_batch_size(extractor, tiny_games(10))


def test_a_resumed_run_keeps_the_batch_size_that_was_found(tmp_path):
    run = run_tiny(tmp_path / "x", batch_size="auto")
    found, before = run.manifest["made_with"]["batch_size"], contents(run.path)
    assert found in (1, 2, 4)
    (run.path / "shard-00001.json").unlink()
    run_tiny(tmp_path / "x", batch_size="auto")
    assert contents(run.path) == before


def test_images_of_like_shape_come_together_within_a_shard(tmp_path):
    games = tiny_games(8)
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 20) if number % 2 else (20, 40)).save(path)
        games[number] = replace(games[number], images=(path,) * 3)
    tasks = split_shard(0, 6, 3, games)
    assert [task.examples for task in tasks] == [(1, 3, 5), (0, 2, 4)]
    assert [task.last for task in tasks] == [False, True]
    assert [task.examples for task in split_shard(1, 6, 3, games)] == [(7, 6)]
    assert [task.examples for task in split_shard(0, 6, 4, tiny_games(8))] == [(0, 1, 2, 3), (4, 5)]


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_ends_after_the_shard_and_the_run_goes_on_later(exact, tmp_path, workers):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(done, total):
        if done == 3:  # the first batch of the first shard
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path / "x", dtype="float32", progress=interrupt, workers=workers)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(Run.open(tmp_path / "x", allow_partial=True).examples) == 4
    assert not list((tmp_path / "x").glob("*.claim"))
    assert contents(run_tiny(tmp_path / "x", dtype="float32").path) == contents(exact.path)


def test_a_second_ctrl_c_does_not_wait():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupts.asked
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_the_estimate_is_near_what_is_written(tmp_path):
    games = tiny_games(400)
    told = estimate(TinyModel(), games, views=ALL_VIEWS, batch_size=16, shard_size=200)
    run = run_tiny(tmp_path / "x", games=games, batch_size=16, shard_size=200)
    for view in ALL_VIEWS:
        written = sum(path.stat().st_size for path in run.path.glob(f"shard-*.{view}.h5"))
        assert told.bytes[view] == pytest.approx(written, rel=0.2)
    assert (told.examples, told.shards, told.sampled) == (400, 2, 64)
    assert told.seconds > 0
    assert estimate(TinyModel(), games[:48], batch_size=16).sampled == 48  # no example is looked at twice


def test_an_inspected_run_tells_what_it_holds_and_how_to_open_it(exact, tmp_path):
    told = describe_run(exact.path)
    held = {(site["site"], site["view"]): site for site in told["sites"]}
    assert held["block.1", "phrase"]["rows"] == len(exact.phrases)
    assert held["block.1", "attention"]["channels"] == 2
    assert held["block.1", "region"]["peak"] >= np.abs(exact.read("block.1", "region")).max()
    assert told["shards"] == "3 of 3"
    names: dict = {}
    exec("\n".join(told["open"]), names)
    assert len(names["captions"]) == 10
    assert len(names["rows"]) == len(exact.phrases)
    assert is_run(exact.path)
    assert not is_run(tmp_path)
    json.dumps(told)
