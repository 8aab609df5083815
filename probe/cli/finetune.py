"""``probe finetune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    first_few,
    parse_pairs,
    progress_bar,
    show,
)

if TYPE_CHECKING:
    from grounding.finetune.settings import FinetuneSettings

NAME = "finetune"
EPILOG = (
    "Example: probe finetune --model vilt-aligner --benchmark mini-game --init vilt-aligner-pretrained "
    "--grounding-fraction 0.1 --steps 500 --out runs/tuned"
)


ANNOTATIONS, TRAINING, MACHINE = "Annotations", "Training", "Machine"


def _option(help: str, panel: str | None = None, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


ChangedSizes = Annotated[
    list[str] | None,
    _option("Field of the model's configuration to change; with --init, position_grid alone.", metavar="KEY=VALUE"),
]
RecipeName = Annotated[
    str | None,
    _option(
        "Settings of a named recipe (study's: kilogram-, flickr30k-, touchdown-sdr-vilt-aligner and -mdetr; "
        "mdetr-pretraining; mini-game-...) or of a YAML file; what the command line says wins."
    ),
]


def command(
    ctx: typer.Context,
    out: Annotated[Path, _option("New folder for the checkpoint and logs, or an interrupted run's.")],
    model: Annotated[str, _option("vilt-aligner or mdetr.")] = "",
    benchmark: BenchmarkName = "",
    recipe: RecipeName = None,
    root: Root = None,
    option: BenchmarkOptions = None,
    train_split: Annotated[str, _option(f"Split to learn from ({SPLITS}).")] = "train",
    size: Annotated[str, _option("miniature or base (the released sizes) of fresh weights.")] = "miniature",
    config: ChangedSizes = None,
    init: Annotated[str | None, _option("Checkpoint to start from, instead of fresh weights.")] = None,
    tokenizer: Annotated[
        str | None, _option("Tokenizer file, folder or name; without one, it is trained on the captions.")
    ] = None,
    task: Annotated[bool, _option("Learn the task; single pictures have none.", None, "--task/--no-task")] = True,
    grounding: Annotated[
        bool, _option("Learn phrase grounding from annotated regions.", ANNOTATIONS, "--grounding/--no-grounding")
    ] = True,
    grounding_fraction: Annotated[
        float, _option("Share of the annotations to learn from; subsets are nested and seeded.", ANNOTATIONS)
    ] = 1.0,
    budget_by: Annotated[
        str, _option("The share is one of phrases (phrase) or of images (image).", ANNOTATIONS)
    ] = "phrase",
    budget: Annotated[
        str, _option("corrected (exact), or paper (the study's subsets; docs/differences.md).", ANNOTATIONS)
    ] = "corrected",
    jitter_iou: Annotated[float, _option("Move every box until its IoU with itself is this.", ANNOTATIONS)] = 1.0,
    drop_rate: Annotated[float, _option("Share of the annotated phrases that lose their regions.", ANNOTATIONS)] = 0.0,
    swap_rate: Annotated[
        float, _option("Share that get regions of another phrase of their caption.", ANNOTATIONS)
    ] = 0.0,
    losses: Annotated[
        str, _option("corrected, or paper (with the originals' defects; docs/differences.md).", TRAINING)
    ] = "corrected",
    auxiliary: Annotated[
        bool, _option("MDETR learns at every decoder layer, or at the last.", TRAINING, "--auxiliary/--no-auxiliary")
    ] = True,
    task_weight: Annotated[
        float | None, _option("Weight of the task's loss; default 3 or 5 (MDETR).", TRAINING)
    ] = None,
    grounding_weight: Annotated[float, _option("Weight of the grounding losses.", TRAINING)] = 1.0,
    steps: Annotated[int, _option("Optimiser steps.", TRAINING)] = 4000,
    epochs: Annotated[int | None, _option("Passes over the split, instead of steps.", TRAINING)] = None,
    batch_size: Annotated[int, _option("Examples a batch.", TRAINING)] = 32,
    accumulate: Annotated[int, _option("Batches a step.", TRAINING)] = 1,
    learning_rate: Annotated[float, _option("Peak learning rate (AdamW).", TRAINING)] = 5e-4,
    learning_rate_backbone: Annotated[float | None, _option("That of MDETR's backbone.", TRAINING)] = None,
    learning_rate_text: Annotated[float | None, _option("That of MDETR's text encoder.", TRAINING)] = None,
    weight_decay: Annotated[float, _option("Decay of weight matrices.", TRAINING)] = 0.05,
    beta2: Annotated[float, _option("AdamW's second decay.", TRAINING)] = 0.98,
    schedule: Annotated[str, _option("Decay of the learning rate: cosine or linear.", TRAINING)] = "cosine",
    warmup: Annotated[float, _option("Steps of linear warm-up; below 1, a share of all.", TRAINING)] = 200,
    clip: Annotated[float, _option("Largest norm of the gradient; 0 for none.", TRAINING)] = 1.0,
    ema_decay: Annotated[float, _option("Decay of the averaged weights; 0 turns them off.", TRAINING)] = 0.998,
    evaluate_every: Annotated[int, _option("Steps between looks at dev and saved states.", TRAINING)] = 500,
    monitor: Annotated[
        str | None, _option("What the best is best by: dev/accuracy, dev/pointing or dev/loss.", TRAINING)
    ] = None,
    patience: Annotated[int | None, _option("Stop after so many looks without a better one.", TRAINING)] = None,
    limit_train: Annotated[int | None, _option("Only the first so many examples of the split.", TRAINING)] = None,
    limit_dev: Annotated[int | None, _option("Only the first so many examples of dev.", TRAINING)] = 500,
    precision: Annotated[str, _option("fp32, bf16 or fp16 (on a GPU).", TRAINING)] = "fp32",
    device: Device = "auto",
    devices: Annotated[int, _option("GPUs, or processes on CPU, of each node.", MACHINE)] = 1,
    nodes: Annotated[int, _option("Machines (under Slurm or torchrun).", MACHINE)] = 1,
    workers: Annotated[int, _option("Processes that prepare batches.", MACHINE)] = 0,
    logger: Annotated[
        list[str] | None, _option("csv, tensorboard, wandb; repeat for several (default the first two).", MACHINE)
    ] = None,
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on a benchmark, with any share of its phrase-grounding annotations; resumes by itself."""
    given: dict[str, Any] = dict(locals())
    from lightning.pytorch.utilities import rank_zero_only

    from grounding.finetune.run import finetune
    from grounding.finetune.trainer import DEFAULT_LOGGERS

    given |= {"root": str(root) if root is not None else None}
    given |= {"benchmark_options": parse_pairs(option, "--option"), "config": parse_pairs(config, "--config")}
    settings = _settings(ctx, given, recipe)
    with progress_bar("fine-tuning", as_json) as progress:
        finetune(
            settings, out, device=device, devices=devices, nodes=nodes, workers=workers,
            loggers=logger or DEFAULT_LOGGERS, progress=progress,
        )  # fmt: skip
    rank_zero_only(_tell)(settings, out, as_json)


def _settings(ctx: typer.Context, given: Mapping[str, Any], recipe: str | None) -> FinetuneSettings:
    """The recipe's settings, and over them those given on the command line, none of which may be without effect."""
    from grounding.finetune.ignored import check_heeded
    from grounding.finetune.recipes import read_recipe, settings_from, with_recipe
    from grounding.finetune.settings import FinetuneSettings

    names = [field.name for field in fields(FinetuneSettings)]
    options = {"benchmark_options": "option"}
    said = {
        name
        for name in names
        if (source := ctx.get_parameter_source(options.get(name, name))) and source.name == "COMMANDLINE"
    }
    chosen = {name: given[name] for name in names if name in said}
    own, where = ({}, "finetune") if recipe is None else (read_recipe(recipe), f"recipe {recipe!r}")
    settings = settings_from(with_recipe(own, chosen), where)
    check_heeded(said, settings)
    return settings


def _tell(settings: FinetuneSettings, out: Path, as_json: bool) -> None:
    """Print what came out of a run."""
    from grounding.checkpoint import load_checkpoint
    from grounding.predictions import DROPPED

    info = load_checkpoint(out).info
    training = info["training"]
    told = (settings.monitored, "best_step", "steps", "planned_steps", "annotations")
    figures = {name: training[name] for name in told}
    result = {"checkpoint": str(out), **figures, "threshold": info["threshold"], "seconds": training["seconds"]}
    lines = [f"checkpoint: {out}", f"{settings.monitored}: {training[settings.monitored]:.4g}"]
    lines += [f"best step: {training['best_step']} of {training['steps']}"]
    if training["steps"] < training["planned_steps"]:
        lines.append(
            f"stopped at step {training['steps']} of {training['planned_steps']}: {settings.monitored} was no better "
            f"after step {training['best_step']} (patience {settings.patience})"
        )
    annotations = training["annotations"]
    lines.append(f"learned from {annotations['learned']} of {annotations['phrases']} annotated phrases")
    lines.append(f"seconds: {training['seconds']}")
    if (threshold := info["threshold"]) is not None:
        lines.append(f"threshold of heatmaps: {threshold['value']:g}, chosen on {threshold['split']}")
    result |= {name: training[name] for name in ("skipped", "dropped_phrases")}
    lines += [f"skipped {item['id']}: {item['reason']}" for item in training["skipped"]]
    lines += first_few(
        [f"phrase {item['phrase']} of {item['example']} {DROPPED}" for item in training["dropped_phrases"]]
    )
    same = [f"--option {name}={value}" for name, value in settings.benchmark_options.items()]
    same += [f"--root {settings.root}"] if settings.root is not None else []
    same += [f"--data-seed {settings.data_seed}"] if settings.data_seed else []
    same += ["--skip-bad"] if settings.skip_bad else []
    following = " ".join([f"probe evaluate --ckpt {out} --benchmark {settings.benchmark} --split dev", *same])
    show(result, as_json, "\n".join([*lines, f"Next: {following}"]))
