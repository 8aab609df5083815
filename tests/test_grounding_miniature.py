"""Miniature benchmarks: what is promised of scenes, captions and games holds on hundreds of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, pairwise
from typing import ClassVar

import numpy as np
import pytest
from pycocotools.mask import decode
from scipy.optimize import linear_sum_assignment

from grounding.benchmarks import grammar
from grounding.benchmarks.miniature import CANDIDATES, NEARNESS, Game, MiniatureGame, MiniatureSdr
from grounding.benchmarks.scenes import (
    ATTRIBUTES,
    COLOURS,
    LEAST_VISIBLE,
    NATIVE,
    Scene,
    regions,
    visibility,
)
from grounding.errors import BadInput
from grounding.examples import Example, ReferenceGame, SpatialDescription, validate
from grounding.images import read_image

GAMES = 500
WORDS = {word: value for value, words in grammar.SYNONYMS.items() for word in words}
NEXT = {a: b for values in ATTRIBUTES.values() for a, b in zip(values, (*values[1:], values[0]), strict=True)}
TRAILING = {text: value for value, texts in grammar.TRAILING.items() for text in texts}


@lru_cache(maxsize=1)
def games() -> list[Game]:
    benchmark = MiniatureGame()
    return [benchmark.game("train", index) for index in range(GAMES)]


@lru_cache(maxsize=1)
def examples() -> Sequence[Example]:
    return MiniatureGame().load("train", limit=150)


@lru_cache(maxsize=1)
def places() -> Sequence[Example]:
    return MiniatureSdr().load("train", limit=150)


def read_back(text: str) -> dict[str, str]:
    """What a noun phrase says, read by a parser that shares nothing with the grammar but its word lists."""
    said = {}
    for ending, texture in TRAILING.items():
        if text.endswith(ending):
            said["texture"], text = texture, text.removesuffix(ending)
    for word in text.split():
        value = WORDS.get(word, word)
        for attribute, values in ATTRIBUTES.items():
            if value in values:
                assert attribute not in said, text
                said[attribute] = value
    return said


def fingerprint(benchmark_examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in benchmark_examples:
        digest.update(repr((example.id, example.caption, example.phrases, example.task)).encode())
        for image in example.images:
            digest.update(read_image(image).tobytes())
    return digest.hexdigest()


# --- splits and seeds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MiniatureGame, MiniatureSdr])
def test_splits_share_no_scene(kind):
    benchmark = kind()
    seen = Counter()
    for split in benchmark.splits:
        seen.update({scene.objects for example in benchmark.load(split, limit=60) for scene in example.images})
    assert max(seen.values()) == 1
    assert len(seen) == len(benchmark.splits) * 60 * (CANDIDATES if kind is MiniatureGame else 1)


def test_sizes_limits_and_ids():
    class Small(MiniatureGame):
        sizes: ClassVar = {**MiniatureGame.sizes, "tune": 4}

    benchmark = MiniatureGame()
    assert dict(benchmark.sizes) == {"pretrain": 60_000, "train": 30_000, "tune": 500, "dev": 1000, "test": 1000}
    assert len(Small().load("tune")) == len(Small().load("tune", limit=9)) == 4
    few, more = benchmark.load("dev", limit=3), benchmark.load("dev", limit=5)
    assert list(few) == list(more[:3])
    assert few[2].id == "mini-game/dev/000002"
    assert few[2].groups == {"image": f"mini-game/dev/000002/{few[2].target_index}", "caption": "mini-game/dev/000002"}


def test_same_seed_same_bytes_in_another_process():
    code = (
        "from test_grounding_miniature import *;"
        "print(fingerprint([*MiniatureGame(seed=4).load('dev', limit=6), *MiniatureSdr(seed=4).load('dev', limit=6)]))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "123",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = [*MiniatureGame(seed=4).load("dev", limit=6), *MiniatureSdr(seed=4).load("dev", limit=6)]
    assert other.stdout.strip() == fingerprint(here)
    assert fingerprint(here) != fingerprint([*MiniatureGame(seed=5).load("dev", limit=6), *here[6:]])


def test_seed_and_difficulty_are_its_identity():
    assert MiniatureGame(seed=3, difficulty="easy").identity() == {
        "name": "mini-game",
        "version": 2,
        "seed": 3,
        "difficulty": "easy",
    }
    assert MiniatureSdr().identity() == {"name": "mini-sdr", "version": 2, "seed": 0}


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="difficulty 'brutal' is unknown; accepted: hard, easy"):
        MiniatureGame(difficulty="brutal")
    with pytest.raises(BadInput, match="index 1000 is outside mini-game dev; accepted: 0 to 999"):
        MiniatureGame().game("dev", 1000)
    with pytest.raises(BadInput, match="split 'val' is unknown"):
        MiniatureSdr().example("val", 0)


# --- scenes of the games ----------------------------------------------------------------------------------------


def all_regions(example: Example):
    for phrase in example.phrases:
        yield example.images[phrase.image_index], phrase.regions[0]


@pytest.mark.parametrize("source", [examples, places])
def test_masks_boxes_outlines_and_pixels_agree(source):
    for example in source()[:60]:
        for scene, region in all_regions(example):
            height, width, counts = region.mask_rle
            assert (height, width) == read_image(scene).shape[:2] == (NATIVE, NATIVE * scene.aspect)
            mask = decode({"size": [height, width], "counts": counts.encode()}).astype(bool)
            rows, columns = np.nonzero(mask)
            edges = columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height
            assert region.box == pytest.approx(edges)
            owner = np.unique(scene.owners()[mask])
            assert len(owner) == 1
            item = scene.objects[owner[0] - 1]
            assert mask.sum() == (scene.owners() == owner[0]).sum()
            xs, ys = np.array(region.polygons[0]).T
            assert xs.min() - 1.5 / width <= region.box[0]
            assert region.box[2] <= xs.max() + 1.5 / width
            assert ys.min() - 1.5 / height <= region.box[1]
            assert region.box[3] <= ys.max() + 1.5 / height
            if item.texture == "plain":
                inside = np.median(scene.render()[mask].astype(float), axis=0)
                assert np.abs(inside - COLOURS[item.colour]).max() < 40, item


def test_objects_stay_in_sight_and_overlaps_are_common():
    scenes = [scene for game in games()[:100] for scene in game.scenes]
    seen = [visibility(scene) for scene in scenes]
    assert min(part.min() for part in seen) >= LEAST_VISIBLE
    assert np.mean([part.min() < 0.9 for part in seen]) > 0.4
    assert {len(scene.objects) for scene in scenes} == {3, 4, 5}


def test_look_alikes_are_common():
    def alike(game: Game, mentioned: int) -> bool:
        about = {mention.object_index for mention in game.mentions}
        looks = game.target.objects[mentioned].attributes
        others = [item.attributes for k, item in enumerate(game.target.objects) if k not in about]
        return any(sum(a == b for a, b in zip(looks, other, strict=True)) in (2, 3) for other in others)

    with_spare = [game for game in games() if len(game.mentions) < len(game.target.objects)]
    assert np.mean([alike(g, m.object_index) for g in with_spare for m in g.mentions]) > 0.4


# --- captions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [examples, places])
def test_every_span_reads_as_exactly_one_object_of_the_target(source):
    for example in source():
        validate(example)
        scene = example.images[example.target_index]
        for phrase in example.phrases:
            said = read_back(phrase.text(example.caption))
            assert said["shape"] == phrase.type
            (fitting,) = scene.matching(said)
            assert phrase.regions == tuple(regions(scene, [fitting]))
        spans = [phrase.spans[0] for phrase in example.phrases]
        assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_phrases_do_not_begin_with_an_article_but_follow_one():
    for example in examples():
        for phrase in example.phrases:
            (begin, _), text = phrase.spans[0], phrase.text(example.caption)
            assert example.caption[:begin].endswith("an " if text[0] in "aeiou" else " a ") or begin == 2


def test_word_order_and_wording_vary():
    captions = [example.caption for example in examples()]
    assert len({caption.split()[0] for caption in captions}) >= 6
    texts = " ".join(captions)
    for word in ("small", "little", "large", "big", "with stripes", "striped", "that is", "next to", "left of", ";"):
        assert word in texts
    attributes = Counter(
        tuple(a for w in phrase.text(e.caption).split() for a in ATTRIBUTES if WORDS.get(w, w) in ATTRIBUTES[a])
        for e in examples()
        for phrase in e.phrases
    )
    assert len(attributes) >= 12


def test_all_phrase_counts_are_common():
    counts = Counter(len(game.mentions) for game in games())
    assert set(counts) == {2, 3, 4, 5}
    assert min(counts.values()) > 0.18 * GAMES
    of_places = Counter(len(example.phrases) for example in places())
    assert set(of_places) == {2, 3, 4, 5}
    assert min(of_places.values()) > 0.08 * len(places())


# --- the logic of the game --------------------------------------------------------------------------------------


def test_each_phrase_excludes_some_and_all_exclude_all():
    for game in games():
        distractors = set(range(CANDIDATES)) - {game.target_index}
        excluded = game.excluded()
        assert all(0 < len(gone) < len(distractors) and gone <= distractors for gone in excluded)
        assert frozenset().union(*excluded) == distractors
        assert all(len(game.target.matching(mention.description)) == 1 for mention in game.mentions)
        assert len({mention.object_index for mention in game.mentions}) == len(game.mentions)


def test_two_phrases_are_enough_in_about_seventy_percent():
    enough = [any(len(a | b) == CANDIDATES - 1 for a, b in combinations(g.excluded(), 2)) for g in games()]
    assert 0.62 < np.mean(enough) < 0.78


def distance(first: Scene, second: Scene) -> float:
    """Attributes that differ between the scenes, objects matched so that they are fewest (and stay in place)."""
    cost = [
        [
            sum(a != b for a, b in zip(one.attributes, other.attributes, strict=True))
            + 10 * (np.hypot(one.x - other.x, one.y - other.y) > 0.13)
            for other in second.objects
        ]
        for one in first.objects
    ]
    return float(np.array(cost)[linear_sum_assignment(cost)].sum())


def guesses(games: Sequence[Game]) -> dict[str, float]:
    """How often the scene that is nearest to, or farthest from, all others is the target (ties shared)."""
    right = Counter()
    for game in games:
        table = np.zeros((CANDIDATES, CANDIDATES))
        for i, j in combinations(range(CANDIDATES), 2):
            table[i, j] = table[j, i] = distance(game.scenes[i], game.scenes[j])
        summed = table.sum(axis=1)
        right["nearest"] += np.mean(np.flatnonzero(summed == summed.min()) == game.target_index)
        right["farthest"] += np.mean(np.flatnonzero(summed == summed.max()) == game.target_index)
    return {name: count / len(games) for name, count in right.items()}


def test_the_images_alone_do_not_give_the_target_away():
    found = guesses(games())
    assert found["nearest"] < 0.27
    assert found["farthest"] < 0.27
    for game in games():
        assert len({len(scene.objects) for scene in game.scenes}) == 1
        # Two scenes of equal objects cannot be told apart by a caption: neither could be the target.
        assert len({tuple(sorted(item.attributes for item in scene.objects)) for scene in game.scenes}) == CANDIDATES


def test_the_guesses_find_a_target_that_does_stand_out():
    def planted(game: Game) -> Game:
        repainted = [replace(item, shape=NEXT[item.shape], colour=NEXT[item.colour]) for item in game.target.objects]
        scenes = list(game.scenes)
        scenes[game.target_index] = Scene.of(repainted, game.target.background)
        return replace(game, scenes=tuple(scenes))

    assert guesses([planted(game) for game in games()[:60]])["farthest"] > 0.9


def test_text_alone_does_not_give_the_target_away():
    where = Counter(game.target_index for game in games())
    assert set(where) == set(range(CANDIDATES))
    assert max(where.values()) / GAMES < 0.24
    by_count = {n: Counter(g.target_index for g in games() if len(g.mentions) == n) for n in (2, 3, 4, 5)}
    assert all(max(c.values()) / c.total() < 0.3 for c in by_count.values())


@pytest.mark.parametrize(("difficulty", "candidates"), [("easy", CANDIDATES), ("single", 1)])
def test_other_difficulties(difficulty, candidates):
    benchmark = MiniatureGame(difficulty=difficulty)
    for index, example in enumerate(benchmark.load("pretrain", limit=40)):
        game = benchmark.game("pretrain", index)
        assert len(example.images) == candidates
        assert {len(scene.objects) for scene in example.images} <= {3, 4, 5}
        assert example.task == ReferenceGame(game.target_index)
        assert frozenset().union(*game.excluded()) == set(range(candidates)) - {game.target_index}


# --- spatial descriptions ---------------------------------------------------------------------------------------

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "over": (0, -1), "below": (0, 1), "under": (0, 1)}


def test_the_bear_is_where_the_caption_says():
    for example in places():
        task, scene = example.task, example.images[0]
        assert isinstance(task, SpatialDescription)
        x, y = task.target_xy[0] * scene.aspect, task.target_xy[1]
        assert scene.owners()[int(y * NATIVE), int(x * NATIVE)] == 0  # it lies on the background
        ((begin, end),) = task.target_spans
        assert example.caption[begin:end] in ("bear", "touchdown")
        assert 5 <= len(scene.objects) <= 9
        side = example.caption.split("just ")[1].removeprefix("to the ").split()[0]
        right, down = DIRECTIONS[side]
        beside = [
            item
            for phrase in example.phrases
            for item in [scene.objects[scene.matching(read_back(phrase.text(example.caption)))[0]]]
            if np.allclose((x - item.x, y - item.y), np.array((right, down)) * (item.radius + NEARNESS))
        ]
        assert len(beside) == 1


def test_far_landmarks_are_on_the_stated_side():
    for example in places():
        x, y = example.task.target_xy[0] * 3, example.task.target_xy[1]
        previous = 0
        for phrase in example.phrases:
            (begin, end) = phrase.spans[0]
            before = [w for w in example.caption[previous:begin].replace(",", " ").split() if w in DIRECTIONS]
            previous = end
            if before:
                item = example.images[0].objects[example.images[0].matching(read_back(phrase.text(example.caption)))[0]]
                right, down = DIRECTIONS[before[-1]]
                assert (x - item.x) * right + (y - item.y) * down > 0.1, example.caption
