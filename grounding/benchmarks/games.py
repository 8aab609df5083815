"""Reference games over annotated items: which candidates stand beside a target, and in what order."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Game(Generic[Item]):
    """Candidates in the order in which they are shown; ``candidates[target_index]`` is the target."""

    candidates: tuple[Item, ...]
    target_index: int


def make_game(
    target: Item,
    pool: Iterable[Item],
    size: int,
    rng: random.Random,
    source: Callable[[Item], Hashable],
    label: Callable[[Item], Hashable],
) -> Game[Item] | None:
    """A game of ``size`` candidates, or None if the pool has too few distractors.

    pool: items that may stand beside the target (the target among them does no harm).
    source: what an item is a picture of (a tangram, a photograph). No distractor shares the target's. Each
        source is used once if there are enough of them, else once more before any is used a third time.
    label: what an item is called; all candidates' labels differ, so that the caption fits the target alone.
    rng: decides the distractors (every source is equally likely, whatever its number of items), their order
        and the target's place (uniform).
    """
    by_source: dict[Hashable, list[Item]] = {}
    for item in pool:
        by_source.setdefault(source(item), []).append(item)
    by_source.pop(source(target), None)
    stacks = list(by_source.values())
    rng.shuffle(stacks)

    taken: list[Item] = []
    labels = {label(target)}
    while stacks and len(taken) < size - 1:
        for stack in stacks:
            if len(taken) < size - 1:
                taken += _draw_unseen(stack, labels, label, rng)
        stacks = [stack for stack in stacks if stack]
    if len(taken) < size - 1:
        return None
    rng.shuffle(taken)
    place = rng.randrange(size)
    return Game((*taken[:place], target, *taken[place:]), place)


def _draw_unseen(
    stack: list[Item], labels: set[Hashable], label: Callable[[Item], Hashable], rng: random.Random
) -> list[Item]:
    """Draw from a stack, for good, up to the first item whose label is new; remember that label."""
    while stack:
        item = stack.pop(rng.randrange(len(stack)))
        if label(item) not in labels:
            labels.add(label(item))
            return [item]
    return []
