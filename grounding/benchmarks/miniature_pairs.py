"""Minimal changes of miniature games: one word of the caption, or one attribute of one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from grounding.benchmarks import grammar
from grounding.benchmarks.layout import LEAST_VISIBLE
from grounding.benchmarks.minimal_pairs import MinimalPair
from grounding.benchmarks.scenes import ATTRIBUTES, Description, Scene, excluded_by, regions, visibility
from grounding.examples import Example, Phrase, ReferenceGame, Span

KINDS = ("caption", "target", "distractor")
_DRAWN = ("colour", "texture", "shape")  # attributes that change an object where it is, and nothing round it


@dataclass(frozen=True)
class Puzzle:
    """A game as it is solved: candidate scenes, the target, and what each phrase of the example says of an object.

    mentions: description of each phrase. objects: which object of the target each names.
    """

    example: Example
    scenes: tuple[Scene, ...]
    target: int
    mentions: tuple[Description, ...]
    objects: tuple[int, ...]

    def fitting(self, mentions: Sequence[Description]) -> list[int]:
        """The candidates in which something fits every description."""
        return [k for k, scene in enumerate(self.scenes) if not any(excluded_by(one, scene) for one in mentions)]


def minimal_pair(puzzle: Puzzle, kind: str, random: Random) -> MinimalPair | None:
    """A minimal change of that kind, or None where the game has none.

    ``caption``: another word for one attribute makes it the caption of one other candidate. ``target``: one attribute
    of an object of the target, after which its phrase fits nothing there. ``distractor``: one attribute of an object
    of a distractor, after which the caption fits it too.
    """
    changes = {"caption": _captions, "target": _targets, "distractor": _distractors}[kind]
    found = list(changes(puzzle))
    return random.choice(found) if found else None


def _captions(puzzle: Puzzle) -> Iterator[MinimalPair]:
    example = puzzle.example
    for number, mention in enumerate(puzzle.mentions):
        for name, value in _other_values(mention, ATTRIBUTES):
            mentions = [*puzzle.mentions]
            mentions[number] = {**mention, name: value}
            fitting = puzzle.fitting(mentions)
            if len(fitting) != 1 or fitting[0] == puzzle.target:
                continue
            worded = _reworded(example, number, mention[name], value)
            if worded is None:
                continue
            scene = puzzle.scenes[fitting[0]]
            objects = [scene.matching(one)[0] for one in mentions]
            if not _relations_hold(example, scene, objects):
                continue
            caption, spans = worded
            phrases = _phrases(example, scene, objects, spans, mentions, fitting[0])
            changed = replace(
                example, id=f"{example.id}/caption", caption=caption, phrases=phrases, task=ReferenceGame(fitting[0])
            )
            yield _pair("caption", example, changed, number, fitting[0])


def _targets(puzzle: Puzzle) -> Iterator[MinimalPair]:
    example, scene = puzzle.example, puzzle.scenes[puzzle.target]
    for number, (mention, index) in enumerate(zip(puzzle.mentions, puzzle.objects, strict=True)):
        for name, value in _other_values(mention, _DRAWN):
            changed = _with_object(scene, index, name, value)
            others = [one for k, one in enumerate(puzzle.mentions) if k != number]
            if changed is None or not excluded_by(mention, changed) or any(excluded_by(o, changed) for o in others):
                continue
            spans = [phrase.spans[0] for phrase in example.phrases]
            phrases = _phrases(example, changed, puzzle.objects, spans, puzzle.mentions, puzzle.target)
            yield _pair("target", example, _redrawn(example, puzzle.target, changed, "target", phrases), number, None)


def _distractors(puzzle: Puzzle) -> Iterator[MinimalPair]:
    example = puzzle.example
    for k, scene in enumerate(puzzle.scenes):
        missing = [number for number, one in enumerate(puzzle.mentions) if excluded_by(one, scene)]
        if k == puzzle.target or len(missing) != 1:
            continue
        mention = puzzle.mentions[missing[0]]
        for index, item in enumerate(scene.objects):
            wrong = [name for name, value in mention.items() if getattr(item, name) != value]
            if len(wrong) != 1 or wrong[0] not in _DRAWN:
                continue
            changed = _with_object(scene, index, wrong[0], mention[wrong[0]])
            if changed is None or any(excluded_by(one, changed) for one in puzzle.mentions):
                continue
            redrawn = _redrawn(example, k, changed, "distractor", example.phrases)
            pair = _pair("distractor", example, redrawn, missing[0], k)
            yield replace(pair, places=((k, regions(changed, [index])[0].box),))


def _other_values(description: Description, names: Sequence[str] | Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(attribute, another value) of what a description says, among those attributes."""
    for name in description:
        if name in names:
            yield from ((name, value) for value in ATTRIBUTES[name] if value != description[name])


def _with_object(scene: Scene, index: int, name: str, value: str) -> Scene | None:
    """The scene with one attribute of one object changed; None if something would be too hidden."""
    objects, change = [*scene.objects], dict[str, Any]({name: value})
    objects[index] = replace(objects[index], **change)
    changed = Scene.of(objects, scene.background, scene.aspect)
    return changed if visibility(changed).min() >= LEAST_VISIBLE else None


def _redrawn(example: Example, place: int, scene: Scene, kind: str, phrases: tuple[Phrase, ...]) -> Example:
    images = (*example.images[:place], scene, *example.images[place + 1 :])
    return replace(example, id=f"{example.id}/{kind}", images=images, phrases=phrases)


def _phrases(
    example: Example,
    scene: Scene,
    objects: Sequence[int],
    spans: Sequence[Span],
    mentions: Sequence[Description],
    image: int,
) -> tuple[Phrase, ...]:
    """The example's phrases, about objects of that scene."""
    return tuple(
        replace(phrase, type=mention["shape"], spans=(span,), regions=(region,), image_index=image)
        for phrase, mention, span, region in zip(example.phrases, mentions, spans, regions(scene, objects), strict=True)
    )


def _pair(kind: str, clean: Example, corrupted: Example, number: int, other: int | None) -> MinimalPair:
    phrase = clean.phrases[number]
    places = tuple((phrase.image_index, region.box) for region in phrase.regions)
    return MinimalPair(kind, clean, corrupted, (phrase.id,), places, other)


def _reworded(example: Example, number: int, old: str, new: str) -> tuple[str, list[Span]] | None:
    """The caption with the word for an attribute of one phrase exchanged, and all spans; None without such a word."""
    begin, end = example.phrases[number].spans[0]
    words = example.caption[begin:end].split(" ")
    known = [place for place, word in enumerate(words) if word in grammar.SYNONYMS.get(old, (old,))]
    if len(known) != 1:
        return None
    words[known[0]] = new
    text = " ".join(words)
    caption = example.caption[:begin] + text + example.caption[end:]
    longer = len(text) - (end - begin)
    spans = []
    for k, phrase in enumerate(example.phrases):
        first, last = phrase.spans[0]
        spans.append((begin, begin + len(text)) if k == number else (
            (first + longer, last + longer) if first >= end else (first, last)
        ))  # fmt: skip
    return caption, spans


def _relations_hold(example: Example, scene: Scene, objects: Sequence[int]) -> bool:
    """Whether the relations that the caption states between neighbouring phrases are true of those objects."""
    for k in range(len(objects) - 1):
        between = example.caption[example.phrases[k].spans[0][1] : example.phrases[k + 1].spans[0][0]]
        true = grammar.true_relations(scene.objects[objects[k]], scene.objects[objects[k + 1]])
        for relation, wordings in grammar.WORDINGS.items():
            if any(f" {wording} " in between for wording in wordings) and relation not in true:
                return False
    return True
