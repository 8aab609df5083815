"""The registry, and what every benchmark inherits: unknown splits, limits, skipping what is broken."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from kilogram_fixture import write_kilogram

from grounding.benchmarks import (
    BENCHMARKS,
    Benchmark,
    benchmark_class,
    benchmark_options,
    load_source,
    open_benchmark,
)
from grounding.benchmarks.base import Fault, Skipped
from grounding.errors import BadInput
from grounding.examples import Example, Phrase, ReferenceGame, Region, validate


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_registered_name_is_the_name_of_its_class(name):
    found = benchmark_class(name)
    assert issubclass(found, Benchmark)
    assert found.name == name
    assert "dev" in found.splits
    assert any(split.startswith("test") for split in found.splits)


def test_the_registry_imports_no_benchmark_before_it_is_asked_for_one():
    code = "import sys, grounding.benchmarks; print([m for m in sys.modules if m.startswith('grounding.benchmarks.')])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "['grounding.benchmarks.minimal_pairs', 'grounding.benchmarks.base']"


def test_open_benchmark_passes_root_seed_and_options(tmp_path):
    benchmark = open_benchmark("kilogram", str(write_kilogram(tmp_path)), seed=5, colour_order="caption", candidates=4)
    assert (benchmark.name, benchmark.root, benchmark.seed) == ("kilogram", tmp_path, 5)
    assert benchmark.identity()["colour_order"] == "caption"
    assert len(benchmark.load("dev", limit=1)[0].images) == 4


def test_miniatures_open_without_files():
    assert open_benchmark("mini-game", seed=3).load("dev", limit=1)[0].split == "dev"
    assert open_benchmark("mini-sdr").name == "mini-sdr"


def test_unknown_names_options_and_useless_roots_are_refused(tmp_path):
    with pytest.raises(BadInput, match="benchmark 'kilogramm' is unknown; accepted: kilogram, touchdown-sdr"):
        open_benchmark("kilogramm")
    with pytest.raises(BadInput, match=r"'kilogram' takes no option 'colour'; accepted: colour_order, annotations"):
        open_benchmark("kilogram", tmp_path, colour="random")
    with pytest.raises(BadInput, match="'mini-game' takes no option 'colour_order'"):
        open_benchmark("mini-game", colour_order="random")
    with pytest.raises(BadInput, match="'mini-sdr' takes no option 'colour_order'; accepted: none"):
        open_benchmark("mini-sdr", colour_order="random")
    with pytest.raises(BadInput, match="'mini-game' reads no files"):
        open_benchmark("mini-game", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": "big"}, "option image_size of 'kilogram' is 'big'; accepted: a value like 224"),
        ({"candidates": 2.5}, "option candidates of 'kilogram' is 2.5; accepted: a value like 10"),
        ({"candidates": True}, "option candidates of 'kilogram' is True; accepted: a value like 10"),
        ({"colour_order": 1}, "option colour_order of 'kilogram' is 1; accepted: a value like 'random'"),
        ({"seed": -1}, "data seed -1 is too small; accepted: 0 or more"),
    ],
)
def test_options_of_another_type_and_negative_seeds_are_refused(tmp_path, options, message):
    with pytest.raises(BadInput) as raised:
        open_benchmark("kilogram", write_kilogram(tmp_path), **options)
    assert str(raised.value) == message


def test_options_are_listed_with_their_defaults():
    assert benchmark_options("kilogram") == {
        "colour_order": "random",
        "annotations": "dense",
        "image_size": 224,
        "candidates": 10,
    }
    assert benchmark_options("mini-sdr") == {}


def example(number: int, span=(0, 4), box=(0.0, 0.0, 0.5, 0.5)) -> Example:
    phrase = Phrase(f"{number}/0", "bird", (span,), (Region(box),))
    return Example(str(number), "dev", ("a.png",), "bird", (phrase,), ReferenceGame(0), {"image": "a"})


class Shelf(Benchmark):
    """Five items of which the second, third and fourth are broken, each in its own way."""

    name = "shelf"
    splits = ("dev",)

    def _read(self, split, limit):
        yield example(0)
        yield Fault("1", "page torn out")
        yield example(2, span=(0, 9))
        yield example(3, box=(0.5, 0.5, 0.5, 1.0))
        yield example(4)

    def identity(self):
        return {}


def test_the_first_broken_example_stops_the_load():
    with pytest.raises(BadInput, match="page torn out"):
        Shelf().load("dev")


def test_skip_bad_goes_on_and_lists_what_it_left_out():
    shelf = Shelf()
    assert [found.id for found in shelf.load("dev", skip_bad=True)] == ["0", "4"]
    assert [skipped.id for skipped in shelf.skipped] == ["1", "2", "3"]
    assert shelf.skipped[0] == Skipped("1", "page torn out")
    assert "span (0, 9)" in shelf.skipped[1].reason
    assert "no area" in shelf.skipped[2].reason


def test_ids_that_come_twice_are_refused():
    class Twice(Shelf):
        def _read(self, split, limit):
            yield from (example(0), example(1), example(0))

    with pytest.raises(BadInput, match="example '0' comes twice in dev"):
        Twice().load("dev")
    twice = Twice()
    assert [found.id for found in twice.load("dev", skip_bad=True)] == ["0", "1"]
    assert [skipped.id for skipped in twice.skipped] == ["0"]


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        (((0, 2), (1, 4)), r"spans \(0, 2\) and \(1, 4\) overlap"),
        (((2, 2),), r"span \(2, 2\) does not fit a caption of 4 characters"),
        (((3, 5),), r"span \(3, 5\) does not fit"),
        (((-1, 2),), r"span \(-1, 2\) does not fit"),
    ],
)
def test_spans_that_overlap_are_empty_or_leave_the_caption(spans, reason):
    phrase = Phrase("0/0", "bird", spans, (Region((0.0, 0.0, 0.5, 0.5)),))
    with pytest.raises(BadInput, match=f"example '0', phrase '0/0': {reason}"):
        validate(replace(example(0), phrases=(phrase,)))


def test_phrases_of_one_id_are_refused():
    one = example(0)
    with pytest.raises(BadInput, match="example '0': two phrases have the id '0/0'"):
        validate(replace(one, phrases=one.phrases * 2))


def test_the_list_of_skipped_is_of_the_last_load():
    shelf = Shelf()
    shelf.load("dev", skip_bad=True)
    assert [found.id for found in shelf.load("dev", limit=1)] == ["0"]  # what follows the limit is not looked at
    assert shelf.skipped == []


def test_limit_counts_good_examples():
    assert [found.id for found in Shelf().load("dev", limit=2, skip_bad=True)] == ["0", "4"]
    assert len(Shelf().load("dev", limit=99, skip_bad=True)) == 2


def test_progress_counts_good_examples():
    done: list[int] = []
    Shelf().load("dev", skip_bad=True, progress=done.append)
    assert done == [1, 2]


def test_unknown_splits_limits_and_roots_are_refused(tmp_path):
    with pytest.raises(BadInput, match="split 'tset' is unknown; accepted: dev"):
        Shelf().load("tset")
    with pytest.raises(BadInput, match="limit 0 is too small"):
        Shelf().load("dev", limit=0)
    with pytest.raises(BadInput, match="none' is not a folder"):
        Shelf(tmp_path / "none")


def test_benchmarks_that_need_files_say_so():
    with pytest.raises(BadInput, match="benchmark 'kilogram' needs a root"):
        open_benchmark("kilogram")


def test_a_root_for_a_run_that_names_no_benchmark_is_refused():
    assert load_source(None) == {}
    with pytest.raises(BadInput, match="root 'games' is of no benchmark"):
        load_source(None, "games")
