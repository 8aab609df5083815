"""What a benchmark is: a name, splits, and a list of validated examples for each split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from grounding.benchmarks.minimal_pairs import MinimalPair
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, validate
from grounding.values import check_counts


@dataclass(frozen=True)
class Skipped:
    """An example left out, and why."""

    id: str
    reason: str


class Benchmark(ABC):
    """Base of all benchmarks. Images are opened lazily; everything else is validated on load.

    After ``load(split, skip_bad=True)``, ``skipped`` lists what was left out. ``excluded[split]`` lists whole entries
    that make no example (there is no game for them), and why, as far as the split was read. ``image_sizes`` has the
    width and height in pixels that annotations gave for image files, as far as they were read; ``files`` says what a
    root holds.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    needs_root: ClassVar[bool] = False
    files: ClassVar[str] = "nothing"

    def __init__(self, root: Path | None = None, seed: int = 0):
        if self.needs_root and root is None:
            raise BadInput(f"benchmark {self.name!r} needs a root folder (--root)")
        if root is not None and not Path(root).is_dir():
            raise BadInput(f"root {str(root)!r} is not a folder")
        self.root = Path(root) if root is not None else None
        self.seed = seed
        self.skipped: list[Skipped] = []
        self.excluded: dict[str, list[Skipped]] = {}
        self.image_sizes: dict[Path, tuple[int, int]] = {}

    def load(
        self,
        split: str,
        limit: int | None = None,
        skip_bad: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Sequence[Example]:
        """Validated examples of a split, in a fixed order; ``limit`` keeps the first that many.

        progress: called with the number of examples so far. Raises BadInput for an unknown split, and at the first
        broken example unless ``skip_bad``.
        """
        if split not in self.splits:
            raise unknown_choice("split", split, self.splits)
        check_counts(limit=limit)
        self.skipped = []
        examples: list[Example] = []
        seen: set[str] = set()
        for item in self._read(split, limit):
            if limit is not None and len(examples) == limit:
                break
            try:
                if isinstance(item, Fault):
                    raise BadInput(item.reason)
                if item.id in seen:
                    raise BadInput(f"example {item.id!r} comes twice in {split}; accepted: ids that differ")
                seen.add(item.id)
                validate(item)
            except BadInput as error:
                if not skip_bad:
                    raise
                self.skipped.append(Skipped(item.id, str(error)))
            else:
                examples.append(item)
                if progress is not None:
                    progress(len(examples))
        return examples

    def require(self, examples: Sequence[Example], split: str) -> None:
        """Raise BadInput, with the first reason, where nothing of a split was loaded."""
        if examples:
            return
        excluded = self.excluded.get(split, [])
        counts = f"{len(self.skipped)} were skipped and {len(excluded)} left out"
        first = "".join(f"; first: {item.reason}" for item in [*self.skipped, *excluded][:1])
        raise BadInput(f"split {split!r} of {self.name!r} has no examples: {counts}{first}")

    def _note_size(self, image: Path, size: tuple[int, int], where: str) -> None:
        """Remember what annotations give as an image's size. Raises BadInput if they gave another before."""
        known = self.image_sizes.setdefault(image, size)
        if known != size:
            raise BadInput(f"{where}: image {image.name} is {_by(size)} pixels here and {_by(known)} before")

    def minimal_pairs(
        self, split: str, limit: int | None = None, kinds: Sequence[str] | None = None
    ) -> list[MinimalPair]:
        """Minimal changes of the games of a split, at most one of each kind a game, drawn by the seed.

        limit: only of the first that many examples. kinds: None for all that the benchmark has. Raises BadInput for an
        unknown kind, and where there are none.
        """
        raise BadInput(f"benchmark {self.name!r} has no minimal pairs; accepted: mini-game, kilogram")

    def original(self, split: str) -> str:
        """Name of the benchmark that a split is of: its own, except for copies."""
        return self.name

    @abstractmethod
    def _read(self, split: str, limit: int | None) -> Iterator[Example | Fault]:
        """Yield the examples of a split in order; a Fault stands for one that cannot be built.

        ``limit`` is a hint that no more than that many good ones are wanted.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """What the examples depend on (content hash or version, seed, options), JSON values only."""


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


@dataclass(frozen=True)
class Fault:
    """A record of a benchmark that could not be turned into an example."""

    id: str
    reason: str
