"""Boxes: where in its image is the phrase, from its vector alone?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_convert

from grounding.metrics.boxes import hits, merged_boxes, ranked_ious
from grounding.metrics.intervals import Statistic
from probe.estimators import MLPRegressorProbe, RidgeProbe
from probe.features import read_rows, require_finite, sites_with
from probe.questions.base import Judgement, Part, Question, Score
from probe.questions.truth import annotated_phrases, phrase_boxes, single_images
from probe.settings import PROBES, SweepSettings

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

# Weaker penalties than pairs need: the squares of numbers in 0..1 are small.
_WEAK = {"linear": (1e-3, 1e-4), "mlp": (0.3, 0.1)}


class Boxes(Question):
    """Regression of the box round a phrase's regions, relative to their own candidate image, from its mean state.

    Which candidate of a game it is in is not asked. A blind guess is the mean box of train.
    """

    name = "boxes"
    words = "where in its own image is the phrase, as a box, told from its vector alone?"
    figure = "Mean IoU of the predicted box with the phrase's boxes:"
    shows = "the phrase's vector holds where its region is (in its image; which candidate was not asked)."
    instead = "where boxes usually are may be all that is known."
    probes = PROBES
    controls = ("random-model",)
    scores = ("iou", "recall")

    def __init__(self, run: Run, settings: SweepSettings):
        super().__init__(run, settings)
        self.phrase = annotated_phrases(run)
        self.example = run.phrases["example"].to_numpy()[self.phrase]
        self.truth = phrase_boxes(run, self.phrase)  # [n, G, 4]
        self.target = box_convert(merged_boxes(self.truth)[:, 0], "xyxy", "cxcywh").numpy()
        self.left_out = len(run.phrases) - len(self.phrase)
        self.own_measure = single_images(run)  # the model's own boxes choose a candidate too

    def sites(self) -> list[SiteInfo]:
        """Those with rows of phrases of their own; a partner's would only be said twice."""
        return [site for site in sites_with(self.run, ("phrase",)) if "phrase" in site.views]

    def widths(self, site: SiteInfo) -> tuple[int, ...]:
        """Channels of phrase rows."""
        return (self.run.read(site.name, "phrase", rows=np.array([0])).shape[1],)

    def features(self, site: SiteInfo) -> np.ndarray:
        """Phrase rows, float32 ``[n, D]``."""
        rows = read_rows(self.run, site.name, "phrase")[self.phrase]
        require_finite(rows, site.name)
        return rows

    def probe(self, name: str, widths: tuple[int, ...], seed: int) -> tuple[Any, tuple[float, ...]]:
        """linear: ridge; mlp: a perceptron."""
        device = self.settings.device
        if name == "linear":
            return RidgeProbe(device=device), (*self.settings.linear_strengths, *_WEAK[name])
        batch = min(200, max(16, len(self.phrase) // 50))  # some thirty steps an epoch, of few phrases too
        perceptron = MLPRegressorProbe(
            (64,), learning_rate=3e-3, batch_size=batch, max_epochs=100, patience=10, seed=seed, device=device
        )
        return perceptron, (*self.settings.mlp_strengths, *_WEAK[name])

    def judge(self, probe: Any, validation: Part, test: Part) -> tuple[Judgement, Judgement]:
        """IoU of the predicted box with the union of the phrase's boxes; recall (IoU of at least 0.5)."""
        return self._judged(probe, validation), self._judged(probe, test)

    def _judged(self, probe: Any, part: Part) -> Judgement:
        truth = self.truth[part.chosen]
        iou = _ious(probe.predict(part.features), truth)
        blind = _ious(np.broadcast_to(probe.target_mean_, part.target.shape), truth)
        found, guessed = ({"iou": v, "recall": hits(torch.from_numpy(v)).double().numpy()} for v in (iou, blind))
        image = self.image(part.chosen)
        scores = {name: Score(Statistic.mean(found[name], image), float(guessed[name].mean())) for name in self.scores}
        columns = {"example": self.example[part.chosen], "phrase": self.phrase[part.chosen], "score": np.nan}
        return Judgement(scores, pd.DataFrame(columns | {"correct": found["recall"], "iou": iou}))


def _ious(boxes_cxcywh: np.ndarray, truth: Tensor) -> np.ndarray:
    """IoU of each box ``[n, 4]`` with the union of its truths ``[n, G, 4]``; a box ends where the image does."""
    boxes = _xyxy(boxes_cxcywh).clamp(0, 1)
    return ranked_ious(boxes[:, None], truth)[:, 0].numpy()


def _xyxy(boxes_cxcywh: np.ndarray) -> Tensor:
    boxes = torch.tensor(np.asarray(boxes_cxcywh), dtype=torch.float64)
    boxes[:, 2:].clamp_(min=0)
    return box_convert(boxes, "cxcywh", "xyxy")
