"""Adding views and sites to a finished run, and mending one: nothing that is there is computed or written again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_model import TinyModel, tiny_games
from tiny_run import ALL_VIEWS, IDENTITY, contents, interrupt_at, run_tiny

from extract.reader import Run
from extract.run import extract
from extract.store import faults, read_records, verify_run
from grounding.errors import BadInput

REST = {"add": True, "views": ALL_VIEWS, "sites": ["text.*", "block.*", "decoder.*"]}
SOME = {"views": ["phrase", "region"], "sites": ["block.*"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x")


@pytest.fixture
def some(tmp_path) -> Run:
    return run_tiny(tmp_path / "x", **SOME)


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.glob("shard-*")}


def same_values(run: Run, whole: Run) -> None:
    assert run.sites == whole.sites
    for site in whole.sites:
        for view in set(site.views) & {"phrase", "region"}:
            np.testing.assert_array_equal(run.read(site.name, view), whole.read(site.name, view))
    np.testing.assert_array_equal(run.attention("block.1", 5), whole.attention("block.1", 5))
    np.testing.assert_array_equal(run.tokens("text.0", 7), whole.tokens("text.0", 7))


def test_what_is_added_equals_what_would_have_been_extracted_at_once(some, whole):
    before = files(some)
    added = run_tiny(some.path, **REST)
    after = files(added)
    assert {name: after[name] for name in before} == before
    assert any(name.startswith("shard-00001.part1.tokens") for name in after)
    same_values(added, whole)
    assert verify_run(some.path) == []
    assert [part["complete"] for part in added.manifest["parts"]] == [True, True]


def test_one_view_then_one_site(some, whole):
    run_tiny(some.path, add=True, views=["attention"], sites=["block.1"])
    third = run_tiny(some.path, add=True, views=["phrase"], sites=["text.0"])
    assert [(site.name, site.views) for site in third.sites] == [
        ("text.0", ("phrase",)),
        ("block.0", ("phrase", "region")),
        ("block.1", ("phrase", "region", "attention")),
    ]
    np.testing.assert_array_equal(third.read("text.0", "phrase"), whole.read("text.0", "phrase"))
    np.testing.assert_array_equal(third.attention("block.1", 3), whole.attention("block.1", 3))


def test_the_model_does_not_run_for_what_is_there(some):
    class Idle(TinyModel):
        def forward(self, batch):
            raise AssertionError("the model ran")

    options = {"identity": IDENTITY, "batch_size": 3, "shard_size": 4}
    again = extract(Idle(), tiny_games(10), some.path, views=["phrase"], sites=["block.0"], add=True, **options)
    assert len(again.phrases) == len(some.phrases)


def test_views_that_a_run_lacks_are_named_unless_they_are_to_be_added(some):
    with pytest.raises(BadInput, match=r"holds this run without attention, tokens of block.0, block.1; add them"):
        run_tiny(some.path, views=ALL_VIEWS, sites=["block.*"])


def test_an_unfinished_run_is_finished_before_anything_is_added(some):
    (some.path / "shard-00001.json").unlink()
    with pytest.raises(BadInput, match="holds an unfinished run; finish it first, then add"):
        run_tiny(some.path, **REST)
    finished = run_tiny(some.path, **SOME)
    assert len(finished.examples) == 10


@pytest.mark.parametrize("stop", [0, 3])
def test_an_addition_that_was_stopped_goes_on(some, whole, monkeypatch, stop):
    manifest = json.loads((some.path / "manifest.json").read_text())
    interrupt_at(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(some.path, **REST)
    monkeypatch.undo()
    still = Run.open(some.path)  # usable as it was
    assert [site.views for site in still.sites] == [site.views for site in some.sites]
    assert not list(some.path.glob("*.tmp-*"))
    if stop == 0:
        assert json.loads((some.path / "manifest.json").read_text()) == manifest
    same_values(run_tiny(some.path, **REST), whole)


def test_a_damaged_part_alone_is_written_again(some, whole):
    run_tiny(some.path, **REST)
    before = contents(some.path)
    path = some.path / "shard-00001.part1.tokens.h5"
    damaged = bytearray(path.read_bytes())
    damaged[-7] ^= 1
    path.write_bytes(damaged)
    assert faults(some.path) == {(1, 1): ["shard-00001.part1.tokens.h5 has other bytes than were written"]}
    kept = {name: value for name, value in files(some).items() if "00001.part1" not in name}
    path.unlink()
    mended = run_tiny(some.path, **REST)
    assert verify_run(some.path) == []
    assert contents(some.path) == before
    assert {name: value for name, value in files(mended).items() if "00001.part1" not in name} == kept
    assert [(record.shard, record.part) for record in read_records(some.path)] == [
        (shard, part) for shard in range(3) for part in range(2)
    ]


def test_other_examples_are_not_mixed_in(some):
    games = tiny_games(10)
    model = TinyModel()
    copy = some.path.with_name("y")
    shutil.copytree(some.path, copy)
    prepare = model.prepare
    model.prepare = lambda examples: prepare(examples[:2])  # as if an example could no longer be read

    with pytest.raises(BadInput, match=r"shard 0 of .* has .*4.* now .*3.* were found: other examples"):
        extract(model, games, copy, identity=IDENTITY, batch_size=3, shard_size=4, **REST)
    assert [part["complete"] for part in Run.open(copy).manifest["parts"]] == [True]
