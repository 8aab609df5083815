"""Made-up tangrams and annotations in KiloGram's published file format (no drawing of the real data set)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PART_NAMES = ("head", "body", "left leg", "arm", "tail", "hat", "ears")
ADJECTIVES = ("old", "tall", "angry", "running", "sleepy", "heavy", "round", "odd", "empty", "little")
NOUNS = ("bird", "man", "hour glass", "boat", "unicorn", "house", "fish", "owl", "lamp", "camel", "robot", "ship")
VIEW_BOXES = ((0, 0, 300, 200), (0, 0, 150, 240), (-10, 20, 180, 180))  # wide, high, off the origin


def write_kilogram(
    root: Path,
    tangrams: int = 20,
    annotations: int = 6,
    seed: int = 0,
    part_counts: Sequence[int] = (3, 3, 3, 3, 4, 2),
) -> Path:
    """Write ``dense.json``, ``dense10.json`` (the first half of it) and ``tangrams-svg/``; return the root.

    Tangrams are called ``made-0``, ``made-1``, ...; annotation i of each has ``part_counts[i % len]`` named parts.
    Piece ``k`` (1..7) lies in cell k - 1 of a 3 x 3 grid over the viewBox, in raster order.
    """
    rng = random.Random(seed)
    (root / "tangrams-svg").mkdir(parents=True, exist_ok=True)
    records = {}
    for index in range(tangrams):
        name = f"made-{index}"
        (root / "tangrams-svg" / f"{name}.svg").write_text(_svg(index, rng), encoding="utf-8")
        readings = [
            _reading(index * annotations + number, part_counts[number % len(part_counts)], rng)
            for number in range(annotations)
        ]
        records[name] = {"snd": rng.random(), "pnd": rng.random(), "psa": 3.5, "annotations": readings}
    (root / "dense.json").write_text(json.dumps(records), encoding="utf-8")
    half = {
        name: {**record, "annotations": record["annotations"][: annotations // 2]} for name, record in records.items()
    }
    (root / "dense10.json").write_text(json.dumps(half), encoding="utf-8")
    return root


def records(root: Path) -> dict:
    """The content of ``dense.json``."""
    return json.loads((root / "dense.json").read_text())


def change(root: Path, tangram: str, number: int, **fields) -> None:
    """Overwrite fields of one annotation in ``dense.json``."""
    changed = records(root)
    changed[tangram]["annotations"][number].update(fields)
    (root / "dense.json").write_text(json.dumps(changed))


def _reading(number: int, parts: int, rng: random.Random) -> dict[str, object]:
    """One annotation; wholes repeat only after every pair of adjective and noun has been used."""
    words = ADJECTIVES[number % len(ADJECTIVES)], NOUNS[number // len(ADJECTIVES) % len(NOUNS)]
    names = rng.sample(PART_NAMES, parts)
    names += rng.choices(names, k=7 - parts)
    rng.shuffle(names)
    stamp = "2021-07-29 05:50:04.810000+00:00"
    return {
        "whole": {"timestamp": stamp, "wholeAnnotation": " ".join(words)},
        "part": {str(piece): name for piece, name in enumerate(names, start=1)},
        "workerId": f"{rng.getrandbits(64):016x}",
        "metadata": {"0": {"annotation": names[0], "final": True, "pieces": [1], "timestamp": stamp}},
    }


def _svg(index: int, rng: random.Random) -> str:
    left, top, width, height = VIEW_BOXES[index % len(VIEW_BOXES)]
    polygons = []
    for piece in range(7):
        row, column = divmod(piece, 3)
        cell = np.array([left + column * width / 3, top + row * height / 3])
        corners = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]])[: rng.choice((3, 4))]  # [vertices, 2]
        corners = corners + np.array([[rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)] for _ in corners])
        points = cell + corners * [width / 3, height / 3]
        points, transform = _moved(points, rng) if index % 2 else (points, "")
        between, within = (" ", ",") if piece % 2 else (" ", " ")
        text = between.join(within.join(f"{value:.9f}" for value in point) for point in points)
        polygons.append(f'<polygon fill="lightgray" id="{piece + 1}" points="{text}" stroke="white"{transform}/>')
    body = "\n".join(polygons)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<svg viewBox="{left} {top} {width} {height}" xmlns="http://www.w3.org/2000/svg">\n<defs/>{body}\n</svg>\n'
    )


def _moved(points: np.ndarray, rng: random.Random) -> tuple[np.ndarray, str]:
    """Points under a random rotation, scale and shift, and the ``matrix(...)`` attribute that brings them back."""
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([rng.uniform(-50, 50), rng.uniform(-50, 50)])
    (a, c), (b, d) = linear
    numbers = ", ".join(f"{value:.9f}" for value in (a, b, c, d, *shift))
    return (points - shift) @ np.linalg.inv(linear).T, f' style="" transform="matrix({numbers})"'
