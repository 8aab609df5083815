"""``probe finetune``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from probe.cli.options import (
    SPLITS,
    AsJson,
    BenchmarkName,
    BenchmarkOptions,
    DataSeed,
    Device,
    Root,
    Seed,
    SkipBad,
    parse_pairs,
    progress_bar,
    show,
)

NAME = "finetune"
EPILOG = (
    "Example: probe finetune --model vilt-aligner --benchmark mini-game --init vilt-aligner-pretrained "
    "--steps 500 --out runs/tuned"
)


ChangedSizes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Field of the model's configuration to change; with --init, position_grid alone."
    ),
]
TrainedTokenizer = Annotated[
    str | None, typer.Option(help="Tokenizer file, folder or name; without one, it is trained on the captions.")
]
LearnGrounding = Annotated[
    bool, typer.Option("--grounding/--no-grounding", help="Learn phrase grounding from annotated regions.")
]
Losses = Annotated[str, typer.Option(help="corrected, or paper (with the originals' defects; docs/differences.md).")]


def command(
    model: Annotated[str, typer.Option(help="vilt-aligner or mdetr.")],
    benchmark: BenchmarkName,
    out: Annotated[Path, typer.Option(help="New folder for the checkpoint and logs, or an interrupted run's.")],
    root: Root = None,
    option: BenchmarkOptions = None,
    train_split: Annotated[str, typer.Option(help=f"Split to learn from ({SPLITS}).")] = "train",
    size: Annotated[str, typer.Option(help="miniature or base (the released sizes).")] = "miniature",
    config: ChangedSizes = None,
    init: Annotated[str | None, typer.Option(help="Checkpoint to start from, instead of fresh weights.")] = None,
    tokenizer: TrainedTokenizer = None,
    task: Annotated[bool, typer.Option("--task/--no-task", help="Learn the task.")] = True,
    grounding: LearnGrounding = True,
    losses: Losses = "corrected",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate (AdamW, cosine decay).")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Decay of weight matrices.")] = 0.05,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 200,
    ema_decay: Annotated[float, typer.Option(help="Decay of the averaged weights; 0 turns them off.")] = 0.998,
    evaluate_every: Annotated[int, typer.Option(help="Steps between looks at dev and saved states.")] = 500,
    limit_train: Annotated[int | None, typer.Option(help="Only the first so many examples of the split.")] = None,
    limit_dev: Annotated[int | None, typer.Option(help="Only the first so many examples of dev.")] = 500,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    devices: Annotated[int, typer.Option(help="GPUs, or processes on CPU.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 0,
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on a benchmark, with or without phrase-grounding annotations; resumes by itself."""
    given: dict[str, Any] = dict(locals())
    from grounding.checkpoint import load_checkpoint
    from grounding.finetune.run import finetune
    from grounding.finetune.settings import FinetuneSettings
    from grounding.predictions import DROPPED

    given |= {"root": str(root) if root is not None else None}
    given |= {"benchmark_options": parse_pairs(option, "--option"), "config": parse_pairs(config, "--config")}
    settings = FinetuneSettings(**{field.name: given[field.name] for field in fields(FinetuneSettings)})
    with progress_bar("fine-tuning", as_json) as progress:
        finetune(settings, out, device=device, devices=devices, workers=workers, progress=progress)
    info = load_checkpoint(out).info
    training = info["training"]
    figures = {settings.monitor: training[settings.monitor], "best_step": training["best_step"]}
    result = {"checkpoint": str(out), **figures, "threshold": info["threshold"], "seconds": training["seconds"]}
    lines = [f"{name}: {value}" for name, value in result.items()]
    result |= {name: training[name] for name in ("skipped", "dropped_phrases")}
    lines += [f"skipped {item['id']}: {item['reason']}" for item in training["skipped"]]
    lines += [f"phrase {item['phrase']} of {item['example']} {DROPPED}" for item in training["dropped_phrases"]]
    same = [f"--option {pair}" for pair in option or ()] + ([f"--root {root}"] if root is not None else [])
    same += ([f"--data-seed {data_seed}"] if data_seed else []) + (["--skip-bad"] if skip_bad else [])
    following = " ".join([f"probe evaluate --ckpt {out} --benchmark {benchmark} --split dev", *same])
    show(result, as_json, "\n".join([*lines, f"Next: {following}"]))
