"""Benchmarks generated from a seed: ``mini-game`` and ``mini-sdr``.

Every example is a function of (benchmark, options, seed, split, index), so splits never share a scene.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import ClassVar

from grounding.benchmarks import grammar
from grounding.benchmarks.base import Benchmark
from grounding.benchmarks.drawn_games import NAMES, Game, Mention, kept_games
from grounding.benchmarks.layout import Slot, drawn, random_scene, random_slots
from grounding.benchmarks.miniature_pairs import KINDS, Puzzle, minimal_pair
from grounding.benchmarks.minimal_pairs import MinimalPair, chosen_kinds, require_pairs
from grounding.benchmarks.scenes import Scene, regions
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Phrase, Point, ReferenceGame, Span, SpatialDescription

CANDIDATES = 6
MOST_OBJECTS = 5  # in a candidate
LONG = 10_000  # games from which on a split's are kept on disk
PAIR_IS_ENOUGH = 0.7  # share of games in which two of the phrases exclude every distractor
DIFFICULTIES = ("hard", "easy", "single")
# How many phrases a game has, by whether a pair of them is enough: each count comes up about as often.
PHRASE_COUNTS = {True: ((2, 3, 4, 5), (0.36, 0.21, 0.21, 0.22)), False: ((3, 4, 5), (0.33, 0.33, 0.34))}

NEARNESS = 0.1  # image heights between the bear and the edge of the landmark it is just beside
# Which attributes a description may name, and what reads them from an object.
_KINDS = {
    (*names, NAMES[-1]): attrgetter(*names, NAMES[-1])
    for size in range(len(NAMES))
    for names in combinations(NAMES[:-1], size)
}
_DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


class Miniature(Benchmark):
    """What both forms share: sizes of the splits, seeds, lazy generation."""

    splits: ClassVar[tuple[str, ...]] = ("pretrain", "train", "tune", "dev", "test")
    sizes: ClassVar[Mapping[str, int]] = {
        "pretrain": 60_000,
        "train": 30_000,
        "tune": 500,
        "dev": 1_000,
        "test": 1_000,
    }

    def _read(self, split: str, limit: int | None) -> Iterator[Example]:
        count = self.sizes[split] if limit is None else min(limit, self.sizes[split])
        return (self.example(split, index) for index in range(count))

    @abstractmethod
    def example(self, split: str, index: int) -> Example:
        """The example at that place of a split. Raises BadInput outside of it."""

    def _random(self, split: str, index: int, *purpose: object) -> Random:
        """A generator of its own for every example and purpose, the same in every process."""
        if split not in self.splits:
            raise unknown_choice("split", split, self.splits)
        if not 0 <= index < self.sizes[split]:
            raise BadInput(f"index {index} is outside {self.name} {split}; accepted: 0 to {self.sizes[split] - 1}")
        key = repr((*sorted(self.identity().items()), split, index, *purpose))
        return Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))


class MiniatureGame(Miniature):
    """``mini-game``: which of six scenes does the caption describe?

    difficulty: ``hard``: candidates are made by one and the same random process from a common layout, each
    phrase alone excludes at least one distractor and never all, and two of the phrases are enough in about
    70 % of the games; ``easy``: distractors are unrelated scenes; ``single``: no distractors at all (the last
    two for grounding pre-training and curricula).
    """

    name: ClassVar[str] = "mini-game"

    def __init__(self, root: Path | None = None, seed: int = 0, difficulty: str = "hard"):
        super().__init__(root, seed)
        if difficulty not in DIFFICULTIES:
            raise unknown_choice("difficulty", difficulty, DIFFICULTIES)
        self.difficulty = difficulty

    def identity(self) -> Mapping[str, object]:
        """Name, version of the generator, seed and difficulty."""
        return {"name": self.name, "version": 2, "seed": self.seed, "difficulty": self.difficulty}

    def game(self, split: str, index: int) -> Game:
        """Scenes, target and mentions of the example at that place. Raises BadInput outside the split."""
        random = self._random(split, index, "scenes")
        pair_is_enough = random.random() < PAIR_IS_ENOUGH
        counts, weights = PHRASE_COUNTS[pair_is_enough]
        count = random.choices(counts, weights)[0]
        while True:
            scenes = self._scenes(random, max(count, 3))
            if scenes is None:
                continue
            target_index = random.randrange(len(scenes))
            distractors = [scene for k, scene in enumerate(scenes) if k != target_index]
            pair = pair_is_enough if self.difficulty == "hard" else None
            mentions = _mentions(random, scenes[target_index], distractors, count, pair)
            if mentions is not None:
                return Game(tuple(scenes), target_index, mentions)

    def _scenes(self, random: Random, fewest: int) -> list[Scene] | None:
        """Candidates of at least that many objects; None if the draw has to be repeated."""
        if self.difficulty == "hard":
            return _alike_scenes(random, fewest)
        count = 1 if self.difficulty == "single" else CANDIDATES
        return [random_scene(random, random.randint(fewest, MOST_OBJECTS)) for _ in range(count)]

    def _read(self, split: str, limit: int | None) -> Iterator[Example]:
        count = self.sizes[split]
        if count < LONG or (limit is not None and limit < count):
            return super()._read(split, limit)
        games = kept_games(self.identity(), split, count, lambda index: self.game(split, index))
        return (self._told(game, split, index) for index, game in enumerate(games))

    def example(self, split: str, index: int) -> Example:
        """The game at that place with its caption. Raises BadInput outside the split."""
        return self._told(self.game(split, index), split, index)

    def _told(self, game: Game, split: str, index: int) -> Example:
        random = self._random(split, index, "caption")
        indices = [mention.object_index for mention in game.mentions]
        everything = game.target.objects
        objects = [everything[i] for i in indices]
        caption, spans = grammar.game_caption(
            random,
            [grammar.noun_phrase(random, mention.description) for mention in game.mentions],
            lambda i, j: grammar.true_relations(objects[i], objects[j]),
        )
        name = f"{self.name}/{split}/{index:06d}"
        return Example(
            id=name,
            split=split,
            images=game.scenes,
            caption=caption,
            phrases=_phrases(name, game.target, game.mentions, spans, game.target_index),
            task=ReferenceGame(game.target_index),
            groups={"image": f"{name}/{game.target_index}", "caption": name},
        )

    def minimal_pairs(
        self, split: str, limit: int | None = None, kinds: Sequence[str] | None = None
    ) -> list[MinimalPair]:
        """See ``grounding.benchmarks.miniature_pairs``: ``caption``, ``target`` and ``distractor``."""
        chosen, examples = chosen_kinds(kinds, KINDS), self.load(split, limit)
        pairs = []
        for index, example in enumerate(examples):
            game = self.game(split, index)
            descriptions, objects = zip(*((m.description, m.object_index) for m in game.mentions), strict=True)
            puzzle = Puzzle(example, game.scenes, game.target_index, descriptions, objects)
            pairs += [minimal_pair(puzzle, kind, self._random(split, index, "pair", kind)) for kind in chosen]
        return require_pairs([pair for pair in pairs if pair is not None], chosen, len(examples))


class MiniatureSdr(Miniature):
    """``mini-sdr``: a wide scene and where in it a bear is hidden (it is not drawn), told by landmarks.

    The bear lies NEARNESS image heights beyond the radius of the landmark that it is "just" beside, straight in
    the stated direction, and clearly on the stated sides of the others; every landmark's description fits one
    object of the scene only.
    """

    name: ClassVar[str] = "mini-sdr"
    aspect: ClassVar[int] = 3

    def identity(self) -> Mapping[str, object]:
        """Name, version of the generator and seed."""
        return {"name": self.name, "version": 2, "seed": self.seed}

    def example(self, split: str, index: int) -> Example:
        """The scene at that place, its description and target. Raises BadInput outside the split."""
        random = self._random(split, index)
        found = None
        while found is None:
            count = random.choice((2, 2, 3, 3, 4, 5))
            scene = random_scene(random, random.randint(5, 9), self.aspect)
            found = _hide(random, scene, count)
        target, mentions, sides = found
        noun_phrases = [grammar.noun_phrase(random, mention.description, "the") for mention in mentions]
        caption, spans, hidden = grammar.place_caption(random, noun_phrases, sides)
        name = f"{self.name}/{split}/{index:06d}"
        order = sorted(range(count), key=lambda k: spans[k])
        return Example(
            id=name,
            split=split,
            images=(scene,),
            caption=caption,
            phrases=_phrases(name, scene, [mentions[k] for k in order], [spans[k] for k in order]),
            task=SpatialDescription((target[0] / self.aspect, target[1]), (hidden,), caption_id=name),
            groups={"image": f"{name}/0", "caption": name},
        )


def _phrases(
    name: str, scene: Scene, mentions: Sequence[Mention], spans: Sequence[Span], image_index: int = 0
) -> tuple[Phrase, ...]:
    """Phrases of a caption, each with the region of its object."""
    found = regions(scene, [mention.object_index for mention in mentions])
    return tuple(
        Phrase(f"{name}/{k}", mention.description["shape"], (span,), (region,), image_index)
        for k, (mention, span, region) in enumerate(zip(mentions, spans, found, strict=True))
    )


def _alike_scenes(random: Random, fewest: int) -> list[Scene] | None:
    """Candidates from one layout, each of whose slots has a few looks that every candidate draws from alike.

    None if two came out with equal objects: neither could be the target. Nothing here knows which one that is.
    """
    slots = random_slots(random, random.randint(fewest, MOST_OBJECTS))
    pools = [_pool(random, slot) for slot in slots]
    scenes: dict[tuple[tuple[str, ...], ...], Scene] = {}  # by what is in them
    for _ in range(CANDIDATES):
        scene = drawn(random, slots, lambda: [random.choice(pool) for pool in pools])
        if scene is None:
            return None
        content = tuple(sorted(item.attributes for item in scene.objects))
        if content in scenes:
            return None
        scenes[content] = scene
    return list(scenes.values())


def _pool(random: Random, slot: Slot) -> list[Mapping[str, str]]:
    """The looks that a slot can have: its own, and one or two with one or two attributes changed."""
    return [
        slot.look,
        *(slot.changed(random, random.choice((1, 1, 2))) for _ in range(random.choice((1, 1, 2)))),
    ]


def _mentions(
    random: Random, target: Scene, distractors: Sequence[Scene], count: int, pair_is_enough: bool | None
) -> tuple[Mention, ...] | None:
    """Descriptions of ``count`` objects that together exclude all distractors; None if none are found.

    pair_is_enough: whether two of them must be able to, or must not; every phrase then excludes some
    distractor and none excludes all. With None only the whole caption counts.
    """
    everyone = (1 << len(distractors)) - 1
    options = []
    for descriptions in _unique_descriptions(target, distractors):
        useful = [rated for rated in descriptions if pair_is_enough is None or 0 < rated[1] < everyone]
        if useful:
            options.append(useful)
    if len(options) < count:
        return None
    for _ in range(60):
        chosen = [_chosen(random, rated) for rated in random.sample(options, count)]
        masks = [mask for _, mask in chosen]
        union = 0
        for mask in masks:
            union |= mask
        by_pair = any(a | b == everyone for a, b in combinations(masks, 2))
        if union == everyone and pair_is_enough in (None, by_pair):
            return tuple(mention for mention, _ in chosen)
    return None


def _unique_descriptions(scene: Scene, distractors: Sequence[Scene] = ()) -> list[list[tuple[Mention, int]]]:
    """For every object, all descriptions (shape always included) that fit it and no other of the scene.

    With each goes a number whose bit k says that no object of ``distractors[k]`` fits.
    """
    objects, others = scene.objects, [other.objects for other in distractors]
    found: list[list[tuple[Mention, int]]] = [[] for _ in objects]
    for names, values_of in _KINDS.items():
        values = [values_of(item) for item in objects]
        elsewhere = [{values_of(item) for item in other} for other in others]
        for index, item in enumerate(objects):
            if values.count(values[index]) == 1:
                excluded = sum(1 << k for k, held in enumerate(elsewhere) if values[index] not in held)
                found[index].append((Mention(index, {name: getattr(item, name) for name in names}), excluded))
    return found


def _chosen(random: Random, rated: Sequence[tuple[Mention, int]]) -> tuple[Mention, int]:
    """One of them; two attributes beside the shape are the most usual."""
    weights = [(1.0, 2.5, 3.0, 1.5)[len(mention.description) - 1] for mention, _ in rated]
    return random.choices(rated, weights)[0]


def _hide(random: Random, scene: Scene, count: int) -> tuple[Point, list[Mention], list[str]] | None:
    """A point (in image heights) just beside one landmark and clearly to some side of ``count - 1`` others."""
    options = _unique_descriptions(scene)
    first = random.randrange(len(scene.objects))
    side = random.choice(tuple(_DIRECTIONS))
    landmark, (right, down) = scene.objects[first], _DIRECTIONS[side]
    reach = landmark.radius + NEARNESS
    x, y = landmark.x + right * reach, landmark.y + down * reach
    if not options[first] or not (0.04 < x < scene.aspect - 0.04 and 0.04 < y < 0.96):
        return None
    owners = scene.owners()
    if owners[int(y * owners.shape[0]), int(x * owners.shape[0])]:
        return None
    sides = {
        k: grammar.side_of((x, y), (item.x, item.y))
        for k, item in enumerate(scene.objects)
        if k != first and options[k]
    }
    others = [k for k, seen in sides.items() if seen]
    if len(others) < count - 1:
        return None
    chosen = [first, *random.sample(others, count - 1)]
    mentions = [_chosen(random, options[k])[0] for k in chosen]
    return (x, y), mentions, [side, *(str(sides[k]) for k in chosen[1:])]
