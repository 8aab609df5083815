"""p-values and Holm's correction, and whether intervals and p-values keep what they promise under the null."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests

from grounding.metrics.intervals import difference, estimated, resampled
from probe.scores import SCORES, ScoredPairs, as_statistic, chance
from probe.significance import holm, p_above, with_holm

REPEATS = 200


def test_p_counts_draws_at_or_below_the_reference_and_the_figure_itself():
    drawn = np.array([0.1, 0.2, 0.3, np.nan, 0.4])
    assert p_above(drawn, 0.2) == 3 / 5
    assert p_above(drawn, 0.05) == 1 / 5
    assert np.isnan(p_above(np.empty(0)))


def test_holm_is_that_worked_by_hand_within_each_family():
    table = pd.DataFrame(
        {
            "site": ["a", "b", "c", "a", "b", "c"],
            "probe": ["linear"] * 3 + ["mlp"] * 3,
            "p": [0.01, 0.04, 0.03, 0.2, np.nan, 0.04],
        }
    )
    found = with_holm(table, ["p"], ["probe"])
    assert list(found.columns) == ["site", "probe", "p", "p_holm"]
    # 3 x 0.01; then 2 x 0.03; then 1 x 0.04, raised to the one before. Of two known ones: 2 x 0.04, then 0.2.
    np.testing.assert_allclose(found["p_holm"], [0.03, 0.06, 0.06, 0.2, np.nan, 0.08])


@pytest.mark.parametrize("count", [1, 2, 40])
def test_holm_is_that_of_statsmodels(count):
    p = np.random.default_rng(count).choice([0.001, 0.01, 0.02, 0.3, 1.0], count)  # with ties
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def null_pairs(random, images=40, phrases=3, candidates=6):
    """Scores that say nothing, but are alike for the phrases of an image."""
    phrase = np.repeat(np.arange(images * phrases), candidates)
    image = phrase // phrases
    shared = random.standard_normal((images, candidates))[image, np.tile(np.arange(candidates), images * phrases)]
    score = shared + 0.5 * random.standard_normal(len(phrase))
    label = np.zeros((images * phrases, candidates), dtype=bool)
    label[np.arange(len(label)), random.integers(candidates, size=len(label))] = True
    return ScoredPairs(phrase, image.astype(str), label.ravel(), score)


@pytest.mark.parametrize("score", SCORES)
def test_intervals_cover_chance_and_p_values_reject_as_often_as_they_say_and_find_a_signal(score):
    covered, rejected = 0, 0
    for seed in range(REPEATS):
        pairs = null_pairs(np.random.default_rng(seed))
        figure = as_statistic(pairs, score)
        drawn = resampled({"": figure}, 400, seed)[""]
        found, blind = estimated(figure, drawn), chance(pairs, score)
        covered += found.low <= blind <= found.high
        rejected += p_above(drawn, blind) <= 0.05
    # What a fair coin of that side lands on in all but one of a thousand runs of this test.
    assert binom.ppf(0.0005, REPEATS, 0.95) <= covered <= binom.ppf(0.9995, REPEATS, 0.95)
    fewest = 0 if score == "average_precision" else binom.ppf(0.0005, REPEATS, 0.05)  # its p errs on the large side
    assert fewest <= rejected <= binom.ppf(0.9995, REPEATS, 0.05)
    better = ScoredPairs(pairs.phrase, pairs.image, pairs.label, pairs.score + pairs.label)
    assert p_above(resampled({"": as_statistic(better, score)}, 400)[""], chance(better, score)) < 0.01


@pytest.mark.parametrize("score", SCORES)
def test_p_of_a_paired_difference_rejects_as_often_as_it_says_and_finds_a_real_one(score):
    rejected = 0
    for seed in range(REPEATS):
        random = np.random.default_rng(seed)
        pairs = null_pairs(random)
        other = ScoredPairs(pairs.phrase, pairs.image, pairs.label, random.standard_normal(len(pairs.score)))
        rejected += _p(score, pairs, other, seed) <= 0.05
    assert binom.ppf(0.0005, REPEATS, 0.05) <= rejected <= binom.ppf(0.9995, REPEATS, 0.05)
    better = ScoredPairs(pairs.phrase, pairs.image, pairs.label, other.score + 2 * pairs.label)
    assert _p(score, better, other, 0) < 0.01


def _p(score, first, second, seed):
    figures = [as_statistic(pairs, score) for pairs in (first, second)]
    return p_above(resampled({"": difference(*figures)}, 400, seed)[""])
