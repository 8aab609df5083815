"""How much of the grounding annotation a run may see: exact, nested, seeded subsets, or the original's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import ROUND_CEILING, Context

import numpy as np

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example
from grounding.metrics.boxes import MODES

UNITS = ("phrase", "image")


def annotation_budget(
    examples: Sequence[Example], fraction: float, by: str = "phrase", seed: int = 0, mode: str = "corrected"
) -> list[Example]:
    """The same examples, holding a share of their annotated phrases; the others are taken away whole.

    fraction: of the annotated phrases, or with ``by="image"`` of the images that have any (each annotation of one that
    several people annotated); the nearest whole number of them is kept. One seed gives nested subsets: what 0.1 keeps,
    0.2 keeps too. Phrases without regions stay, since they annotate nothing.

    mode: ``corrected``, or ``paper`` for the subsets of the study's program (docs/differences.md): phrases up to 0.5
    are every ``int(1 / fraction)``-th one whatever the seed is (0.4 keeps a half), above that, and images, are drawn
    for each fraction anew, phrases one place off.

    Raises BadInput for a fraction outside 0..1 or of less than one phrase or image, an unknown unit or mode, or a
    budget that keeps nothing.
    """
    if not 0 <= fraction <= 1:
        raise BadInput(f"grounding fraction {fraction} is outside 0..1")
    if by not in UNITS:
        raise unknown_choice("budget unit", by, UNITS)
    if mode not in MODES:
        raise unknown_choice("budget mode", mode, MODES)
    if fraction == 1:
        return list(examples)
    unit_of = {key: _unit(by, mode, key, examples[key[0]]) for key in _annotated(examples)}
    units = list(dict.fromkeys(unit_of.values()))
    if fraction < 1 / max(len(units), 1):
        least = Context(prec=2, rounding=ROUND_CEILING).divide(1, max(len(units), 1))
        raise BadInput(
            f"grounding fraction {fraction} is less than one of {len(units)} annotated {by}s; "
            f"accepted: {least:f} or more, or no grounding loss"
        )
    kept = _exact(units, fraction, seed) if mode == "corrected" else _originals(units, fraction, by, seed)
    if not kept:
        raise BadInput(
            f"grounding fraction {fraction} of {len(units)} annotated {by}s keeps none, as the study's program draws "
            "them; accepted: another fraction or seed, or budget 'corrected'"
        )
    return [
        replace(
            example,
            phrases=tuple(
                phrase
                for place, phrase in enumerate(example.phrases)
                if not phrase.regions or unit_of[number, place] in kept
            ),
        )
        for number, example in enumerate(examples)
    ]


def annotated_phrases(examples: Iterable[Example]) -> int:
    """How many phrases have regions."""
    return sum(bool(phrase.regions) for example in examples for phrase in example.phrases)


def _annotated(examples: Sequence[Example]) -> list[tuple[int, int]]:
    """(example, place among its phrases) of every phrase with regions, in order."""
    return [(n, k) for n, example in enumerate(examples) for k, phrase in enumerate(example.phrases) if phrase.regions]


def _unit(by: str, mode: str, key: tuple[int, int], example: Example) -> object:
    """What a phrase is kept or lost with. The original counts captions where we count images, save for Flickr30k."""
    if by == "phrase":
        return key
    if mode == "paper" and not example.id.startswith("flickr30k"):
        return key[0]
    return example.groups.get("annotation") or example.groups["image"]


def _exact(units: Sequence[object], fraction: float, seed: int) -> set[object]:
    order = np.random.default_rng(seed).permutation(len(units))
    return {units[place] for place in order[: round(fraction * len(units))]}


def _originals(units: Sequence[object], fraction: float, by: str, seed: int) -> set[object]:
    if by == "phrase" and 0 < fraction <= 0.5:
        return set(units[int(1 / fraction) - 1 :: int(1 / fraction)])
    drawn = random.Random(seed).sample(range(len(units)), int(len(units) * fraction))
    if by == "phrase":  # it counts phrases from one and looks them up among numbers from zero
        drawn = [place - 1 for place in drawn if place]
    return {units[place] for place in drawn}
