"""Drawn games kept on disk: to draw the games of a long split takes minutes, to load them again half of one.

A file a split, in ``$PROBE_CACHE`` or the user's cache folder, named by what the games depend on. A game is its scenes,
its target, and which attributes of which objects its caption names; all else is made of these again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from grounding.benchmarks.scenes import Description, Scene, excluded_by

NAMES = ("colour", "size", "texture", "shape")  # what descriptions may name, in this order; the last one always


@dataclass(frozen=True)
class Mention:
    """A phrase to be: which object of the target it describes, and by which attributes."""

    object_index: int
    description: Description


@dataclass(frozen=True)
class Game:
    """Candidate scenes, which of them is meant, and what the caption will mention, in order."""

    scenes: tuple[Scene, ...]
    target_index: int
    mentions: tuple[Mention, ...]

    @property
    def target(self) -> Scene:
        """The scene that the caption is about."""
        return self.scenes[self.target_index]

    def excluded(self) -> list[frozenset[int]]:
        """For every mention, the candidates in which nothing fits it."""
        return [
            frozenset(k for k, scene in enumerate(self.scenes) if excluded_by(mention.description, scene))
            for mention in self.mentions
        ]


def kept_games(identity: Mapping[str, object], split: str, count: int, draw: Callable[[int], Game]) -> Iterator[Game]:
    """The games of a whole split: drawn, and kept once all are; read back where they are kept.

    identity: what they depend on. draw: the game at a place; the first and the last one are drawn anyway, and a file
    that holds others, or cannot be read, is made anew. Where nothing can be written, nothing is kept.
    """
    path = _folder() / f"{_name(identity, split)}.npz"
    games = _read(path)
    if games is not None and len(games) == count and all(games[k] == draw(k) for k in (0, count - 1)):
        yield from games
        return
    drawn = []
    for place in range(count):
        drawn.append(draw(place))
        yield drawn[-1]
    with suppress(OSError):
        _write(path, drawn)


def _folder() -> Path:
    given = os.environ.get("PROBE_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "phrase-grounding-probe"


def _name(identity: Mapping[str, object], split: str) -> str:
    digest = hashlib.sha256(json.dumps([sorted(identity.items()), split]).encode()).hexdigest()
    return f"{identity['name']}-{split}-{digest[:16]}"


def _write(path: Path, games: Sequence[Game]) -> None:
    """All numbers in a few arrays; under another name until they are whole."""
    mentions = [mention for game in games for mention in game.mentions]
    arrays: dict[str, Any] = {
        "scenes": np.array([len(game.scenes) for game in games], np.uint8),
        "mentions": np.array([len(game.mentions) for game in games], np.uint8),
        "target": np.array([game.target_index for game in games], np.uint8),
        "lengths": np.array([len(scene.packed) for game in games for scene in game.scenes], np.uint16),
        "backgrounds": np.array([scene.background for game in games for scene in game.scenes], np.int64),
        "packed": np.frombuffer(b"".join(scene.packed for game in games for scene in game.scenes), np.uint8),
        "objects": np.array([mention.object_index for mention in mentions], np.uint8),
        "named": np.array([[name in mention.description for name in NAMES] for mention in mentions], bool),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(unfinished, **arrays)
    unfinished.replace(path)


def _read(path: Path) -> list[Game] | None:
    """The games of a file; None where it is not there, or not what ``_write`` writes."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _games(arrays)
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _games(arrays: Mapping[str, np.ndarray]) -> list[Game]:
    packed = arrays["packed"].tobytes()
    ends = np.cumsum(arrays["lengths"], dtype=np.int64).tolist()
    scenes = iter(
        Scene(packed[begin:end], background)
        for begin, end, background in zip([0, *ends], ends, arrays["backgrounds"].tolist(), strict=False)
    )
    mentions = iter(zip(arrays["objects"].tolist(), arrays["named"].tolist(), strict=True))
    games = []
    sizes = (arrays[name].tolist() for name in ("scenes", "mentions", "target"))
    for candidates, phrases, target in zip(*sizes, strict=True):
        seen = tuple(next(scenes) for _ in range(candidates))
        described = [next(mentions) for _ in range(phrases)]
        objects = seen[target].objects
        games.append(Game(seen, target, tuple(_mention(objects[place], place, named) for place, named in described)))
    return games


def _mention(item: object, place: int, named: Sequence[bool]) -> Mention:
    return Mention(place, {name: getattr(item, name) for name, used in zip(NAMES, named, strict=True) if used})
