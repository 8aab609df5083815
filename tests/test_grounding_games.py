"""Reference games: who may stand beside a target, and where it stands."""

from __future__ import annotations

from collections import Counter
from random import Random

from grounding.benchmarks.games import make_game

# (source, label): five sources with four items each, all labels different
POOL = [(source, f"{source}-{number}") for source in "abcde" for number in range(4)]
TARGET = POOL[0]


def play(target=TARGET, pool=POOL, size=4, seed=0):
    return make_game(target, pool, size, Random(seed), source=lambda item: item[0], label=lambda item: item[1])


def test_the_target_is_there_once_and_its_source_nowhere_else():
    for seed in range(50):
        game = play(seed=seed)
        assert game.candidates[game.target_index] == TARGET
        assert [item[0] for item in game.candidates].count("a") == 1


def test_sources_differ_while_they_last_and_then_come_twice_before_thrice():
    for seed in range(50):
        assert Counter(item[0] for item in play(size=5, seed=seed).candidates) == Counter("abcde")
        counts = Counter(item[0] for item in play(size=8, seed=seed).candidates)
        assert sorted(counts.values()) == [1, 1, 2, 2, 2]
        assert len(set(play(size=8, seed=seed).candidates)) == 8


def test_labels_never_repeat():
    pool = [(source, label) for source in "bcdefgh" for label in ("same", "target", source)]
    for seed in range(50):
        labels = [item[1] for item in play(("a", "target"), pool, size=5, seed=seed).candidates]
        assert len(set(labels)) == 5


def test_a_game_exists_exactly_when_there_are_enough_labels_of_other_sources():
    assert play(size=17) is not None  # 16 items of other sources
    assert play(size=18) is None
    same_names = [("a", "x"), ("b", "y"), ("c", "y"), ("d", "x"), ("e", "z")]
    assert play(("a", "x"), same_names, size=3) is not None  # y and z
    assert play(("a", "x"), same_names, size=4) is None


def test_every_place_and_every_source_is_equally_likely():
    lopsided = [item for item in POOL if item[0] != "b"] + [("b", f"b-{number}") for number in range(40)]
    games = [play(pool=lopsided, size=3, seed=seed) for seed in range(1200)]
    places = Counter(game.target_index for game in games)
    assert all(340 < places[place] < 460 for place in range(3))  # 400 expected, standard deviation 16
    sources = Counter(item[0] for game in games for item in game.candidates if item[0] != "a")
    assert all(540 < sources[source] < 660 for source in "bcde")  # 600 expected, standard deviation 17


def test_the_order_of_distractors_says_nothing():
    first = Counter(play(size=5, seed=seed).candidates[0][0] for seed in range(1000))
    assert all(150 < first[source] < 250 for source in "abcde")


def test_the_same_generator_gives_the_same_game():
    assert play(seed=3) == play(seed=3)
    assert len({play(seed=seed).candidates for seed in range(20)}) > 15
