"""``probe evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.devices import choose_device
from probe.cli.options import (
    AsJson,
    BatchSize,
    BenchmarkName,
    BenchmarkOptions,
    ChosenWeights,
    DataSeed,
    Device,
    Limit,
    ModelSizes,
    Root,
    SkipBad,
    Split,
    Tokenizer,
    loading,
    parse_pairs,
    progress_bar,
    show,
)

if TYPE_CHECKING:
    from grounding.evaluate_checkpoint import Comparison
    from grounding.evaluation import Evaluation

NAME = "evaluate"
EPILOG = "Example: probe evaluate --ckpt vilt-aligner-grounded --benchmark mini-game --split dev --limit 200"


Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--ckpt",
        help="Checkpoint folder or file, or a bundled one (mdetr-grounded, ...); repeat it to compare.",
    ),
]
PredictionsFiles = Annotated[
    list[Path] | None,
    typer.Option(
        help="Evaluate the predictions in this file, of any program, instead of a checkpoint; repeat it to compare."
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for tables (CSV, Parquet), summary (JSON, Markdown) and charts.")
]
Metrics = Annotated[str, typer.Option(help="corrected, or paper (the originals' arithmetic).")]
HeatmapThreshold = Annotated[
    float | None, typer.Option(help="Of heatmaps, as a share of their maximum; default: the checkpoint's own.")
]
TuneSplit = Annotated[
    str | None, typer.Option(help="Choose the threshold of heatmaps on this split instead; never a test split.")
]
ExportFile = Annotated[
    Path | None, typer.Option(help="File for the predictions, as COCO results (what --predictions reads).")
]
GroundingOnly = Annotated[
    bool, typer.Option("--grounding-only", help="With --predictions: examples may lack a task answer.")
]
TrainRoot = Annotated[
    Path | None, typer.Option(help="Files of the benchmark the checkpoint learned from, to count shared images.")
]


def command(
    benchmark: BenchmarkName,
    ckpt: Checkpoints = None,
    predictions: PredictionsFiles = None,
    split: Split = "dev",
    root: Root = None,
    option: BenchmarkOptions = None,
    limit: Limit = None,
    out: Out = None,
    metrics: Metrics = "corrected",
    threshold: HeatmapThreshold = None,
    tune_split: TuneSplit = None,
    export_predictions: ExportFile = None,
    grounding_only: GroundingOnly = False,
    train_root: TrainRoot = None,
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
    from grounding import evaluate_checkpoint as run

    data: dict[str, Any] = {
        "root": root,
        "options": parse_pairs(option, "--option"),
        "limit": limit,
        "out": out,
        "metrics": metrics,
    }
    data |= {"data_seed": data_seed, "skip_bad": skip_bad}
    of_model: dict[str, Any] = {"threshold": threshold, "tune_split": tune_split, "export": export_predictions}
    of_model |= {"train_root": train_root, **loading(tokenizer, weights, config)}
    _check_sources(ckpt, predictions, grounding_only, of_model)
    if predictions:
        data["need_answers"] = not grounding_only
        if len(predictions) == 1:
            _show_one(run.evaluate_predictions(predictions[0], benchmark, split, **data), out, as_json)
        else:
            compared = run.compare_predictions(predictions, benchmark, split, **data)
            _show_several(compared, "predictions", out, as_json)
        return
    of_model |= {"device": choose_device(device), "batch_size": batch_size}
    names = ckpt or []
    with progress_bar("evaluating", as_json) as progress:
        if len(names) == 1:
            one = run.evaluate_checkpoint(names[0], benchmark, split, progress=progress, **data, **of_model)
        else:
            several = run.evaluate_checkpoints(names, benchmark, split, progress=progress, **data, **of_model)
    if len(names) == 1:
        _show_one(one, out, as_json)
    else:
        _show_several(several, "checkpoints", out, as_json)


def _check_sources(ckpt: list[str] | None, predictions: list[Path] | None, grounding_only: bool, given: dict) -> None:
    """BadInput unless there is one source, with options that it takes."""
    from grounding.errors import BadInput

    if bool(ckpt) == bool(predictions):
        raise BadInput("accepted: either --ckpt or --predictions, once or several times")
    if predictions:
        for name, value in given.items():
            if value is not None and value != {}:
                raise BadInput(f"--{name.replace('_', '-')} {value} goes with --ckpt, not with --predictions")
    elif grounding_only:
        raise BadInput("--grounding-only goes with --predictions: a checkpoint always answers the task")


def _note_transfer(evaluation: Evaluation, name: str = "") -> None:
    """A line on standard error where a checkpoint is evaluated on another benchmark than it was fine-tuned on."""
    if evaluation.overlap is not None and evaluation.overlap.transfer:
        typer.echo(f"Note: {name}{evaluation.overlap.transfer}.", err=True)


def _show_one(evaluation: Evaluation, out: Path | None, as_json: bool) -> None:
    _note_transfer(evaluation)
    summary = evaluation.summary()
    if out is not None:
        _draw(evaluation, out)
    show(evaluation.to_json(summary), as_json, evaluation.to_markdown(summary))


def _show_several(comparison: Comparison, what: str, out: Path | None, as_json: bool) -> None:
    from grounding.comparison import differences_told

    found: dict[str, Any] = {}
    texts = []
    for name, evaluation in comparison.evaluations.items():
        _note_transfer(evaluation, f"{name}: ")
        summary = evaluation.summary()
        found[name] = evaluation.to_json(summary)
        texts.append(f"{name}\n\n{evaluation.to_markdown(summary)}")
        if out is not None:
            _draw(evaluation, out / name)
    table = comparison.differences.astype(object).where(comparison.differences.notna(), None)
    result = {what: found, "differences": table.to_dict("records")}
    show(result, as_json, "\n".join([*texts, differences_told(comparison.differences)]))


def _draw(evaluation: Evaluation, out: Path) -> None:
    """Charts of the tables that were written to ``out``, beside them."""
    from visualize.evaluation import draw_evaluation

    draw_evaluation(evaluation.per_example, evaluation.joint_table(), evaluation.bars(), out / "figures")
