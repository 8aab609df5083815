"""Checkpoints, or any program's predictions, by name on a benchmark by name: what is behind ``probe evaluate``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from grounding.benchmarks import Benchmark, open_benchmark
from grounding.checkpoint import Loading, load_checkpoint
from grounding.comparison import differences
from grounding.errors import BadInput, unknown_choice
from grounding.evaluate import Evaluation, evaluate, score, tune
from grounding.evaluation_files import (
    check_comparison_out,
    check_evaluation_out,
    write_comparison,
    write_evaluation,
)
from grounding.examples import Example
from grounding.folders import check_file, check_folder, name_of
from grounding.image_hash import image_hash
from grounding.metrics.boxes import MODES
from grounding.metrics.heatmaps import Threshold, check_threshold, check_tuning_split
from grounding.models.base import GroundingModel
from grounding.overlap import training_overlap
from grounding.predictions_export import PredictionWriter
from grounding.predictions_import import read_predictions
from grounding.values import check_counts

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Evaluations by checkpoint or file, and the paired differences of their figures (``grounding.comparison``)."""

    evaluations: Mapping[str, Evaluation]
    differences: pd.DataFrame


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
    tune_split: str | None = None,
    export: Path | str | None = None,
    train_root: Path | str | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    data_seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
    **loading: Unpack[Loading],
) -> Evaluation:
    """Task performance and phrase grounding of a checkpoint on a split of a benchmark, also one it never saw.

    threshold: of heatmaps; by default the one that was tuned when the checkpoint was made. tune_split: choose it on
    this split of the benchmark instead (no test split). Ranked boxes have none. out: folder for tables and summary, see
    ``grounding.evaluation_files``. export: file for the predictions (``grounding.predictions_export``). train_root:
    files of the benchmark that the checkpoint was trained on, where they moved: images that are in both are counted
    (``Evaluation.overlap``). options: of the benchmark. progress: called with (examples done, all of them).
    loading: tokenizer, weights and config, as ``Loading`` says. The examples that the benchmark left out are among
    those skipped. Raises BadInput for whatever is unknown or cannot be read, and where ``out`` holds the evaluation of
    another checkpoint (by content), or of this one on something else.
    """
    check_folder(out)
    check_file(export, "export")
    _check_train_root(train_root)
    check_measuring(threshold, tune_split, metrics, batch_size)
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    checkpoint = load_checkpoint(ckpt, device, **loading)
    examples = source.load(split, limit, skip_bad)
    source.require(examples, split)
    skipped = tuple(source.skipped)
    told = _told(source, split, limit, metrics, image_hash(examples))
    about = {"checkpoint": str(ckpt), "content": checkpoint.content, **told}
    about |= {"threshold": threshold, "tune_split": tune_split}
    check_evaluation_out(out, about)
    level = threshold if threshold is not None else stored_threshold(checkpoint.info)
    if tune_split is not None:
        level = _tuned(checkpoint.model, source, tune_split, limit, metrics, batch_size, device, skip_bad)
    level = _level(str(ckpt), checkpoint.model, level, examples)
    overlap = training_overlap(checkpoint.info, source, examples, train_root)
    writer = None if export is None else PredictionWriter(level)
    evaluation = evaluate(
        checkpoint.model,
        examples,
        level,
        metrics,
        batch_size=batch_size,
        device=device,
        progress=None if progress is None else lambda done: progress(done, len(examples)),
        skip_bad=skip_bad,
        keep=None if writer is None else writer.add,
    )
    evaluation = replace(evaluation, skipped=(*skipped, *evaluation.skipped), overlap=overlap, about=about)
    if writer is not None:
        writer.write(export)  # type: ignore[arg-type]
    if out is not None:
        write_evaluation(evaluation, out)
    return evaluation


def evaluate_checkpoints(
    ckpts: Sequence[str | Path],
    benchmark: str,
    split: str = "dev",
    *,
    out: Path | str | None = None,
    export: Path | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """``evaluate_checkpoint`` for each of several, and every figure's paired difference over the same images.

    out: a folder in it for each checkpoint, and ``differences`` (CSV, Parquet, Markdown). Checkpoints go by the last
    part of their paths; raises BadInput where two share it, for an export, which takes one checkpoint, and where
    ``out`` compares others.
    """
    if export is not None:
        raise BadInput(f"export {str(export)!r} of {len(ckpts)} checkpoints; accepted: one checkpoint")

    def one(place: int, folder: Path | None) -> Evaluation:
        def tell(done: int, total: int) -> None:
            if progress is not None:
                progress(place * total + done, len(ckpts) * total)

        return evaluate_checkpoint(ckpts[place], benchmark, split, out=folder, progress=tell, **options)

    return _compared("checkpoints", [name_of(ckpt) for ckpt in ckpts], out, one)


def evaluate_predictions(
    predictions: str | Path,
    benchmark: str,
    split: str = "dev",
    *,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int | None = None,
    out: Path | str | None = None,
    metrics: str = "corrected",
    need_answers: bool = True,
    data_seed: int = 0,
    skip_bad: bool = False,
) -> Evaluation:
    """The same of predictions in a file (``grounding.predictions_export`` tells its form), without a model.

    need_answers: whether an example without a task answer is an error; if not, its grounding counts alone. Heatmaps
    are measured at the threshold they were stored at, and at no other. For the rest see ``evaluate_checkpoint``.
    """
    check_folder(out)
    source = open_benchmark(benchmark, root, data_seed, **(options or {}))
    examples = source.load(split, limit, skip_bad)
    source.require(examples, split)
    given, threshold = read_predictions(predictions, examples)
    content = hashlib.sha256(Path(predictions).read_bytes()).hexdigest()
    about = {"predictions": str(predictions), "content": content, **_told(source, split, limit, metrics)}
    check_evaluation_out(out, about)
    evaluation = score(examples, given, threshold, metrics, need_answers=need_answers, thresholds=())
    evaluation = replace(evaluation, skipped=(*source.skipped, *evaluation.skipped), about=about)
    if out is not None:
        write_evaluation(evaluation, out)
    return evaluation


def compare_predictions(
    files: Sequence[str | Path],
    benchmark: str,
    split: str = "dev",
    *,
    out: Path | str | None = None,
    **options: Any,
) -> Comparison:
    """``evaluate_predictions`` for each of several files, as ``evaluate_checkpoints`` compares checkpoints.

    They go by their names without the suffix; raises BadInput where two share it.
    """

    def one(place: int, folder: Path | None) -> Evaluation:
        return evaluate_predictions(files[place], benchmark, split, out=folder, **options)

    return _compared("predictions", [Path(file).stem for file in files], out, one)


def stored_threshold(info: Mapping[str, Any]) -> Threshold | None:
    """The heatmap threshold that came with a checkpoint, and the split it was tuned on."""
    return Threshold(**info["threshold"]) if info.get("threshold") else None


def _compared(
    what: str, names: Sequence[str], out: Path | str | None, one: Callable[[int, Path | None], Evaluation]
) -> Comparison:
    """Each of several evaluations, which ``one`` makes of its number and its folder, and their differences."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{what} are named {', '.join(names)}; accepted: different names, {twice[0]!r} comes twice")
    check_comparison_out(out, names)
    folders = [None if out is None else Path(out) / name for name in names]
    evaluations = {name: one(place, folders[place]) for place, name in enumerate(names)}
    found = Comparison(evaluations, differences(evaluations))
    if out is not None:
        write_comparison(found.differences, names, out)
    return found


def _told(source: Benchmark, split: str, limit: int | None, metrics: str, images: str | None = None) -> dict[str, Any]:
    """What was evaluated on and by which metrics, JSON values only: enough to find it again.

    images: hash of those that were read, None where none were.
    """
    root = None if source.root is None else str(source.root)
    identity = {**source.identity(), **({} if images is None else {"images": images})}
    return {
        "benchmark": source.name,
        "split": split,
        "limit": limit,
        "root": root,
        "identity": json.loads(json.dumps(identity)),
        "metrics": metrics,
    }


def _check_train_root(train_root: Path | str | None) -> None:
    if train_root is not None and not Path(train_root).is_dir():
        accepted = "that of the training benchmark's files"
        raise BadInput(f"train_root {str(train_root)!r} is not a folder; accepted: {accepted}")


def check_measuring(
    threshold: float | None = None, tune_split: str | None = None, metrics: str = "corrected", batch_size: int = 16
) -> None:
    """Raise BadInput for these options of ``evaluate_checkpoint`` where they cannot be, or exclude each other."""
    if metrics not in MODES:
        raise unknown_choice("metrics", metrics, MODES)
    check_counts(batch_size=batch_size)
    if threshold is not None and tune_split is not None:
        raise BadInput(f"threshold {threshold} and tune_split {tune_split!r} exclude each other; accepted: one of them")
    if threshold is not None:
        check_threshold(threshold)
    if tune_split is not None:
        check_tuning_split(tune_split)


def _tuned(
    model: GroundingModel,
    source: Benchmark,
    split: str,
    limit: int | None,
    metrics: str,
    batch_size: int,
    device: str,
    skip_bad: bool,
) -> Threshold | None:
    """The threshold of the best mean IoU on a split, as fine-tuning chooses it; None for ranked boxes."""
    if model.predicts != "heatmap":
        return None
    examples = source.load(split, limit, skip_bad)
    return tune(model, examples, "iou", metrics, batch_size=batch_size, device=device, skip_bad=skip_bad)


def _level(
    ckpt: str, model: GroundingModel, known: Threshold | float | None, examples: Sequence[Example]
) -> Threshold | float | None:
    """The threshold that is known; None for ranked boxes. Raises BadInput where heatmaps are to be measured without."""
    if model.predicts != "heatmap":
        return None
    if known is None and any(example.phrases for example in examples):
        raise BadInput(
            f"checkpoint {ckpt!r} predicts heatmaps and comes without a threshold for them; accepted: --threshold "
            "in [0, 1), or --tune-split, a split to choose it on"
        )
    return known
