"""How well scores of pairs tell what belongs, with bootstrap intervals over images.

Every score is a function of how often each image is drawn, so that a resample costs a product of small sparse
matrices; two conditions are compared on the same draws (a paired bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.intervals import Statistic as Resampled

SCORES = ("choice_accuracy", "average_precision", "auc")
RESAMPLES = 1000

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ScoredPairs:
    """n pairs with a score each. phrase: int64 ``[n]``. image: ``[n]`` labels. label: bool ``[n]``. score: ``[n]``."""

    phrase: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        if len({len(self.phrase), len(self.image), len(self.label), len(self.score)}) != 1:
            raise BadInput("phrase, image, label and score of scored pairs differ in length")
        if not np.isfinite(self.score).all():
            raise BadInput(f"{int((~np.isfinite(self.score)).sum())} of {len(self.score)} scores are not finite")

    @property
    def n_phrases(self) -> int:
        """Number of phrases asked about."""
        return len(np.unique(self.phrase))

    @property
    def n_images(self) -> int:
        """Number of images they are in."""
        return len(np.unique(self.image))


def as_statistic(pairs: ScoredPairs, score: str) -> Resampled:
    """A score of SCORES, ready to be resampled over images."""
    found = Resampled.of_weights(statistic(pairs, score), np.unique(pairs.image))
    # An image that is drawn twice ties each of its positives with its double, which raises the precision there.
    return replace(found, biased=score == "average_precision", bounds=(0.0, 1.0))


def chance(pairs: ScoredPairs, score: str) -> float:
    """What a blind guess scores: positives over candidates, averaged over phrases, for choice; the mean over all
    orders of the pairs for average precision; 0.5 for the ROC area."""
    if score == "choice_accuracy":
        phrase = np.unique(pairs.phrase, return_inverse=True)[1]
        return float((np.bincount(phrase, pairs.label) / np.bincount(phrase)).mean())
    if score == "average_precision":
        return _random_precision(int(pairs.label.sum()), len(pairs.label))
    if score == "auc":
        return 0.5
    raise unknown_choice("score", score, SCORES)


def _random_precision(positives: int, pairs: int) -> float:
    """Average precision of a random order, on average (Bestgen 2015, "Exact Expected Average Precision of the Random
    Baseline for System Evaluation"); NaN without positives.

    A positive at rank i has i - 1 pairs above it, each positive with probability a = (R - 1) / (N - 1): the mean over
    the ranks of (1 + a (i - 1)) / i. That is more than the share of positives R / N, by little for many pairs.

    >>> _random_precision(1, 2)
    0.75
    """
    if positives in (0, pairs):
        return 1.0 if positives else float("nan")
    share = (positives - 1) / (pairs - 1)
    return float(share + (1 - share) * (1 / np.arange(1, pairs + 1)).mean())


def statistic(pairs: ScoredPairs, score: str) -> Statistic:
    """A score as a function of image weights ``[R, G]`` (images sorted by label) -> ``[R]``."""
    builders = {"choice_accuracy": _choice, "average_precision": _precision, "auc": _auc}
    if score not in builders:
        raise unknown_choice("score", score, SCORES)
    return builders[score](pairs)


def choices(pairs: ScoredPairs) -> tuple[np.ndarray, np.ndarray]:
    """Whether each phrase's best-scored candidate belongs to it, in order of phrase number.

    Returns phrases ``[m]`` and correctness ``[m]`` in 0..1: where several candidates tie for the best, the share of
    them that belongs, so that a probe which cannot choose scores chance.
    """
    order = np.argsort(pairs.phrase, kind="stable")
    phrases, starts, counts = np.unique(pairs.phrase[order], return_index=True, return_counts=True)
    score, label = pairs.score[order], pairs.label[order]
    best = score == np.repeat(np.maximum.reduceat(score, starts), counts)
    return phrases, np.add.reduceat(best & label, starts, dtype=float) / np.add.reduceat(best, starts, dtype=float)


def margins(pairs: ScoredPairs) -> np.ndarray:
    """How much better the best candidate that belongs scores than the best that does not, ``[m]``, by phrase number.

    Of phrases that have both.
    """
    order = np.argsort(pairs.phrase, kind="stable")
    starts = np.unique(pairs.phrase[order], return_index=True)[1]
    score, label = pairs.score[order], pairs.label[order]
    own, other = (np.maximum.reduceat(np.where(side, score, -np.inf), starts) for side in (label, ~label))
    return own - other


def _choice(pairs: ScoredPairs) -> Statistic:
    _, correct = choices(pairs)
    first = np.unique(pairs.phrase, return_index=True)[1]
    image = np.unique(pairs.image, return_inverse=True)[1][first]
    hits, total = np.bincount(image, correct), np.bincount(image)
    return lambda weights: (weights @ hits) / (weights @ total)


@dataclass(frozen=True)
class _Ranking:
    """Pairs by images ``[L, G]`` at each of the L distinct scores that a positive has, best first.

    positive: positives of exactly that score. tied: negatives of exactly it. above: negatives better than it and
    worse than the level before. rest: negatives worse than the last level, ``[G]``.
    """

    positive: sparse.csr_array
    tied: sparse.csr_array
    above: sparse.csr_array
    rest: np.ndarray

    @classmethod
    def of(cls, pairs: ScoredPairs) -> _Ranking:
        names, image = np.unique(pairs.image, return_inverse=True)
        levels = np.unique(pairs.score[pairs.label])  # ascending
        below = np.searchsorted(levels, pairs.score, side="right") - 1  # the level at or under a score, -1: none
        level = len(levels) - 1 - below
        exact = (below >= 0) & (levels[np.maximum(below, 0)] == pairs.score)
        negative = ~pairs.label

        def table(chosen: np.ndarray) -> sparse.csr_array:
            places = (level[chosen], image[chosen])
            return sparse.csr_array((np.ones(chosen.sum()), places), shape=(len(levels), len(names)))

        return cls(
            positive=table(pairs.label),
            tied=table(negative & exact),
            above=table(negative & ~exact & (below >= 0)),
            rest=np.bincount(image[negative & (below < 0)], minlength=len(names)).astype(float),
        )


def _precision(pairs: ScoredPairs) -> Statistic:
    """Average precision: sum over thresholds of (recall gained) x precision, as scikit-learn defines it."""
    ranking = _Ranking.of(pairs)

    def value(weights: np.ndarray) -> np.ndarray:
        positive = ranking.positive @ weights.T  # [L, R]
        found = positive.cumsum(0)
        negative = ((ranking.tied + ranking.above) @ weights.T).cumsum(0)
        precision = np.divide(found, found + negative, out=np.zeros_like(found), where=found > 0)
        return (positive * precision).sum(0) / found[-1]

    return value


def _auc(pairs: ScoredPairs) -> Statistic:
    """Area under the ROC curve: how often a positive beats a negative, ties counting one half (Hanley and McNeil
    1982)."""
    ranking = _Ranking.of(pairs)

    def value(weights: np.ndarray) -> np.ndarray:
        positive, tied = ranking.positive @ weights.T, ranking.tied @ weights.T
        at_or_above = (tied + ranking.above @ weights.T).cumsum(0)
        negatives = at_or_above[-1] + weights @ ranking.rest
        wins = (positive * (negatives - at_or_above + tied / 2)).sum(0)
        return wins / (positive.sum(0) * negatives)

    return value
