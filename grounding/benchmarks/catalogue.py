"""What benchmarks there are, and one example by its id; behind ``probe data list`` and ``probe data show``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding.benchmarks import BENCHMARKS, benchmark_class, benchmark_options, open_benchmark
from grounding.errors import BadInput
from grounding.examples import Example


@dataclass(frozen=True)
class Entry:
    """A benchmark: name, splits, what its root folder must hold, options with their defaults."""

    name: str
    splits: tuple[str, ...]
    needs: str
    options: Mapping[str, Any]


def list_benchmarks() -> list[Entry]:
    """Every benchmark of the registry."""
    classes = {name: benchmark_class(name) for name in BENCHMARKS}
    return [Entry(name, found.splits, found.files, benchmark_options(name)) for name, found in classes.items()]


def find_example(
    benchmark: str,
    example_id: str,
    *,
    split: str | None = None,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    data_seed: int = 0,
) -> Example:
    """The example of that id; split: where it is, by default the second part of its id.

    Broken examples beside it do not matter. Raises BadInput where there is no such example, and where it is broken.
    """
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    if split is None:
        split = next((part for part in example_id.split("/")[1:2] if part in source.splits), None)
    if split is None:
        raise BadInput(
            f"example {example_id!r} does not say its split; accepted: {benchmark}/SPLIT/..., SPLIT one of "
            f"{', '.join(source.splits)} (or --split)"
        )
    examples = source.load(split, skip_bad=True)
    for example in examples:
        if example.id == example_id:
            return example
    for skipped in source.skipped:
        if skipped.id == example_id:
            raise BadInput(skipped.reason)
    some = ", ".join(example.id for example in examples[:3])
    raise BadInput(f"example {example_id!r} is not in {split}; accepted: one of its {len(examples)}: {some}, …")
