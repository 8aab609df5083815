"""Scored predictions, as tidy tables, and the figures that are read off them, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from grounding import evaluation_text
from grounding.benchmarks.base import Skipped
from grounding.figures import (
    covariates_of,
    grounding_statistics,
    groundings_by_setting,
    joint_statistics,
    linked_examples,
    task_columns,
    task_statistics,
)
from grounding.grounded import GROUNDED_AT
from grounding.metrics.bars import BARS, success_bars
from grounding.metrics.heatmaps import Threshold
from grounding.metrics.intervals import RESAMPLES, Estimate, Statistic, bootstrap
from grounding.metrics.joint import PERMUTATIONS, Correlation, correlations
from grounding.metrics.measure import Measure
from grounding.metrics.partial import partial_correlations
from grounding.overlap import Overlap
from grounding.predictions import DROPPED

SETTINGS_RESAMPLES = 2_000  # resamples, and permutations, where there is a correlation for every setting


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scored predictions, as tidy tables.

    per_example: id, split, group_* (one a kind of group), task (game | sdr), has_task (not of one candidate alone),
    answered (is there an answer to it; if not, what follows is empty, and not correct), answer_index (-1 for sdr),
    answer_x, answer_y (NaN for games), correct, score (higher is better), distance (pixels; NaN for games), caption_id,
    propagated (of sdr), words (in its caption); over its phrases (NaN without any): mean_iou, region_size (mean share
    of the image); phrases (how many are scored).
    per_phrase: see ``grounding.metrics.phrases.phrase_table``, with average_precision (of ranked boxes, else NaN);
    phrases without regions have no row.
    sensitivity: see ``grounding.metrics.sensitivity.sensitivity_table``.
    threshold: that of heatmaps, with the split it was chosen on where it was chosen.
    skipped, dropped_phrases: see ``Predictions``. overlap: of the images with those that the model was trained on.
    about: whose predictions on what these are, JSON values (``evaluate_checkpoint``); empty where it is not known.
    """

    per_example: pd.DataFrame
    per_phrase: pd.DataFrame
    measure: Measure
    threshold: Threshold | float | None
    skipped: tuple[Skipped, ...] = ()
    dropped_phrases: tuple[tuple[str, str], ...] = ()
    sensitivity: pd.DataFrame = field(default_factory=pd.DataFrame)
    overlap: Overlap | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # resampling takes long: once

    def statistics(self) -> dict[str, Statistic]:
        """The figures of ``summary`` that are defined, as functions of resampled images."""
        examples = self.per_example
        found = task_statistics(examples) | grounding_statistics(examples, self.per_phrase, self.sensitivity)
        return found | joint_statistics(examples)

    def summary(
        self, resamples: int = RESAMPLES, permutations: int = PERMUTATIONS, seed: int = 0
    ) -> dict[str, Estimate]:
        """Figures with 95 % intervals over images (``group_image``), by name.

        Games: accuracy, and accuracy_nested where annotations and tangrams are known (resampling tangrams).
        Spatial description: mean_distance, accuracy@40px, @80px, @120px, also of the examples that are not propagated
        (_main) and those that are (_propagated), and consistency@40px, ... (resampling captions). Where the model
        answers some examples and not others, those others are wrong; mean_distance is of those answered.
        Grounding, over phrases: mean_iou, mean_iou_any, mean_iou_merged, and the share with an IoU of 0.5 or more as
        recall@1, recall_any@1, recall_merged@1, of ranked boxes also @5, @10, @all, and average_precision; pointing.
        Over examples with phrases and an answer, against mean_iou: pearson, spearman (task score) and point_biserial
        (task success), as ``Correlation``, and pearson_partial: given the number of phrases, the words of the caption
        and the size of the regions; without any such examples, each says that it is undefined.
        """
        settings = (resamples, permutations, seed)
        return dict(self._once("summary", settings, lambda: self._summary(*settings)))

    def _summary(self, resamples: int, permutations: int, seed: int) -> dict[str, Estimate]:
        found = task_statistics(self.per_example)
        found |= grounding_statistics(self.per_example, self.per_phrase, self.sensitivity)
        examples = linked_examples(self.per_example)
        groundings = examples[["mean_iou"]].to_numpy(np.float64)
        linked = _correlations(examples, groundings, resamples, permutations, seed)
        return bootstrap(found, resamples, seed) | {kind: values[0] for kind, values in linked.items()}

    def _once(self, name: str, settings: tuple[int, ...], make: Callable[[], Any]) -> Any:
        if (name, settings) not in self._known:
            self._known[name, settings] = make()
        return self._known[name, settings]

    def joint_table(
        self, resamples: int = SETTINGS_RESAMPLES, permutations: int = SETTINGS_RESAMPLES, seed: int = 0
    ) -> pd.DataFrame:
        """Every correlation of ``summary`` under every way to measure grounding, since results hang on it.

        Columns: grounding (mean_iou, recall, pointing: means over an example's phrases); protocol, boxes and threshold
        as in ``sensitivity`` ('' and NaN for pointing); correlation, value, low, high, n, groups, reason, p.
        """
        settings = (resamples, permutations, seed)
        return self._once("joint", settings, lambda: self._joint_table(*settings)).copy()

    def _joint_table(self, resamples: int, permutations: int, seed: int) -> pd.DataFrame:
        examples = linked_examples(self.per_example)
        settings, groundings = groundings_by_setting(examples, self.sensitivity)
        pointing = examples["id"].map(self.per_phrase.groupby("example")["pointing"].mean()).to_numpy(np.float64)
        settings.loc[len(settings)] = ["pointing", "", "", np.nan]
        groundings = np.column_stack([groundings, pointing])
        found = _correlations(examples, groundings, resamples, permutations, seed)
        rows = [
            {**setting, "correlation": kind, **asdict(values[number])}
            for number, setting in enumerate(settings.to_dict("records"))
            for kind, values in found.items()
        ]
        return pd.DataFrame(rows)

    def quadrants(self, threshold: float = GROUNDED_AT) -> pd.DataFrame:
        """How many examples solve the task or not (``correct``) and are grounded or not: four rows.

        Columns: correct, grounded (mean IoU of at least ``threshold``), count, share. Examples without phrases, or
        without an answer, are out.
        """
        examples = linked_examples(self.per_example)
        grounded = examples["mean_iou"] >= threshold
        sides = [(correct, ground) for correct in (True, False) for ground in (True, False)]
        counts = [int(((examples["correct"] == correct) & (grounded == ground)).sum()) for correct, ground in sides]
        table = pd.DataFrame(sides, columns=["correct", "grounded"])
        return table.assign(count=counts, share=np.array(counts) / max(len(examples), 1))

    def bars(self, bars: int = BARS) -> pd.DataFrame:
        """Task success by mean IoU, as in the study's bar chart: see ``success_bars``."""
        examples = linked_examples(self.per_example)
        return success_bars(examples["mean_iou"].to_numpy(), examples["correct"].to_numpy(), bars)

    def restricted(self, examples: set[str], phrases: set[tuple[str, str]], answered: set[str]) -> Evaluation:
        """The same over some examples and some (example id, phrase id) only; means over phrases are taken anew.

        answered: the examples that still count as answered.
        """

        def kept(table: pd.DataFrame) -> pd.DataFrame:
            pairs = zip(table["example"], table["phrase"], strict=True)
            inside = [pair[0] in examples and pair in phrases for pair in pairs]
            return table[np.array(inside, dtype=bool)].reset_index(drop=True)

        per_phrase = kept(self.per_phrase)
        of_example = self.per_example[self.per_example["id"].isin(examples)].reset_index(drop=True)
        of_example = with_phrase_means(of_example, per_phrase)
        of_example["answered"] &= of_example["id"].isin(answered)
        return replace(self, per_example=of_example, per_phrase=per_phrase, sensitivity=kept(self.sensitivity))

    def without_boxes(self) -> int:
        """Phrases for which a model that ranks boxes has none."""
        return int((self.per_phrase["predicted_image_index"] < 0).sum())

    def to_markdown(self, summary: Mapping[str, Estimate] | None = None) -> str:
        """The summary as a Markdown table (figure, value, 95 % interval, p, n, groups, note), and what was left out."""
        lines = evaluation_text.figure_lines(self.summary() if summary is None else summary)
        if not linked_examples(self.per_example).empty:
            lines += ["", evaluation_text.quadrants_told(self.quadrants(), GROUNDED_AT)]
        lines += ["", *evaluation_text.about_lines(self.about)]
        lines += [f"Metrics: {self.measure.mode}. {evaluation_text.threshold_told(self.threshold)}"]
        lines += [] if self.overlap is None else [self.overlap.told()]
        lines += self._unanswered_told()
        if boxless := self.without_boxes():
            lines += [f"{boxless} phrases have no box from the model: their IoU is 0"]
        lines += [f"skipped {skip.id}: {skip.reason}" for skip in self.skipped]
        lines += [f"phrase {phrase} of {example} {DROPPED}" for example, phrase in self.dropped_phrases]
        return "\n".join(lines) + "\n"

    def _unanswered_told(self) -> list[str]:
        """How many examples have no task, and how many with one have no answer; nothing where all have both."""
        tasks, answered = (self.per_example[name] for name in ("has_task", "answered"))
        without, silent = int((~tasks).sum()), int((tasks & ~answered).sum())
        lines = [f"{without} examples have no task: their grounding counts alone"] if without else []
        if silent and not answered.any():
            return [*lines, f"{silent} examples have no answer: their grounding counts alone"]
        told = "have no answer: wrong in the task's figures, left out of correlations and quadrants"
        return [*lines, f"{silent} examples {told}"] if silent else lines

    def to_json(self, summary: Mapping[str, Estimate] | None = None) -> dict[str, object]:
        """The same for machines: about, metrics, threshold, figures by name, quadrants, overlap, what was left out."""
        summary = self.summary() if summary is None else summary
        chosen = isinstance(self.threshold, Threshold)
        return {
            "about": dict(self.about),
            "metrics": self.measure.mode,
            "threshold": asdict(self.threshold) if chosen else self.threshold,  # type: ignore[arg-type]
            "figures": {name: asdict(figure) for name, figure in summary.items()},
            "quadrants": self.quadrants().to_dict("records"),
            "overlap": None if self.overlap is None else asdict(self.overlap),
            "unanswered": int((~self.per_example["answered"]).sum()),
            "without_boxes": self.without_boxes(),
            "skipped": [asdict(skip) for skip in self.skipped],
            "dropped_phrases": [{"example": example, "phrase": phrase} for example, phrase in self.dropped_phrases],
        }


def with_phrase_means(per_example: pd.DataFrame, per_phrase: pd.DataFrame) -> pd.DataFrame:
    """The examples with mean_iou, region_size (NaN without phrases) and phrases, as ``per_phrase`` has them."""
    of_example = per_phrase.groupby("example").agg(
        mean_iou=("iou", "mean"), region_size=("region_size", "mean"), phrases=("iou", "size")
    )
    found = {name: per_example["id"].map(of_example[name]).astype(float) for name in of_example}
    return per_example.assign(**{**found, "phrases": found["phrases"].fillna(0).astype(int)})


def _correlations(
    examples: pd.DataFrame, groundings: np.ndarray, resamples: int, permutations: int, seed: int
) -> dict[str, list[Correlation]]:
    """Every kind of correlation of the task with each column of grounding ``[E, S]``."""
    settings = (examples["group_image"].to_numpy(), resamples, permutations, seed)
    found = {kind: correlations(kind, task, groundings, *settings) for kind, task in task_columns(examples).items()}
    score, covariates = examples["score"].to_numpy(np.float64), covariates_of(examples)
    return found | {"pearson_partial": partial_correlations(score, groundings, covariates, *settings)}
