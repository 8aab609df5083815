"""Task accuracy and grounding of a model with edits, and paired differences of two such measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grounding.evaluate import predictions_of
from grounding.metrics.intervals import Estimate, Statistic, paired_difference
from grounding.metrics.phrases import phrase_scores
from grounding.models.base import Batch
from grounding.predictions import match
from probe.interventions.live import Edit, Live

SCORES = ("accuracy", "mean_iou")


@dataclass(frozen=True)
class Outcome:
    """What came out, float64: of every example with a task whether it is right, of every phrase its IoU.

    example_image, phrase_image: the image group of each, which intervals resample.
    """

    correct: np.ndarray
    example_image: np.ndarray
    iou: np.ndarray
    phrase_image: np.ndarray

    def statistic(self, score: str) -> Statistic:
        """``accuracy`` or ``mean_iou``, for intervals."""
        values = {"accuracy": (self.correct, self.example_image), "mean_iou": (self.iou, self.phrase_image)}
        return Statistic.mean(*values[score])

    def value(self, score: str) -> float:
        """The figure itself."""
        return self.statistic(score).value()

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that there are values for."""
        return tuple(score for score, n in zip(SCORES, (len(self.correct), len(self.iou)), strict=True) if n)


def measure(
    live: Live,
    batches: Sequence[Batch],
    threshold: float | None,
    edits: Callable[[Batch], Sequence[Edit]] = lambda batch: (),
) -> Outcome:
    """Run batches with the edits of each. threshold: of heatmaps, as a share of their maximum."""
    correct, example_image, iou, phrase_image = [], [], [], []
    for batch in batches:
        output = live.run(batch, edits(batch))
        with torch.inference_mode():
            predictions = predictions_of(live.model, batch, output)
        pairs, items = match(batch.examples, predictions, live.model.answers_all)
        for example, prediction in pairs:
            if example.has_task:
                correct.append(bool(prediction.correct))
                example_image.append(example.groups["image"])
        if items:
            iou.append(phrase_scores(items, threshold, protocols=("all",))["iou"])
            phrase_image += [item.example.groups["image"] for item in items]
    return Outcome(
        np.array(correct, dtype=np.float64),
        np.array(example_image),
        np.concatenate([np.zeros(0), *iou]),
        np.array(phrase_image),
    )


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Example by example and phrase by phrase the mean of several measurements (draws of a control)."""
    first = outcomes[0]
    correct, iou = (np.mean([getattr(one, name) for one in outcomes], axis=0) for name in ("correct", "iou"))
    return Outcome(correct, first.example_image, iou, first.phrase_image)


def effect_rows(
    common: dict[str, Any], before: Outcome, changed: Outcome, control: Outcome, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of the tidy table: what the intervention did, what its control did, and the difference of both.

    Each effect is a difference over the same examples with a 95 % interval over images; ``before`` is the untouched
    model (for ``specific``, the control), ``after`` what it is compared with.
    """
    rows = []
    for score in before.scores:
        for condition, first, second in (
            ("intervention", before, changed),
            ("control", before, control),
            ("specific", control, changed),
        ):
            found = paired_difference(second.statistic(score), first.statistic(score), seed=seed)
            rows.append(common | effect_row(condition, score, first.value(score), second.value(score), found))
    return rows


def effect_row(condition: str, score: str, before: float, after: float, found: Estimate) -> dict[str, Any]:
    """One effect as columns of the tidy table."""
    return {
        "condition": condition,
        "score": score,
        "before": before,
        "after": after,
        "effect": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "n_images": found.groups,
    }
