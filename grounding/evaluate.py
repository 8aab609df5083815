"""A model's predictions on a benchmark, scored: tables of examples and phrases, and figures with intervals.

``score`` needs no model, so any program's predictions can be evaluated; ``evaluate`` runs a model and scores it
batch by batch. ``tune_threshold`` and ``tune`` choose the threshold that heatmaps need, on a split that is not test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from grounding.errors import BadInput, unknown_choice
from grounding.evaluation import Evaluation, with_phrase_means
from grounding.examples import Example, Prediction, ReferenceGame
from grounding.metrics.boxes import MODES
from grounding.metrics.heatmaps import THRESHOLDS, Threshold, check_threshold, check_tuning_split, choose_threshold
from grounding.metrics.measure import Measure, PhraseItem
from grounding.metrics.phrases import heatmap_curves, phrase_table
from grounding.metrics.precision import average_precisions
from grounding.metrics.sensitivity import SENSITIVITY_THRESHOLDS, sensitivity_table
from grounding.metrics.tasks import SDR_SIZE, SDR_SOLVED, sdr_distances
from grounding.models.base import Batch, GroundingModel
from grounding.predictions import Predictions, check_examples, match
from grounding.values import check_counts


def predict(
    model: GroundingModel,
    examples: Sequence[Example],
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    skip_bad: bool = False,
) -> Predictions:
    """Task answers and phrase groundings of a model, one Prediction an example.

    The model is moved to ``device`` and put in eval mode. progress: called with the number of examples done so
    far. Heatmaps are as large as the images: where there are many, ``evaluate`` and ``tune`` need far less memory.
    Raises BadInput at the first example that cannot be read, unless ``skip_bad`` (see ``Predictions.skipped``).
    """
    predictions = Predictions()
    for _, batch in predict_batches(model, examples, batch_size, device, progress, skip_bad):
        predictions.add(batch)
    return predictions


def predict_batches(
    model: GroundingModel,
    examples: Sequence[Example],
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    skip_bad: bool = False,
) -> Iterator[tuple[Sequence[Example], Predictions]]:
    """As ``predict``, but a batch at a time: its examples (those skipped too) and their predictions."""
    check_counts(batch_size=batch_size)
    model.to(device).eval()
    for begin in range(0, len(examples), batch_size):
        chunk = examples[begin : begin + batch_size]
        predictions = Predictions()
        batch, skipped = model.prepare_readable(chunk) if skip_bad else (model.prepare(chunk), [])
        if batch is not None:
            with torch.inference_mode():
                batch = batch.to(device)
                predictions = predictions_of(model, batch, model(batch))
        predictions.skipped = skipped
        yield chunk, predictions
        if progress is not None:
            progress(begin + len(chunk))


def predictions_of(model: GroundingModel, batch: Batch, output: Any) -> Predictions:
    """Task answers and phrase groundings in what a model gave for a batch, one Prediction an example."""
    sizes = [(height, width) for height, width in batch.valid.tolist()]
    answers = model.predict(batch, output)
    predictions = Predictions(replace(a, canvas_size=size) for a, size in zip(answers, sizes, strict=True))
    predictions.dropped_phrases = _dropped(batch, predictions)
    return predictions


def _dropped(batch: Batch, answers: Sequence[Prediction]) -> list[tuple[str, str]]:
    """Phrases that the batch reports as dropped and that have no prediction."""
    dropped = set(batch.dropped_phrases)
    return [
        (example.id, phrase.id)
        for example, answer in zip(batch.examples, answers, strict=True)
        for phrase in example.phrases
        if phrase.id in dropped and phrase.id not in {p.phrase_id for p in answer.phrases}
    ]


def score(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    threshold: Threshold | float | None = None,
    metrics: Measure | str = "corrected",
    sdr_size: tuple[int, int] = SDR_SIZE,
    need_answers: bool = True,
    thresholds: Sequence[float] = SENSITIVITY_THRESHOLDS,
) -> Evaluation:
    """Score predictions, matched with examples by id, so in any order.

    threshold: of heatmaps, as a share of their maximum (``tune_threshold`` chooses one); ranked boxes need none.
    metrics: arithmetic and truth (``Measure``), or the name of the arithmetic. sdr_size: width and height in
    pixels of the images that distances are given in. need_answers: whether a prediction without a task answer is an
    error; if not, its grounding counts alone. thresholds: others that heatmaps are measured under too, to see what
    hangs on the choice. Raises BadInput as ``grounding.predictions.match`` does, and where heatmaps have no threshold.
    """
    measure = _as_measure(metrics)
    level = None if threshold is None else check_threshold(threshold)
    pairs, items = match(examples, predictions, need_answers)
    per_phrase = phrase_table(items, level, measure).assign(average_precision=_precisions(items, measure))
    rows = [_example_row(example, prediction, sdr_size) for example, prediction in pairs]
    per_example = with_phrase_means(_without_gaps(pd.DataFrame(rows)), per_phrase)
    grid = sorted({*thresholds, *([] if level is None else [level])})
    lost = predictions if isinstance(predictions, Predictions) else Predictions()
    return Evaluation(
        per_example,
        per_phrase,
        measure,
        threshold,
        tuple(lost.skipped),
        tuple(lost.dropped_phrases),
        sensitivity_table(items, measure, grid),
    )


def _precisions(items: Sequence[PhraseItem], measure: Measure) -> np.ndarray:
    """Average precision of ranked boxes; the original study knows none, so ``paper`` has NaN."""
    return average_precisions(items) if measure.mode == "corrected" else np.full(len(items), np.nan)


def tune_threshold(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    criterion: str = "recall",
    metrics: Measure | str = "corrected",
) -> Threshold:
    """The heatmap threshold that is best for a split's phrases (protocol all), by ``recall`` or mean ``iou``.

    Raises BadInput for examples of several splits, or of a test split.
    """
    split = _tuning_split(examples)
    measure = _as_measure(metrics)
    _, items = match(examples, predictions)
    return choose_threshold(heatmap_curves(items, measure=measure), split, criterion)


def evaluate(
    model: GroundingModel,
    examples: Sequence[Example],
    threshold: Threshold | float | None = None,
    metrics: Measure | str = "corrected",
    sdr_size: tuple[int, int] = SDR_SIZE,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    skip_bad: bool = False,
    keep: Callable[[Sequence[Example], Predictions], None] | None = None,
) -> Evaluation:
    """``predict`` and ``score`` batch by batch: the same tables, in memory that does not grow with heatmaps.

    keep: called with the examples and predictions of each batch (to export them).
    """
    check_examples(examples)
    parts, left_out = [], Predictions()
    for chunk, predictions in predict_batches(model, examples, batch_size, device, progress, skip_bad):
        if predictions:
            parts.append(score(chunk, predictions, threshold, metrics, sdr_size, model.answers_all))
        if keep is not None:
            keep(chunk, predictions)
        predictions.clear()
        left_out.add(predictions)
    if not parts:
        raise BadInput(f"all {len(examples)} examples were skipped: nothing is left to evaluate")
    per_example = _without_gaps(pd.concat([part.per_example for part in parts], ignore_index=True))
    per_phrase, sensitivity = (
        pd.concat([table for part in parts if len(table := getattr(part, name))] or [getattr(parts[0], name)])
        for name in ("per_phrase", "sensitivity")
    )
    return Evaluation(
        per_example,
        per_phrase.reset_index(drop=True),
        parts[0].measure,
        threshold,
        tuple(left_out.skipped),
        tuple(left_out.dropped_phrases),
        sensitivity.reset_index(drop=True),
    )


def tune(
    model: GroundingModel,
    examples: Sequence[Example],
    criterion: str = "recall",
    metrics: Measure | str = "corrected",
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    skip_bad: bool = False,
) -> Threshold:
    """``predict`` and ``tune_threshold`` batch by batch: the same threshold, in memory that hardly grows."""
    check_examples(examples)
    split, measure, curves = _tuning_split(examples), _as_measure(metrics), []
    for chunk, predictions in predict_batches(model, examples, batch_size, device, progress, skip_bad):
        if predictions:
            _, items = match(chunk, predictions)
            curves.append(heatmap_curves(items, measure=measure))
    return choose_threshold(np.concatenate(curves or [np.zeros((0, len(THRESHOLDS)))]), split, criterion)


def _tuning_split(examples: Sequence[Example]) -> str:
    splits = sorted({example.split for example in examples})
    if len(splits) != 1:
        raise BadInput(f"examples are of splits {splits}; accepted: one split to tune on")
    check_tuning_split(splits[0])
    return splits[0]


def _as_measure(metrics: Measure | str) -> Measure:
    if not isinstance(metrics, str):
        return metrics
    if metrics not in MODES:
        raise unknown_choice("metrics", metrics, MODES)
    return Measure(metrics)


def _without_gaps(per_example: pd.DataFrame) -> pd.DataFrame:
    """A group that an example does not have is ''."""
    groups = [name for name in per_example if name.startswith("group_")]
    per_example[groups] = per_example[groups].fillna("")
    return per_example


def _example_row(example: Example, prediction: Prediction, sdr_size: tuple[int, int]) -> dict[str, object]:
    task = example.task
    answered = prediction.answers(example)
    row: dict[str, object] = {"id": example.id, "split": example.split}
    row |= {f"group_{name}": value for name, value in example.groups.items()}
    row |= {"task": "game" if isinstance(task, ReferenceGame) else "sdr"}
    row |= {"has_task": example.has_task, "answered": answered}
    row |= {"answer_index": -1, "answer_x": np.nan, "answer_y": np.nan}
    row |= {"correct": answered and bool(prediction.correct), "score": prediction.score if answered else np.nan}
    row |= {"distance": np.nan, "caption_id": "", "propagated": False}
    if isinstance(task, ReferenceGame):
        row |= {"answer_index": prediction.answer if answered else -1}
    else:
        row |= {"caption_id": task.caption_id or example.id, "propagated": task.propagated}
    if answered and not isinstance(task, ReferenceGame):
        x, y = np.asarray(prediction.answer, dtype=np.float64)
        distance = sdr_distances(np.array([[x, y]]), np.array([task.target_xy]), sdr_size)[0]
        row |= {"answer_x": x, "answer_y": y, "distance": distance, "correct": distance < SDR_SOLVED}
    return row | {"words": len(example.caption.split())}
