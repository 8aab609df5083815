"""Minimal changes of KiloGram's games: two colours of the target exchanged, or one distractor replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import cast

from grounding.benchmarks.kilogram import Tangram
from grounding.benchmarks.minimal_pairs import MinimalPair
from grounding.examples import Example

KINDS = ("colour", "distractor")
_WHOLE = (0.0, 0.0, 1.0, 1.0)


def minimal_pair(example: Example, kind: str, others: Sequence[Example], random: Random) -> MinimalPair | None:
    """A minimal change of that kind, or None where the game has none.

    ``colour``: the colour of one named part of the target and another colour of it change places. ``distractor``: a
    distractor makes way for the target of another game, of another tangram and as many colours. others: such games.
    """
    return _recoloured(example, random) if kind == "colour" else _replaced(example, others, random)


def _recoloured(example: Example, random: Random) -> MinimalPair | None:
    tangram = _tangram(example)
    named = [phrase for phrase in example.phrases if phrase.regions]
    if not named or len(set(tangram.colours)) < 2:
        return None
    phrase = random.choice(named)
    outlines = {region.polygons[0] for region in phrase.regions}
    pairs = zip(tangram.drawing.pieces, tangram.colours, strict=True)
    own = next(colour for piece, colour in pairs if piece.polygon in outlines)
    other = random.choice(sorted(set(tangram.colours) - {own}))
    swap = {own: other, other: own}
    colours = tuple(swap.get(colour, colour) for colour in tangram.colours)
    changed = _with_image(example, example.target_index, replace(tangram, colours=colours), "colour")
    places = tuple((phrase.image_index, region.box) for region in phrase.regions)
    return MinimalPair("colour", example, changed, (phrase.id,), places)


def _replaced(example: Example, others: Sequence[Example], random: Random) -> MinimalPair | None:
    names = {cast(Tangram, image).drawing.name for image in example.images}
    colours = _colours(example)
    pool = [one for one in others if _tangram(one).drawing.name not in names and _colours(one) == colours]
    places = [k for k in range(len(example.images)) if k != example.target_index]
    if not pool or not places:
        return None
    place = random.choice(places)
    changed = _with_image(example, place, _tangram(random.choice(pool)), "distractor")
    phrases = tuple(phrase.id for phrase in example.phrases)
    return MinimalPair("distractor", example, changed, phrases, ((place, _WHOLE),), place)


def _tangram(example: Example) -> Tangram:
    return cast(Tangram, example.images[example.target_index])


def _colours(example: Example) -> int:
    return len(set(_tangram(example).colours))


def _with_image(example: Example, place: int, image: Tangram, kind: str) -> Example:
    images = (*example.images[:place], image, *example.images[place + 1 :])
    return replace(example, id=f"{example.id}/{kind}", images=images)
