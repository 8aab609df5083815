"""``extract_checkpoint``: a checkpoint by name on a benchmark by name; the function behind ``probe extract``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from extract.reader import Run
from extract.run import extract
from grounding.benchmarks import open_benchmark
from grounding.checkpoint import Loading, load_checkpoint
from grounding.evaluate_checkpoint import stored_threshold
from grounding.examples import Example


def extract_checkpoint(
    ckpt: str | Path,
    benchmark: str,
    split: str,
    out: Path | str,
    *,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    views: Sequence[str] = ("phrase", "region", "attention"),
    sites: Sequence[str] | None = None,
    batch_size: int = 16,
    dtype: str = "float16",
    precision: str = "fp32",
    device: str = "cpu",
    workers: int = 0,
    seed: int = 0,
    data_seed: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **loading: Unpack[Loading],
) -> Run:
    """Store the activations of a checkpoint on a split of a benchmark in the folder ``out``; see ``extract``.

    options: of the benchmark. loading: tokenizer, weights and config, as ``Loading`` says. The manifest notes where
    everything came from, so that ``examples_of`` finds the examples again. Raises BadInput for whatever is unknown or
    cannot be read.
    """
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    checkpoint = load_checkpoint(ckpt, device, **loading)
    examples = source.load(split, limit, skip_bad)
    threshold, part = stored_threshold(checkpoint.info), {"split": split, "limit": limit}
    return extract(
        checkpoint.model,
        examples,
        out,
        identity={"checkpoint": checkpoint.content, "benchmark": dict(source.identity()), **part},
        source={
            "checkpoint": str(checkpoint.path.resolve()),
            "loading": {name: str(value) if isinstance(value, Path) else value for name, value in loading.items()},
            **_benchmark_source(benchmark, root, options, data_seed),
            **part,
            "skip_bad": skip_bad,
        },
        sites=sites,
        views=views,
        batch_size=batch_size,
        dtype=dtype,
        precision=precision,
        device=device,
        workers=workers,
        threshold=threshold.value if threshold is not None else None,
        skip_bad=skip_bad,
        skipped_on_load=[(item.id, item.reason) for item in source.skipped],
        seed=seed,
        progress=progress,
    )


def _benchmark_source(
    benchmark: str, root: Path | str | None, options: Mapping[str, Any] | None, data_seed: int
) -> dict[str, Any]:
    place = str(Path(root).resolve()) if root is not None else None
    return {"benchmark": benchmark, "root": place, "options": dict(options or {}), "data_seed": data_seed}


def examples_of(run: Run, root: Path | str | None = None) -> dict[str, Example]:
    """The examples of a run by id, opened again from where they came; empty for a run that does not say.

    root: where the benchmark's files are now, if they have moved.
    """
    source = run.manifest.get("source")
    if not source:
        return {}
    benchmark = open_benchmark(source["benchmark"], root or source["root"], source["data_seed"], **source["options"])
    return {e.id: e for e in benchmark.load(source["split"], source["limit"], source["skip_bad"])}
