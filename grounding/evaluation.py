"""Scored predictions, as tidy tables, and the figures that are read off them, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from grounding.benchmarks.base import Skipped
from grounding.metrics.heatmaps import Threshold
from grounding.metrics.intervals import RESAMPLES, Estimate, bootstrap_mean
from grounding.metrics.joint import PERMUTATIONS, Correlation, joint_view
from grounding.metrics.partial import partial_correlation
from grounding.metrics.phrases import Measure
from grounding.metrics.tasks import SDR_THRESHOLDS, nested_weights
from grounding.predictions import DROPPED

_GROUNDING_FIGURES = {
    "mean_iou": "iou",
    "mean_iou_any": "iou_any",
    "mean_iou_merged": "iou_merged",
    "recall@0.5": "hit",
    "pointing": "pointing",
}
COVARIATES = ("phrases", "words", "region_size")
GROUNDED_AT = 0.5  # mean IoU from which on an example counts as grounded


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scored predictions, as tidy tables.

    per_example: id, split, group_* (one a kind of group), task (game | sdr), answer_index (-1 for sdr), answer_x,
    answer_y (NaN for games), correct, score (higher is better), distance (pixels; NaN for games), words (in its
    caption); over its phrases (NaN without any): mean_iou, region_size (mean share of the image); phrases (how many
    are scored).
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
        pearson, spearman (task score) and point_biserial (task success), as ``Correlation``, and pearson_partial:
        given the number of phrases, the words of the caption and the size of the regions.
        """
        examples, phrases = self.per_example, self.per_phrase
        figures = _game_figures if (examples["task"] == "game").all() else _distance_figures
        estimates = figures(examples, resamples, seed)
        images = phrases["example"].map(dict(zip(examples["id"], examples["group_image"], strict=True)))
        for name, column in _GROUNDING_FIGURES.items():
            estimates[name] = bootstrap_mean(phrases[column], images, resamples=resamples, seed=seed)
        return estimates | self._joint("mean_iou", resamples, permutations, seed)

    def joint_table(self, resamples: int = RESAMPLES, permutations: int = PERMUTATIONS, seed: int = 0) -> pd.DataFrame:
        """Every correlation of ``summary`` under every way to measure grounding, since results hang on it.

        Columns: grounding (mean_iou, mean_iou_any, ..., pointing: means over an example's phrases), correlation,
        value, low, high, n, groups, reason, p.
        """
        rows = []
        for measure in _GROUNDING_FIGURES:
            found = self._joint(measure, resamples, permutations, seed)
            rows += [{"grounding": measure, "correlation": kind, **asdict(value)} for kind, value in found.items()]
        return pd.DataFrame(rows)

    def quadrants(self, threshold: float = GROUNDED_AT) -> pd.DataFrame:
        """How many examples solve the task or not (``correct``) and are grounded or not: four rows.

        Columns: correct, grounded (mean IoU of at least ``threshold``), count, share. Examples without phrases are out.
        """
        examples = self.per_example[self.per_example["phrases"] > 0]
        grounded = examples["mean_iou"] >= threshold
        sides = [(correct, ground) for correct in (True, False) for ground in (True, False)]
        counts = [int(((examples["correct"] == correct) & (grounded == ground)).sum()) for correct, ground in sides]
        table = pd.DataFrame(sides, columns=["correct", "grounded"])
        return table.assign(count=counts, share=np.array(counts) / max(len(examples), 1))

    def _joint(self, measure: str, resamples: int, permutations: int, seed: int) -> dict[str, Correlation]:
        """Correlations of the task with one way to measure grounding, over the examples that have phrases."""
        examples = self.per_example[self.per_example["phrases"] > 0]
        of_example = self.per_phrase.groupby("example")[_GROUNDING_FIGURES[measure]].mean()
        grounding = examples["id"].map(of_example).to_numpy(np.float64)
        score, success = (examples[name].to_numpy(np.float64) for name in ("score", "correct"))
        groups, covariates = examples["group_image"].to_numpy(), examples[list(COVARIATES)].to_numpy(np.float64)
        settings = (groups, resamples, permutations, seed)
        partial = partial_correlation(score, grounding, covariates, *settings)
        return joint_view(score, success, grounding, *settings) | {"pearson_partial": partial}

    def to_markdown(self, summary: Mapping[str, Estimate] | None = None) -> str:
        """The summary as a Markdown table (figure, value, 95 % interval, p, n, groups, note), and what was left out."""
        summary = self.summary() if summary is None else summary
        lines = ["| figure | value | 95 % interval | p | n | groups | note |", "|---|---|---|---|---|---|---|"]
        for name, figure in summary.items():
            p = figure.p if isinstance(figure, Correlation) else None
            interval = "" if figure.low is None else f"{figure.low:.3f} to {figure.high:.3f}"
            cells = (name, _number(figure.value), interval, _number(p, 4), str(figure.n), str(figure.groups))
            lines.append(f"| {' | '.join(cells)} | {figure.reason or ''} |")
        lines += ["", _quadrants_told(self.quadrants())]
        lines += ["", f"Metrics: {self.measure.mode}. {_told(self.threshold)}"]
        lines += [f"skipped {skip.id}: {skip.reason}" for skip in self.skipped]
        lines += [f"phrase {phrase} of {example} {DROPPED}" for example, phrase in self.dropped_phrases]
        return "\n".join(lines) + "\n"

    def to_json(self, summary: Mapping[str, Estimate] | None = None) -> dict[str, object]:
        """The same for machines: metrics, threshold, figures by name, quadrants, skipped, dropped_phrases."""
        summary = self.summary() if summary is None else summary
        chosen = isinstance(self.threshold, Threshold)
        return {
            "metrics": self.measure.mode,
            "threshold": asdict(self.threshold) if chosen else self.threshold,  # type: ignore[arg-type]
            "figures": {name: asdict(figure) for name, figure in summary.items()},
            "quadrants": self.quadrants().to_dict("records"),
            "skipped": [asdict(skip) for skip in self.skipped],
            "dropped_phrases": [{"example": example, "phrase": phrase} for example, phrase in self.dropped_phrases],
        }


def _quadrants_told(quadrants: pd.DataFrame) -> str:
    def told(correct: bool, grounded: bool, count: int) -> str:
        return f"{'right' if correct else 'wrong'} and {'grounded' if grounded else 'not'}: {count}"

    parts = [told(*row) for row in zip(*(quadrants[name] for name in ("correct", "grounded", "count")), strict=True)]
    return f"Task and grounding (mean IoU of at least {GROUNDED_AT:g}): {', '.join(parts)}."


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
