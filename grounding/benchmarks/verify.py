"""``verify_benchmark``: every file, span, box and image of a benchmark checked; behind ``probe data verify``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.base import Benchmark
from grounding.benchmarks.files import MissingFile
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, ImageSource
from grounding.images import read_image
from grounding.values import check_counts


@dataclass(frozen=True)
class Found:
    """A fault: the split, the id of what is broken (an example, or a file), and what is wrong, naming the file.

    Also what is whole but makes no example; then the reason says why.
    """

    split: str
    id: str
    reason: str


@dataclass(frozen=True)
class Counts:
    """How much of a split is whole."""

    examples: int
    phrases: int
    regions: int
    images: int


@dataclass(frozen=True)
class Verification:
    """Counts by split, the splits that are not there, every fault, and whole entries that make no example."""

    benchmark: str
    splits: Mapping[str, Counts]
    absent: tuple[str, ...]
    faults: tuple[Found, ...]
    excluded: tuple[Found, ...] = ()


def verify_benchmark(
    benchmark: str,
    *,
    root: Path | str | None = None,
    splits: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    data_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Load splits, open every image, compare its size with what the annotations say, and list all faults.

    splits: by default all that are there; one that is asked for and is not is a fault, and so is one without examples.
    limit: only the first good examples of each split. progress: called with (images opened, all of the split). Raises
    BadInput for an unknown benchmark, split or option, and where no split is there at all.
    """
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    for split in splits or ():
        if split not in source.splits:
            raise unknown_choice("split", split, source.splits)
    check_counts(limit=limit)
    counts: dict[str, Counts] = {}
    absent: list[str] = []
    faults: list[Found] = []
    excluded: list[Found] = []
    for split in splits or source.splits:
        try:
            examples = source.load(split, limit, skip_bad=True)
        except MissingFile as error:
            if splits:
                faults.append(Found(split, split, str(error)))
            else:
                absent.append(split)
            continue
        except BadInput as error:
            faults.append(Found(split, split, str(error)))
            continue
        faults += [Found(split, item.id, item.reason) for item in source.skipped]
        excluded += [Found(split, item.id, item.reason) for item in source.excluded.get(split, ())]
        faults += _emptiness(source, split, examples)
        broken, images = _open_images(source, split, examples, progress)
        faults += broken
        phrases = [phrase for example in examples for phrase in example.phrases]
        regions = sum(len(phrase.regions) for phrase in phrases)
        counts[split] = Counts(len(examples), len(phrases), regions, images)
    if not counts and not faults:
        raise BadInput(f"root {str(root)!r} holds no split of {benchmark!r}; accepted: {source.files}")
    return Verification(benchmark, counts, tuple(absent), tuple(faults), tuple(excluded))


def _emptiness(source: Benchmark, split: str, examples: Sequence[Example]) -> list[Found]:
    """A fault where a split has no examples: nothing in it could be broken."""
    try:
        source.require(examples, split)
    except BadInput as error:
        return [Found(split, split, str(error))]
    return []


def _open_images(
    source: Benchmark, split: str, examples: Sequence[Example], progress: Callable[[int, int], None] | None
) -> tuple[list[Found], int]:
    """Faults of the images of a split, each named with the first example that shows it; how many images are whole."""
    first: dict[object, tuple[str, ImageSource]] = {}
    for example in examples:
        for image in example.images:
            first.setdefault(image if isinstance(image, (str, Path)) else id(image), (example.id, image))
    faults = []
    for done, (example_id, image) in enumerate(first.values(), start=1):
        try:
            height, width = read_image(image).shape[:2]
            said = source.image_sizes.get(Path(image)) if isinstance(image, (str, Path)) else None
            if said not in (None, (width, height)):
                raise BadInput(
                    f"image {image} is {width} x {height} pixels; its annotations say {said[0]} x {said[1]}"
                )  # fmt: skip
        except BadInput as error:
            faults.append(Found(split, example_id, str(error)))
        if progress is not None:
            progress(done, len(first))
    return faults, len(first) - len(faults)
