"""Benchmarks: where examples come from. A registry by name; a benchmark's module is imported when it is opened."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grounding.benchmarks.base import Benchmark
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example
from grounding.values import like

# name -> module and class
BENCHMARKS: dict[str, str] = {
    "kilogram": "grounding.benchmarks.kilogram:KiloGram",
    "touchdown-sdr": "grounding.benchmarks.touchdown:TouchdownSdr",
    "flickr30k": "grounding.benchmarks.flickr30k:Flickr30k",
    "refcoco": "grounding.benchmarks.refcoco:RefCoco",
    "refcoco+": "grounding.benchmarks.refcoco:RefCocoPlus",
    "refcocog": "grounding.benchmarks.refcoco:RefCocoG",
    "coco-json": "grounding.benchmarks.coco:CocoJson",
    "columnar": "grounding.benchmarks.columnar:Columnar",
    "mini-game": "grounding.benchmarks.miniature:MiniatureGame",
    "mini-sdr": "grounding.benchmarks.miniature:MiniatureSdr",
}


def benchmark_class(name: str) -> type[Benchmark]:
    """The class behind a name, for its ``splits`` and ``needs_root``. Raises BadInput for an unknown name."""
    if name not in BENCHMARKS:
        raise unknown_choice("benchmark", name, BENCHMARKS)
    module, _, attribute = BENCHMARKS[name].partition(":")
    found: type[Benchmark] = getattr(importlib.import_module(module), attribute)
    return found


def benchmark_options(name: str) -> dict[str, Any]:
    """The options that a benchmark takes beside root and seed, with their defaults."""
    parameters = inspect.signature(benchmark_class(name)).parameters
    return {key: value.default for key, value in parameters.items() if key not in ("root", "seed")}


def open_benchmark(name: str, root: Path | str | None = None, seed: int = 0, **options: Any) -> Benchmark:
    """A benchmark by name, ready to load its splits.

    root: folder of its files, for those that need one. seed: of splits, games and scenes, 0 or more. options: see the
    class, or ``benchmark_options``. Raises BadInput for an unknown name, an option the benchmark does not take or of
    another type than its default, a root that it needs and does not get or gets and does not read, and whatever the
    benchmark itself refuses.

    >>> open_benchmark("mini-game", seed=1, difficulty="easy").name
    'mini-game'
    """
    found = benchmark_class(name)
    accepted = benchmark_options(name)
    for option, value in options.items():
        if option not in accepted:
            raise BadInput(f"benchmark {name!r} takes no option {option!r}; accepted: {', '.join(accepted) or 'none'}")
        if not like(value, accepted[option]):
            raise BadInput(f"option {option} of {name!r} is {value!r}; accepted: a value like {accepted[option]!r}")
    if seed < 0:
        raise BadInput(f"data seed {seed} is too small; accepted: 0 or more")
    if not found.needs_root and root is not None:
        raise BadInput(f"benchmark {name!r} reads no files; accepted: no root, not {str(root)!r}")
    place = {"root": Path(root)} if root is not None else {}
    return found(**place, seed=seed, **options)


def load_source(source: Mapping[str, Any] | None, root: Path | str | None = None) -> dict[str, Example]:
    """The examples, by id, that a run's manifest names as its ``source``; empty without one.

    root: where the benchmark's files are now, if they have moved. Raises BadInput as ``open_benchmark`` does, and for a
    root of a run that names no benchmark.
    """
    if not source:
        if root is not None:
            raise BadInput(
                f"root {str(root)!r} is of no benchmark: the run, made in Python, names none; accepted: no root"
            )
        return {}
    benchmark = open_benchmark(source["benchmark"], root or source["root"], source["data_seed"], **source["options"])
    return {e.id: e for e in benchmark.load(source["split"], source["limit"], source["skip_bad"])}


__all__ = ["BENCHMARKS", "Benchmark", "benchmark_class", "benchmark_options", "load_source", "open_benchmark"]
