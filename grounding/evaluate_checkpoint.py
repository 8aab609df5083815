"""``evaluate_checkpoint``: a checkpoint by name on a benchmark by name; the function behind ``probe evaluate``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from grounding.benchmarks import open_benchmark
from grounding.checkpoint import Loading, load_checkpoint
from grounding.errors import BadInput
from grounding.evaluate import Evaluation, evaluate
from grounding.metrics.heatmaps import Threshold


def evaluate_checkpoint(
    ckpt: str | Path,
    benchmark: str,
    split: str = "dev",
    *,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    out: Path | str | None = None,
    metrics: str = "corrected",
    threshold: float | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    data_seed: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **loading: Unpack[Loading],
) -> Evaluation:
    """Task performance and phrase grounding of a checkpoint on a split of a benchmark.

    threshold: of heatmaps; by default the one that was tuned when the checkpoint was made. out: folder for
    ``examples.csv``, ``phrases.csv``, ``joint.csv`` (correlations under every way to measure grounding),
    ``summary.json`` and ``summary.md``. options: of the benchmark. progress: called with (examples done, all of them).
    loading: tokenizer, weights and config, as ``Loading`` says. The examples that the benchmark left out are among
    those skipped. Raises BadInput for whatever is unknown or cannot be read.
    """
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise BadInput(f"out {str(out)!r} is not a folder")
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    checkpoint = load_checkpoint(ckpt, device, **loading)
    examples = source.load(split, limit, skip_bad)
    evaluation = evaluate(
        checkpoint.model,
        examples,
        threshold if threshold is not None else stored_threshold(checkpoint.info),
        metrics,
        batch_size=batch_size,
        device=device,
        progress=None if progress is None else lambda done: progress(done, len(examples)),
        skip_bad=skip_bad,
    )
    evaluation = replace(evaluation, skipped=(*source.skipped, *evaluation.skipped))
    if out is not None:
        _write(evaluation, Path(out))
    return evaluation


def stored_threshold(info: Mapping[str, Any]) -> Threshold | None:
    """The heatmap threshold that came with a checkpoint, and the split it was tuned on."""
    return Threshold(**info["threshold"]) if info.get("threshold") else None


def _write(evaluation: Evaluation, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    evaluation.per_example.to_csv(out / "examples.csv", index=False)
    evaluation.per_phrase.to_csv(out / "phrases.csv", index=False)
    evaluation.joint_table().to_csv(out / "joint.csv", index=False)
    summary = evaluation.summary()
    (out / "summary.json").write_text(json.dumps(evaluation.to_json(summary), indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(evaluation.to_markdown(summary), encoding="utf-8")
