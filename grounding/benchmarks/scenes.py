"""Procedural scenes: objects of a few attributes, their pixels, and exactly which pixels are whose.

Positions and radii are in units of the image height, origin top left; a scene is ``aspect`` heights wide.
Objects are drawn in order, later ones in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from struct import Struct
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from grounding.errors import BadInput
from grounding.examples import Point, Region

NATIVE = 64  # height in pixels at which masks and boxes are exact
OVERSAMPLING = 3  # odd, so that every pixel has a central sample that says whose it is
RIM = 0.014  # width of an object's dark edge, in image heights
LEAST_VISIBLE = 0.55  # an object never shows less of itself than this

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "yellow": (240, 210, 30),
    "green": (34, 150, 60),
    "blue": (35, 85, 215),
    "purple": (130, 50, 175),
    "black": (35, 35, 40),
}
RADII: Mapping[str, tuple[float, float]] = {"small": (0.12, 0.135), "large": (0.19, 0.21)}
TEXTURES = ("plain", "striped", "dotted")


def _arc(radius: float, begin: float, end: float, steps: int) -> list[Point]:
    """Points on a circle, angles in degrees."""
    angles = [math.radians(begin + (end - begin) * step / steps) for step in range(steps + 1)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(points: int, outer: float, inner: float) -> list[Point]:
    return [
        (
            (outer, inner)[k % 2] * math.sin(math.pi * k / points),
            -(outer, inner)[k % 2] * math.cos(math.pi * k / points),
        )
        for k in range(2 * points)
    ]


_HEART_RIGHT = [(0.28, -0.85), (0.62, -0.9), (0.92, -0.68), (1.0, -0.3), (0.85, 0.1), (0.45, 0.6)]
_ARM = 0.38

# Outlines for radius 1, sized so that no shape looks much smaller than another.
OUTLINES: Mapping[str, np.ndarray] = {
    name: np.array(vertices)
    for name, vertices in {
        "circle": _arc(0.95, 0, 360 - 360 / 18, 17),
        "square": [(-0.83, -0.83), (0.83, -0.83), (0.83, 0.83), (-0.83, 0.83)],
        "triangle": [(0, -1.1), (1.08, 0.8), (-1.08, 0.8)],
        "star": _star(5, 1.2, 0.52),
        "cross": [
            (-_ARM, -1.05), (_ARM, -1.05), (_ARM, -_ARM), (1.05, -_ARM), (1.05, _ARM), (_ARM, _ARM),
            (_ARM, 1.05), (-_ARM, 1.05), (-_ARM, _ARM), (-1.05, _ARM), (-1.05, -_ARM), (-_ARM, -_ARM),
        ],
        "heart": [(0, -0.5), *_HEART_RIGHT, (0, 1.05), *[(-x, y) for x, y in reversed(_HEART_RIGHT)]],
    }.items()
}  # fmt: skip


def _area(outline: np.ndarray) -> float:
    """Area of a simple polygon (shoelace formula)."""
    x, y = outline[:, 0], outline[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


AREAS: Mapping[str, float] = {name: _area(outline) for name, outline in OUTLINES.items()}

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": tuple(OUTLINES),
    "colour": tuple(COLOURS),
    "size": tuple(RADII),
    "texture": TEXTURES,
}
Description = Mapping[str, str]  # attribute -> value
_RECORD = Struct("<4B4d")  # an object: its attributes as places in ATTRIBUTES, then x, y, radius, angle
_VERTEX = Struct("=2d")  # of an outline: x, y


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its four attributes, and centre, radius (in image heights) and rotation (radians)."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """shape, colour, size, texture."""
        return self.shape, self.colour, self.size, self.texture

    def pack(self) -> bytes:
        """The object as a record of fixed length; positions keep every bit."""
        codes = (values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())
        return _RECORD.pack(*codes, self.x, self.y, self.radius, self.angle)

    @classmethod
    def unpack(cls, record: Sequence[Any]) -> SceneObject:
        """The object that the fields of such a record stand for."""
        return cls(*(values[code] for values, code in zip(ATTRIBUTES.values(), record[:4], strict=True)), *record[4:])

    def matches(self, description: Description) -> bool:
        """True if the object has every attribute of the description."""
        return all(getattr(self, name) == value for name, value in description.items())

    def outline(self, shrink: float = 0.0) -> np.ndarray:
        """Vertices ``[V, 2]`` in image heights; ``shrink`` takes that much off the radius."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        rotation = np.array([[cosine, sine], [-sine, cosine]])
        return OUTLINES[self.shape] @ (rotation * (self.radius - shrink)) + (self.x, self.y)


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects on a light, uneven background; drawn when asked.

    packed: the objects, back to front, as ``Scene.of`` writes them: splits hold scenes by the hundred thousand, and
    36 bytes an object is a tenth of what it takes as Python objects.
    background: seed of its tint and grain. aspect: width over height, a whole number.
    """

    packed: bytes
    background: int
    aspect: int = 1

    @classmethod
    def of(cls, objects: Iterable[SceneObject], background: int, aspect: int = 1) -> Scene:
        """A scene of those objects, later ones in front."""
        return cls(b"".join(item.pack() for item in objects), background, aspect)

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """The objects, back to front."""
        return _unpacked(self.packed)

    def render(self, size: int | None = None) -> np.ndarray:
        """Pixels, uint8 ``[height, aspect * height, 3]``, anti-aliased; ``size`` is the height (64 by default)."""
        height = _checked(size)
        random = Random(self.background)
        tint = tuple(random.randint(222, 246) for _ in range(3))
        rims = np.asarray(self._canvas(height, lambda number: (4, 0)))
        codes = np.asarray(self._canvas(height, _number)) << 3 | rims | _patterns(height, self.aspect)
        indexed = Image.fromarray(codes)
        indexed.putpalette(_palette(self.objects, tint))
        pixels = np.asarray(indexed.convert("RGB").reduce(OVERSAMPLING))
        grain = _grain(random, height, self.aspect)
        return np.clip(pixels + grain[:, :, None], 0, 255).astype(np.uint8)

    def owners(self, size: int | None = None) -> np.ndarray:
        """Whose each pixel is, uint8 ``[height, width]``: 0 for background, ``i + 1`` for ``objects[i]``."""
        height = _checked(size)
        # The nearest sample of an odd number is the central one.
        sampled = self._canvas(height, _number).resize((height * self.aspect, height), Image.Resampling.NEAREST)
        return np.asarray(sampled)

    def matching(self, description: Description) -> list[int]:
        """Indices of the objects that the description fits."""
        return [i for i, item in enumerate(self.objects) if item.matches(description)]

    def _canvas(self, height: int, fills: Callable[[int], tuple[int, ...]]) -> Image.Image:
        """Objects drawn oversampled, back to front, one byte a pixel, ``[3 * height, 3 * width]``.

        fills(number): the value inside an object's outline, and, if there is a second, inside its rim.
        """
        scale = height * OVERSAMPLING
        canvas = Image.new("L", (scale * self.aspect, scale))
        draw = ImageDraw.Draw(canvas)
        for number, item in enumerate(self.objects, start=1):
            for fill, shrink in zip(fills(number), (0, RIM), strict=False):
                # PIL puts whole numbers at pixel centres.
                draw.polygon((item.outline(shrink) * scale - 0.5).ravel().tolist(), fill=fill)
        return canvas


class Outline(Sequence[Point]):
    """Vertices of a polygon, equal to the tuple of them, in less memory: splits hold them by the hundred thousand."""

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes):
        """packed: float64 x and y of one vertex after the other."""
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // _VERTEX.size

    def __iter__(self) -> Iterator[Point]:
        yield from _VERTEX.iter_unpack(self._packed)

    def __getitem__(self, place: Any) -> Any:
        return tuple(self)[place]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, Outline) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def excluded_by(description: Description, scene: Scene) -> bool:
    """True if nothing in the scene fits the description."""
    return not scene.matching(description)


def regions(scene: Scene, indices: Sequence[int]) -> list[Region]:
    """What is seen of each of those objects: box and mask of its visible pixels at 64 px, its whole outline.

    The outline is amodal (it ignores what is in front), clipped to the image.
    """
    from pycocotools.mask import encode

    owners, objects = scene.owners(), scene.objects
    height, width = owners.shape
    found = []
    for index in indices:
        mask = owners == index + 1
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        box = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
        outline = np.clip(objects[index].outline() / (scene.aspect, 1), 0, 1)
        counts = encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")
        x1, y1, x2, y2 = map(float, box)
        found.append(Region((x1, y1, x2, y2), (Outline(outline.tobytes()),), (height, width, counts)))
    return found


def visibility(scene: Scene) -> np.ndarray:
    """Visible part of every object, float ``[objects]``: pixels that show it over pixels it covers, at 64 px."""
    shown = np.bincount(scene.owners().ravel(), minlength=len(scene.objects) + 1)[1:]
    return shown / np.array([AREAS[item.shape] * (item.radius * NATIVE) ** 2 for item in scene.objects])


@lru_cache(maxsize=64)
def _unpacked(packed: bytes) -> tuple[SceneObject, ...]:
    """A scene's objects: whoever asks, asks several times in a row."""
    return tuple(SceneObject.unpack(record) for record in _RECORD.iter_unpack(packed))


def _number(number: int) -> tuple[int]:
    """Fills objects with their number, so that a pixel tells which is in front, 0 for background."""
    return (number,)


def _checked(size: int | None) -> int:
    height = NATIVE if size is None else size
    if height < 8:
        raise BadInput(f"size {size!r} is too small for a scene; accepted: 8 or more")
    return height


def _palette(objects: Sequence[SceneObject], tint: tuple[int, ...]) -> bytes:
    """RGB of every code: 8 an object, bit 0 on stripes, bit 1 on dots, bit 2 on the rim."""
    palette = np.empty((256, 3), np.uint8)
    palette[:8] = tint
    for number, item in enumerate(objects, start=1):
        entries = palette[number * 8 : number * 8 + 8]
        colour = np.array(COLOURS[item.colour], np.float32)
        entries[:] = colour
        light = 255 - (255 - colour) * 0.12
        if item.texture == "striped":
            entries[[1, 3]] = light
        elif item.texture == "dotted":
            entries[[2, 3]] = light
        entries[4:] = colour * 0.6
    return palette.tobytes()


@lru_cache(maxsize=8)
def _patterns(height: int, aspect: int) -> np.ndarray:
    """Bit 0 where stripes are light, bit 1 where dots are, uint8, oversampled."""
    scale = height * OVERSAMPLING
    y, x = np.mgrid[:scale, : scale * aspect] / scale
    stripes = (x + y) % 0.088 < 0.04
    row = np.floor(y / 0.065)
    dots = ((x + row * 0.0325) % 0.065 - 0.0325) ** 2 + (y % 0.065 - 0.0325) ** 2 < 0.0185**2
    return (stripes + 2 * dots).astype(np.uint8)


@lru_cache(maxsize=1)
def _grain_tile() -> np.ndarray:
    """A square of soft blotches and fine grain, int16, from which backgrounds are cut."""
    noise = np.random.RandomState(7)  # the legacy generator, whose stream never changes between versions
    side = 512
    blotches = Image.fromarray(noise.normal(0, 6, (side // 10, side // 10)).astype(np.float32))
    soft = np.asarray(blotches.resize((side, side), Image.Resampling.BICUBIC))
    return (soft + noise.normal(0, 3.5, (side, side))).round().astype(np.int16)


def _grain(random: Random, height: int, aspect: int) -> np.ndarray:
    """A seeded cut of the tile, int16 ``[height, aspect * height]``; the same picture at every height."""
    tile = _grain_tile()
    left = random.randrange(tile.shape[1] - NATIVE * aspect)
    top = random.randrange(tile.shape[0] - NATIVE)
    cut = tile[top : top + NATIVE, left : left + NATIVE * aspect]
    if height == NATIVE:
        return cut
    resized = Image.fromarray(cut.astype(np.float32)).resize((height * aspect, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).round().astype(np.int16)
