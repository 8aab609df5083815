"""Where the objects of a miniature scene go, and what they look like: overlaps and look-alikes are common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from grounding.benchmarks.scenes import ATTRIBUTES, LEAST_VISIBLE, RADII, Scene, SceneObject, visibility

Look = Mapping[str, str]  # attribute -> value, all four

REACH = 1.2  # farthest vertex of an outline, in radii


@dataclass(frozen=True)
class Slot:
    """A place in a layout (image heights) and the look that an object has there unless it is changed."""

    x: float
    y: float
    look: Look

    def changed(self, random: Random, count: int) -> Look:
        """The look with ``count`` attributes changed to other values."""
        return changed(random, self.look, count)


def changed(random: Random, look: Look, count: int) -> Look:
    """The look with ``count`` different attributes changed to other values; colour and shape most often."""
    weights = {"shape": 3, "colour": 4, "size": 2, "texture": 2}
    result = dict(look)
    for _ in range(count):
        name = random.choices(tuple(weights), tuple(weights.values()))[0]
        del weights[name]
        result[name] = random.choice([value for value in ATTRIBUTES[name] if value != look[name]])
    return result


def random_slots(random: Random, count: int, aspect: int = 1) -> list[Slot]:
    """Slots for ``count`` objects. About two in three look much like an earlier one, as many overlap one."""
    while True:
        slots: list[Slot] = []
        for _ in range(count):
            look = _look(random, slots)
            place = _place(random, slots, look, aspect)
            if place is None:
                break
            slots.append(Slot(*place, look))
        else:
            return slots


def drawn(random: Random, slots: Sequence[Slot], looks: Callable[[], Sequence[Look]], aspect: int = 1) -> Scene | None:
    """A scene on those slots with jitter of its own; None if objects stay too hidden in 20 tries.

    looks: draws the look of every slot.
    """
    for _ in range(20):
        objects = [_object(random, slot, look, aspect) for slot, look in zip(slots, looks(), strict=True)]
        random.shuffle(objects)
        scene = Scene.of(objects, random.randrange(2**31), aspect)
        if visibility(scene).min() >= LEAST_VISIBLE + 0.03:
            return scene
    return None


def random_scene(random: Random, count: int, aspect: int = 1) -> Scene:
    """A scene of ``count`` objects."""
    scene = None
    while scene is None:
        slots = random_slots(random, count, aspect)
        looks = [slot.look for slot in slots]
        scene = drawn(random, slots, partial(list, looks), aspect)
    return scene


def _look(random: Random, slots: Sequence[Slot]) -> Look:
    if slots and random.random() < 0.6:
        return random.choice(slots).changed(random, random.choice((1, 1, 2)))
    return {name: random.choice(values) for name, values in ATTRIBUTES.items()}


def _place(random: Random, slots: Sequence[Slot], look: Look, aspect: int) -> tuple[float, float] | None:
    """A place beside an earlier slot (half of the time: touching or overlapping) or anywhere; None if crowded."""
    radius = _middle_radius(look)
    margin = radius * REACH + 0.015
    for _ in range(30):
        if slots and random.random() < 0.5:
            near = random.choice(slots)
            distance = (radius + _middle_radius(near.look)) * random.uniform(0.7, 1.0)
            angle = random.uniform(0, 2 * math.pi)
            x, y = near.x + distance * math.cos(angle), near.y + distance * math.sin(angle)
        else:
            x, y = random.uniform(margin, aspect - margin), random.uniform(margin, 1 - margin)
        if not (margin <= x <= aspect - margin and margin <= y <= 1 - margin):
            continue
        if all(math.hypot(x - s.x, y - s.y) >= 0.68 * (radius + _middle_radius(s.look)) for s in slots):
            return x, y
    return None


def _middle_radius(look: Look) -> float:
    return sum(RADII[look["size"]]) / 2


def _object(random: Random, slot: Slot, look: Look, aspect: int) -> SceneObject:
    """An object at a slot, moved and turned a little, kept inside the image."""
    radius = random.uniform(*RADII[look["size"]])
    margin = radius * REACH
    x = min(max(slot.x + random.uniform(-0.03, 0.03), margin), aspect - margin)
    y = min(max(slot.y + random.uniform(-0.03, 0.03), margin), 1 - margin)
    return SceneObject(**look, x=x, y=y, radius=radius, angle=random.uniform(-0.22, 0.22))
