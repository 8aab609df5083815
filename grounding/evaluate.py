"""A model's predictions on a benchmark, scored: tables of examples and phrases, and figures with intervals.

``score`` needs no model, so any program's predictions can be evaluated; ``evaluate`` runs a model and scores it
batch by batch. ``tune_threshold`` and ``tune`` choose the threshold that heatmaps need, on a split that is not test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch

from grounding.benchmarks.base import Skipped
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Prediction, ReferenceGame
from grounding.metrics.boxes import MODES
from grounding.metrics.heatmaps import THRESHOLDS, Threshold, check_threshold, check_tuning_split, choose_threshold
from grounding.metrics.intervals import RESAMPLES, Estimate, bootstrap_mean
from grounding.metrics.joint import PERMUTATIONS, Correlation, joint_view
from grounding.metrics.phrases import Measure, heatmap_curves, phrase_table
from grounding.metrics.tasks import SDR_SIZE, SDR_THRESHOLDS, nested_weights, sdr_distances
from grounding.models.base import Batch, GroundingModel
from grounding.predictions import Predictions, check_examples, match


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
    if batch_size < 1:
        raise BadInput(f"batch_size {batch_size} is too small; accepted: 1 or more")
    model.to(device).eval()
    for begin in range(0, len(examples), batch_size):
        chunk = examples[begin : begin + batch_size]
        predictions = Predictions()
        batch, predictions.skipped = model.prepare_readable(chunk) if skip_bad else (model.prepare(chunk), [])
        if batch is not None:
            with torch.inference_mode():
                batch = batch.to(device)
                sizes = [(height, width) for height, width in batch.valid.tolist()]
                answers = model.predict(batch, model(batch))
                predictions.extend(replace(a, canvas_size=size) for a, size in zip(answers, sizes, strict=True))
            predictions.dropped_phrases = _dropped(batch, predictions)
        yield chunk, predictions
        if progress is not None:
            progress(begin + len(chunk))


def _dropped(batch: Batch, answers: Sequence[Prediction]) -> list[tuple[str, str]]:
    """Phrases that the batch reports as dropped and that have no prediction."""
    dropped = set(batch.dropped_phrases)
    return [
        (example.id, phrase.id)
        for example, answer in zip(batch.examples, answers, strict=True)
        for phrase in example.phrases
        if phrase.id in dropped and phrase.id not in {p.phrase_id for p in answer.phrases}
    ]


_GROUNDING_FIGURES = {
    "mean_iou": "iou",
    "mean_iou_any": "iou_any",
    "mean_iou_merged": "iou_merged",
    "recall@0.5": "hit",
    "pointing": "pointing",
}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scored predictions, as tidy tables.

    per_example: id, split, group_* (one a kind of group), task (game | sdr), answer_index (-1 for sdr), answer_x,
    answer_y (NaN for games), correct, score (higher is better), distance (pixels; NaN for games), mean_iou (over
    its phrases; NaN without any), phrases (how many are scored).
    per_phrase: see ``grounding.metrics.phrases.phrase_table``; phrases without regions have no row.
    threshold: that of heatmaps, with the split it was chosen on where it was chosen.
    skipped, dropped_phrases: see ``Predictions``.
    """

    per_example: pd.DataFrame
    per_phrase: pd.DataFrame
    measure: Measure
    threshold: Threshold | float | None
    skipped: tuple[Skipped, ...] = ()
    dropped_phrases: tuple[tuple[str, str], ...] = ()

    def summary(
        self, resamples: int = RESAMPLES, permutations: int = PERMUTATIONS, seed: int = 0
    ) -> dict[str, Estimate]:
        """Figures with 95 % intervals over images (``group_image``), by name.

        Games: accuracy, and accuracy_nested where annotations and tangrams are known (resampling tangrams).
        Spatial description: mean_distance, accuracy@40px, @80px, @120px. Grounding, over phrases: mean_iou,
        mean_iou_any, mean_iou_merged, recall@0.5, pointing. Over examples with phrases, against mean_iou:
        pearson, spearman (task score) and point_biserial (task success), as ``Correlation``.
        """
        examples, phrases = self.per_example, self.per_phrase
        figures = _game_figures if (examples["task"] == "game").all() else _distance_figures
        estimates = figures(examples, resamples, seed)
        images = phrases["example"].map(dict(zip(examples["id"], examples["group_image"], strict=True)))
        for name, column in _GROUNDING_FIGURES.items():
            estimates[name] = bootstrap_mean(phrases[column], images, resamples=resamples, seed=seed)
        grounded = examples[examples["phrases"] > 0]
        score, success, iou = (grounded[name].to_numpy(np.float64) for name in ("score", "correct", "mean_iou"))
        groups = grounded["group_image"].to_numpy()
        return estimates | joint_view(score, success, iou, groups, resamples, permutations, seed)

    def to_markdown(self, summary: Mapping[str, Estimate] | None = None) -> str:
        """The summary as a Markdown table (figure, value, 95 % interval, p, n, groups, note), and what was left out."""
        summary = self.summary() if summary is None else summary
        lines = ["| figure | value | 95 % interval | p | n | groups | note |", "|---|---|---|---|---|---|---|"]
        for name, figure in summary.items():
            p = figure.p if isinstance(figure, Correlation) else None
            interval = "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}"
            cells = (name, _number(figure.value), interval, _number(p, 4), str(figure.n), str(figure.groups))
            lines.append(f"| {' | '.join(cells)} | {figure.reason or ''} |")
        lines += ["", f"Metrics: {self.measure.mode}. {_told(self.threshold)}"]
        lines += [f"skipped {skip.id}: {skip.reason}" for skip in self.skipped]
        lines += [f"phrase {phrase} of {example}: over the token limit" for example, phrase in self.dropped_phrases]
        return "\n".join(lines) + "\n"

    def to_json(self, summary: Mapping[str, Estimate] | None = None) -> dict[str, object]:
        """The same for machines: metrics, threshold, figures by name, skipped, dropped_phrases; plain values."""
        summary = self.summary() if summary is None else summary
        chosen = isinstance(self.threshold, Threshold)
        return {
            "metrics": self.measure.mode,
            "threshold": asdict(self.threshold) if chosen else self.threshold,  # type: ignore[arg-type]
            "figures": {name: asdict(figure) for name, figure in summary.items()},
            "skipped": [asdict(skip) for skip in self.skipped],
            "dropped_phrases": [{"example": example, "phrase": phrase} for example, phrase in self.dropped_phrases],
        }


def _told(threshold: Threshold | float | None) -> str:
    if threshold is None:
        return "Ranked boxes: no threshold."
    if isinstance(threshold, Threshold):
        best = {"iou": "mean IoU", "recall": "recall@0.5"}[threshold.criterion]
        return f"Threshold of heatmaps: {threshold.value:g}, of the best {best} on {threshold.split}."
    return f"Threshold of heatmaps: {threshold:g}."


def _game_figures(examples: pd.DataFrame, resamples: int, seed: int) -> dict[str, Estimate]:
    correct, images = examples["correct"], examples["group_image"]
    figures = {"accuracy": bootstrap_mean(correct, images, resamples=resamples, seed=seed)}
    nesting = [f"group_{name}" for name in ("annotation", "tangram")]
    if all(name in examples and (examples[name] != "").all() for name in nesting):
        annotations, tangrams = (examples[name].to_numpy() for name in nesting)
        weights = nested_weights(annotations, tangrams)
        figures["accuracy_nested"] = bootstrap_mean(correct, tangrams, weights, resamples, seed)
    return figures


def _distance_figures(examples: pd.DataFrame, resamples: int, seed: int) -> dict[str, Estimate]:
    distances, images = examples["distance"], examples["group_image"]
    figures = {"mean_distance": bootstrap_mean(distances, images, resamples=resamples, seed=seed)}
    for limit in SDR_THRESHOLDS:
        figures[f"accuracy@{limit}px"] = bootstrap_mean(distances < limit, images, resamples=resamples, seed=seed)
    return figures


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def score(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    threshold: Threshold | float | None = None,
    metrics: Measure | str = "corrected",
    sdr_size: tuple[int, int] = SDR_SIZE,
) -> Evaluation:
    """Score predictions, matched with examples by id, so in any order.

    threshold: of heatmaps, as a share of their maximum (``tune_threshold`` chooses one); ranked boxes need none.
    metrics: arithmetic and truth (``Measure``), or the name of the arithmetic. sdr_size: width and height in
    pixels of the images that distances are given in. Raises BadInput as ``grounding.predictions.match`` does,
    and where heatmaps have no threshold.
    """
    measure = _as_measure(metrics)
    level = None if threshold is None else check_threshold(threshold)
    pairs, items = match(examples, predictions)
    per_phrase = phrase_table(items, level, measure)
    of_example = per_phrase.groupby("example")["iou"].agg(["mean", "size"])
    rows = [_example_row(example, prediction, sdr_size) for example, prediction in pairs]
    per_example = _without_gaps(pd.DataFrame(rows))
    per_example["mean_iou"] = per_example["id"].map(of_example["mean"]).astype(float)
    per_example["phrases"] = per_example["id"].map(of_example["size"]).fillna(0).astype(int)
    lost = predictions if isinstance(predictions, Predictions) else Predictions()
    return Evaluation(per_example, per_phrase, measure, threshold, tuple(lost.skipped), tuple(lost.dropped_phrases))


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
) -> Evaluation:
    """``predict`` and ``score`` batch by batch: the same tables, in memory that does not grow with heatmaps."""
    check_examples(examples)
    parts, left_out = [], Predictions()
    for chunk, predictions in predict_batches(model, examples, batch_size, device, progress, skip_bad):
        if predictions:
            parts.append(score(chunk, predictions, threshold, metrics, sdr_size))
        predictions.clear()
        left_out.add(predictions)
    if not parts:
        raise BadInput(f"all {len(examples)} examples were skipped: nothing is left to evaluate")
    per_example = _without_gaps(pd.concat([part.per_example for part in parts], ignore_index=True))
    per_phrase = pd.concat([part.per_phrase for part in parts], ignore_index=True)
    lost = tuple(left_out.skipped), tuple(left_out.dropped_phrases)
    return Evaluation(per_example, per_phrase, parts[0].measure, threshold, *lost)


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
    row: dict[str, object] = {"id": example.id, "split": example.split}
    row |= {f"group_{name}": value for name, value in example.groups.items()}
    if isinstance(example.task, ReferenceGame):
        row |= {
            "task": "game",
            "answer_index": int(prediction.answer),  # type: ignore[arg-type]
            "answer_x": np.nan,
            "answer_y": np.nan,
        }
        distance = np.nan
    else:
        x, y = np.asarray(prediction.answer, dtype=np.float64)
        row |= {"task": "sdr", "answer_index": -1, "answer_x": x, "answer_y": y}
        distance = sdr_distances(np.array([[x, y]]), np.array([example.task.target_xy]), sdr_size)[0]
    return row | {"correct": bool(prediction.correct), "score": prediction.score, "distance": distance}
