"""Outcome: do the activations tell whether the model will solve the task?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.metrics.intervals import Statistic
from probe.estimators import LogisticProbe
from probe.features import read_rows, require_finite, sites_with
from probe.questions.base import Judgement, Part, Question, Score
from probe.scores import ScoredPairs, as_statistic
from probe.settings import SweepSettings
from probe.tokens import read_tokens, token_counts

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo

_STRONG = (1000.0, 100.0)


class Outcome(Question):
    """Right or wrong, from the mean state of an example's phrases and, where tokens are stored, of its caption and of
    its image. Items are examples with a phrase and an answer.
    """

    name = "outcome"
    words = "will the model solve the task?"
    figure = "Area under the ROC curve:"
    shows = "the site tells which examples the model will solve."
    instead = "the more frequent outcome may be all that is known."
    per = "example"
    probes = ("linear",)
    controls = ("random-model",)
    scores = ("auc", "accuracy")

    def __init__(self, run: Run, settings: SweepSettings):
        super().__init__(run, settings)
        examples = run.examples
        answered = examples["task_score"].notna().to_numpy()
        self.example = np.flatnonzero(answered & np.isin(np.arange(len(examples)), run.phrases["example"]))
        self.target = examples["task_correct"].to_numpy(bool)[self.example]
        self.left_out = len(examples) - len(self.example)
        if len(np.unique(self.target)) < 2:
            told = "no answers" if not len(self.target) else f"all {'right' if self.target[0] else 'wrong'}"
            raise BadInput(
                f"question 'outcome': {told} in {len(self.target)} examples; accepted: some right, some wrong"
            )

    def sites(self) -> list[SiteInfo]:
        """Those with rows of phrases of their own; a partner's would only be said twice."""
        return [site for site in sites_with(self.run, ("phrase",)) if "phrase" in site.views]

    def widths(self, site: SiteInfo) -> tuple[int, ...]:
        """Channels of the phrases' mean, and of the means of the streams whose tokens are stored."""
        phrase = self.run.read(site.name, "phrase", rows=np.array([0])).shape[1]
        return phrase, *(site.width for _ in self._streams(site))

    def features(self, site: SiteInfo) -> np.ndarray:
        """Means side by side, float32 ``[n, D]``."""
        everyone = len(self.run.examples)
        means = [_means(read_rows(self.run, site.name, "phrase"), self.run.phrases["example"].to_numpy(), everyone)]
        counts = token_counts(self.run, site) if self._streams(site) else {}
        for stream in self._streams(site):
            owner = np.repeat(np.arange(everyone), counts[stream])
            means.append(_means(read_tokens(self.run, site, stream), owner, everyone))
        rows = np.concatenate([mean[self.example] for mean in means], 1)
        require_finite(rows, site.name)
        return rows

    def probe(self, name: str, widths: tuple[int, ...], seed: int) -> tuple[LogisticProbe, tuple[float, ...]]:
        """linear: logistic regression; a few hundred examples may need stronger penalties than their pairs do."""
        return LogisticProbe(device=self.settings.device), (*_STRONG, *self.settings.linear_strengths)

    def check_split(self, part: np.ndarray, seed: int) -> None:
        """Each part must hold both outcomes."""
        for name in np.unique(part):
            if len(np.unique(self.target[part == name])) < 2:
                raise BadInput(f"question 'outcome': one outcome only in the {name} part; extract more examples")

    def judge(self, probe: LogisticProbe, validation: Part, test: Part) -> tuple[Judgement, Judgement]:
        """Area under the ROC curve; accuracy, whose blind guess is the more frequent outcome."""
        return self._judged(probe, validation), self._judged(probe, test)

    def _judged(self, probe: LogisticProbe, part: Part) -> Judgement:
        odds, image, example = (
            probe.decision_function(part.features),
            self.image(part.chosen),
            self.example[part.chosen],
        )
        right = (probe.predict(part.features) == part.target).astype(float)
        rate = float(part.target.mean())
        scores = {
            "auc": Score(as_statistic(ScoredPairs(example, image, part.target, odds), "auc"), 0.5),
            "accuracy": Score(Statistic.mean(right, image), max(rate, 1 - rate)),
        }
        columns = {"example": example, "phrase": -1, "score": odds, "correct": right, "iou": np.nan}
        return Judgement(scores, pd.DataFrame(columns))

    def _streams(self, site: SiteInfo) -> list[str]:
        if "tokens" not in site.views:
            return []
        return [stream for stream in ("text", "image") if stream in site.streams]


def _means(rows: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """Mean of the rows ``[n, D]`` of each of ``count`` owners, zeros for one without: float32 ``[count, D]``."""
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, owner, rows)
    return (sums / np.maximum(np.bincount(owner, minlength=count), 1)[:, None]).astype(np.float32)
