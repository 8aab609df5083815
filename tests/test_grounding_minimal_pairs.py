"""Minimal pairs: only one thing differs, the answer with it, and they are the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from kilogram_fixture import write_kilogram

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.scenes import excluded_by
from grounding.errors import BadInput
from grounding.examples import validate

GAMES = 30


@pytest.fixture(scope="module")
def mini():
    return open_benchmark("mini-game", None, 0)


@pytest.fixture(scope="module")
def pairs(mini):
    return mini.minimal_pairs("dev", GAMES)


def solved(mini, pair):
    """The game of a pair, and which of the corrupted images each mention of the clean caption fits nowhere in."""
    game = mini.game("dev", int(pair.clean.id.rsplit("/", 1)[1]))
    return game, [
        [excluded_by(mention.description, scene) for mention in game.mentions] for scene in pair.corrupted.images
    ]


def test_every_game_has_a_changed_target_and_most_the_others(pairs):
    kinds = [pair.kind for pair in pairs]
    assert kinds.count("target") == GAMES
    assert kinds.count("distractor") > GAMES / 2
    assert kinds.count("caption") > GAMES / 3
    for pair in pairs:
        validate(pair.clean)
        validate(pair.corrupted)
        assert pair.corrupted.groups == pair.clean.groups
        assert [p.id for p in pair.corrupted.phrases] == [p.id for p in pair.clean.phrases]


def test_they_are_drawn_by_the_seed(mini, pairs):
    again = open_benchmark("mini-game", None, 0).minimal_pairs("dev", 5, ["caption"])
    assert again == [pair for pair in pairs if pair.kind == "caption"][: len(again)]
    other = open_benchmark("mini-game", None, 1).minimal_pairs("dev", 5, ["caption"])
    assert [pair.clean.caption for pair in other] != [pair.clean.caption for pair in again]


def test_one_word_of_the_caption_makes_another_candidate_the_target(mini, pairs):
    for pair in (pair for pair in pairs if pair.kind == "caption"):
        before, after = pair.clean.caption.split(), pair.corrupted.caption.split()
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
        assert pair.corrupted.images == pair.clean.images
        assert pair.corrupted.target_index == pair.other_index != pair.target_index
        changed = [
            phrase.id
            for phrase, other in zip(pair.clean.phrases, pair.corrupted.phrases, strict=True)
            if phrase.text(pair.clean.caption) != other.text(pair.corrupted.caption)
        ]
        assert tuple(changed) == pair.phrase_ids
        assert all(phrase.image_index == pair.other_index for phrase in pair.corrupted.phrases)
        assert all(phrase.type in phrase.text(pair.corrupted.caption) for phrase in pair.corrupted.phrases)


def test_one_attribute_of_the_target_takes_its_fit_away(mini, pairs):
    for pair in (pair for pair in pairs if pair.kind == "target"):
        _, missing = solved(mini, pair)
        assert sum(missing[pair.target_index]) == 1
        assert all(any(row) for row in missing)  # the caption fits nothing any more
        one_object_differs(pair, pair.target_index)


def test_one_attribute_of_a_distractor_makes_the_caption_fit_it_too(mini, pairs):
    for pair in (pair for pair in pairs if pair.kind == "distractor"):
        _, missing = solved(mini, pair)
        assert [k for k, row in enumerate(missing) if not any(row)] == sorted({pair.target_index, pair.other_index})
        one_object_differs(pair, pair.other_index)
        assert pair.places[0][0] == pair.other_index


def one_object_differs(pair, place: int) -> None:
    assert [k for k, (a, b) in enumerate(zip(pair.clean.images, pair.corrupted.images, strict=True)) if a != b] == [
        place
    ]
    before, after = (one.images[place].objects for one in (pair.clean, pair.corrupted))
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 1
    assert sum(a != b for a, b in zip(changed[0][0].attributes, changed[0][1].attributes, strict=True)) == 1
    (image, (x1, y1, x2, y2)), size = pair.places[0], 64
    assert image == place
    pixels = (pair.clean.images[place].render(size) != pair.corrupted.images[place].render(size)).any(-1)
    rows, columns = np.nonzero(pixels)  # a new shape may reach a little beyond the box of the old one
    inside = (columns >= x1 * size - 6) & (columns < x2 * size + 6) & (rows >= y1 * size - 6) & (rows < y2 * size + 6)
    assert len(rows)
    assert inside.all()


def test_kilogram_exchanges_two_colours_or_one_distractor(tmp_path):
    source = open_benchmark("kilogram", write_kilogram(tmp_path / "kilogram"), 0, candidates=2)
    pairs = source.minimal_pairs("train")
    assert {pair.kind for pair in pairs} <= {"colour", "distractor"}
    colours = [pair for pair in pairs if pair.kind == "colour"]
    assert colours
    for pair in colours:
        before, after = (one.images[pair.target_index] for one in (pair.clean, pair.corrupted))
        assert before.drawing == after.drawing
        assert sorted(before.colours) == sorted(after.colours) or set(before.colours) == set(after.colours)
        exchanged = {(a, b) for a, b in zip(before.colours, after.colours, strict=True) if a != b}
        assert {(b, a) for a, b in exchanged} == exchanged
        assert len(exchanged) == 2
        assert pair.other_index is None
    for pair in (pair for pair in pairs if pair.kind == "distractor"):
        changed = [k for k, (a, b) in enumerate(zip(pair.clean.images, pair.corrupted.images, strict=True)) if a != b]
        assert changed == [pair.other_index]
        assert pair.other_index != pair.target_index
    assert pairs == open_benchmark("kilogram", tmp_path / "kilogram", 0, candidates=2).minimal_pairs("train")


def test_what_cannot_be_paired_is_refused(mini):
    with pytest.raises(BadInput, match="pairs 'colour' is unknown; accepted: caption, target, distractor"):
        mini.minimal_pairs("dev", 2, ["colour"])
    with pytest.raises(BadInput, match="benchmark 'mini-sdr' has no minimal pairs"):
        open_benchmark("mini-sdr", None, 0).minimal_pairs("dev", 2)
    with pytest.raises(BadInput, match="none of 1 games has a minimal change of kind caption"):
        open_benchmark("mini-game", None, 0, difficulty="single").minimal_pairs("dev", 1, ["caption"])
