from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from grounding.errors import BadInput
from grounding.metrics.intervals import bootstrap, difference, paired_difference, resampled
from probe.scores import SCORES, ScoredPairs, as_statistic, chance, choices, margins, statistic


def estimate(pairs, score, resamples=1000):
    return bootstrap({score: as_statistic(pairs, score)}, resamples)[score]


def estimate_difference(first, second, score):
    return paired_difference(as_statistic(first, score), as_statistic(second, score), 1000)


def _by_hand():
    """Two images; phrases 0 and 1 in the first, 2 in the second; three candidates each."""
    return ScoredPairs(
        phrase=np.repeat([0, 1, 2], 3),
        image=np.array(["a"] * 6 + ["b"] * 3),
        label=np.array([1, 0, 0, 1, 1, 0, 0, 0, 1], dtype=bool),
        score=np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.7, 0.5, 0.6, 0.4]),
    )


def _random(n_phrases=60, candidates=7, levels=None, seed=0):
    random = np.random.default_rng(seed)
    label = np.arange(n_phrases * candidates) % candidates < random.integers(1, 4, n_phrases).repeat(candidates)
    score = random.standard_normal(len(label)) + label
    if levels is not None:
        score = np.round(score * levels)
    phrase = np.arange(n_phrases).repeat(candidates)
    shuffled = random.permutation(len(label))
    return ScoredPairs(phrase[shuffled], (phrase // 4)[shuffled], label[shuffled], score[shuffled])


def test_choice_accuracy_by_hand():
    pairs = _by_hand()
    phrases, correct = choices(pairs)
    np.testing.assert_array_equal(phrases, [0, 1, 2])
    np.testing.assert_array_equal(correct, [1, 1, 0])
    found = estimate(pairs, "choice_accuracy", resamples=500)
    assert found.value == pytest.approx(2 / 3)
    # Draws are {a, a}, {a, b}, {b, b}: 4/4, 2/3 and 0/2.
    assert (found.low, found.high) == (0.0, 1.0)
    np.testing.assert_allclose(margins(pairs), [0.7, 0.1, -0.2])
    assert statistic(pairs, "choice_accuracy")(np.array([[1.0, 3.0], [2.0, 0.0]])) == pytest.approx([2 / 5, 1.0])


def test_chance_by_hand():
    assert chance(_by_hand(), "choice_accuracy") == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)
    assert chance(_by_hand(), "auc") == 0.5


@pytest.mark.parametrize(("positives", "pairs"), [(1, 1), (1, 2), (1, 6), (4, 9), (5, 6), (6, 6)])
def test_chance_of_average_precision_is_its_mean_over_all_orders(positives, pairs):
    scores = np.arange(pairs, 0, -1)
    orders = [np.isin(np.arange(pairs), found) for found in combinations(range(pairs), positives)]
    expected = np.mean([average_precision_score(label, scores) for label in orders])
    one = np.zeros(pairs, dtype=int)
    assert chance(ScoredPairs(one, one, orders[0], scores), "average_precision") == pytest.approx(expected)
    assert np.isnan(chance(ScoredPairs(one, one, one > 0, scores), "average_precision"))


def test_auc_and_average_precision_by_hand():
    pairs = _by_hand()
    # Order of labels by falling score: 1 1 0 0 0 1 1 0 0; the positives beat 5, 5, 2 and 2 of 5 negatives.
    assert estimate(pairs, "auc", 10).value == pytest.approx(14 / 20)
    assert estimate(pairs, "average_precision", 10).value == pytest.approx((1 + 1 + 3 / 6 + 4 / 7) / 4)


def test_ties_share_the_choice_whatever_the_order_of_candidates():
    pairs = _by_hand()
    for order in (np.arange(9), np.arange(9)[::-1]):
        tied = ScoredPairs(pairs.phrase[order], pairs.image[order], pairs.label[order], np.zeros(9))
        assert estimate(tied, "choice_accuracy", 10).value == pytest.approx(chance(pairs, "choice_accuracy"))
        assert estimate(tied, "auc", 10).value == 0.5
        assert estimate(tied, "average_precision", 10).value == pytest.approx(4 / 9)  # one threshold: less than chance


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize(
    ("score", "reference"), [("auc", roc_auc_score), ("average_precision", average_precision_score)]
)
def test_scores_equal_scikit_learn_with_weights_and_ties(score, reference, levels):
    pairs = _random(levels=levels)
    images, code = np.unique(pairs.image, return_inverse=True)
    weights = np.random.default_rng(1).integers(0, 4, (5, len(images))).astype(float)
    expected = [reference(pairs.label, pairs.score, sample_weight=row[code]) for row in weights]
    np.testing.assert_allclose(statistic(pairs, score)(weights), expected)


@pytest.mark.parametrize("score", SCORES)
def test_order_of_pairs_does_not_matter(score):
    pairs = _random(levels=2)
    back = ScoredPairs(pairs.phrase[::-1], pairs.image[::-1], pairs.label[::-1], pairs.score[::-1])
    assert estimate(pairs, score, 50) == estimate(back, score, 50)


@pytest.mark.parametrize("score", SCORES)
def test_random_scores_are_at_chance_in_most_repeats(score):
    inside = 0
    for seed in range(60):
        pairs = _random(80, seed=seed)
        blind = ScoredPairs(
            pairs.phrase, pairs.image, pairs.label, np.random.default_rng(1000 + seed).random(len(pairs.label))
        )
        found = estimate(blind, score, 200)
        inside += found.low <= chance(blind, score) <= found.high
    assert inside >= 50  # 57 expected at 95 %; a percentile interval of 20 images is a little narrow


def test_resamples_of_average_precision_are_around_its_value_although_images_drawn_twice_raise_it():
    pairs = _random()
    noise = np.random.default_rng(1).random(len(pairs.label))
    blind = as_statistic(ScoredPairs(pairs.phrase, pairs.image, pairs.label, noise), "average_precision")
    plain = replace(blind, biased=False)
    assert resampled({"": plain})[""].mean() > blind.value() + 0.005
    for figure in (blind, difference(blind, as_statistic(pairs, "auc"))):
        assert resampled({"": figure})[""].mean() == pytest.approx(figure.value())


def test_intervals_stay_within_what_a_score_can_be():
    phrase, random = np.repeat(np.arange(12), 5), np.random.default_rng(4)
    label = np.tile(np.arange(5) == 0, 12)
    good = ScoredPairs(phrase, phrase, label, label + random.normal(0, 0.4, 60))
    found = as_statistic(good, "average_precision")
    loose = replace(found, bounds=(-np.inf, np.inf))
    assert resampled({"": loose})[""].max() > 1
    assert resampled({"": found})[""].max() <= 1
    worst = as_statistic(replace(good, score=-good.score), "average_precision")
    assert difference(found, worst).bounds == (-1, 1)


def test_paired_difference_is_tighter_than_two_intervals():
    pairs = _random(200)
    random = np.random.default_rng(5)
    close = ScoredPairs(pairs.phrase, pairs.image, pairs.label, pairs.score + 0.1 * random.standard_normal(1400))
    same = estimate_difference(pairs, pairs, "choice_accuracy")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    for score in SCORES:
        alone, paired = estimate(pairs, score), estimate_difference(pairs, close, score)
        assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_bad_input_is_named():
    pairs = _by_hand()
    with pytest.raises(BadInput, match="score 'f1' is unknown; accepted: choice_accuracy"):
        estimate(pairs, "f1")
    with pytest.raises(BadInput, match="score 'f1' is unknown"):
        chance(pairs, "f1")
    with pytest.raises(BadInput, match="1 of 9 scores are not finite"):
        ScoredPairs(pairs.phrase, pairs.image, pairs.label, np.r_[np.nan, pairs.score[1:]])
    with pytest.raises(BadInput, match="differ in length"):
        ScoredPairs(pairs.phrase[:3], pairs.image, pairs.label, pairs.score)
    with pytest.raises(BadInput, match="same images"):
        estimate_difference(pairs, _random(), "auc")
