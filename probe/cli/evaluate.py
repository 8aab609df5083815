"""``probe evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import (
    AsJson,
    BatchSize,
    BenchmarkName,
    BenchmarkOptions,
    Checkpoint,
    ChosenWeights,
    DataSeed,
    Device,
    Limit,
    ModelSizes,
    Root,
    SkipBad,
    Split,
    Tokenizer,
    choose_device,
    loading,
    parse_pairs,
    progress_bar,
    show,
)

NAME = "evaluate"
EPILOG = "Example: probe evaluate --ckpt vilt-aligner-grounded --benchmark mini-game --split dev --limit 200"


def command(
    ckpt: Checkpoint,
    benchmark: BenchmarkName,
    split: Split = "dev",
    root: Root = None,
    option: BenchmarkOptions = None,
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option(help="Folder for tables (CSV) and summary (JSON, Markdown).")] = None,
    metrics: Annotated[str, typer.Option(help="corrected, or paper (the originals' arithmetic).")] = "corrected",
    threshold: Annotated[
        float | None, typer.Option(help="Of heatmaps, as a share of their maximum; default: the checkpoint's own.")
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    tokenizer: Tokenizer = None,
    weights: ChosenWeights = None,
    config: ModelSizes = None,
    data_seed: DataSeed = 0,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Task performance, phrase grounding and their correlation, with 95 % intervals over images."""
    from grounding.evaluate_checkpoint import evaluate_checkpoint

    with progress_bar("evaluating", as_json) as progress:
        evaluation = evaluate_checkpoint(
            ckpt,
            benchmark,
            split,
            root=root,
            options=parse_pairs(option, "--option"),
            limit=limit,
            out=out,
            metrics=metrics,
            threshold=threshold,
            batch_size=batch_size,
            device=choose_device(device),
            data_seed=data_seed,
            skip_bad=skip_bad,
            progress=progress,
            **loading(tokenizer, weights, config),
        )
    summary = evaluation.summary()
    show(evaluation.to_json(summary), as_json, evaluation.to_markdown(summary))
