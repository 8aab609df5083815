import re

import numpy as np
import pytest

from grounding.errors import BadInput
from grounding.metrics.intervals import Statistic, bootstrap, bootstrap_mean, bootstrap_weights
from grounding.metrics.joint import correlate


def naive_interval(values, groups, resamples, seed):
    """Group by group: the drawn groups' values are put together and averaged."""
    rng = np.random.default_rng(seed)
    labels = sorted(set(groups))
    members = [[v for v, g in zip(values, groups, strict=True) if g == label] for label in labels]
    means = []
    for _ in range(resamples):
        drawn = [members[number] for number in rng.integers(len(labels), size=len(labels))]
        means.append(np.mean([value for group in drawn for value in group]))
    return np.quantile(means, [0.025, 0.975])


def test_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    values, groups = rng.random(40), [f"image-{n}" for n in rng.integers(0, 9, 40)]
    estimate = bootstrap_mean(values, groups, resamples=200, seed=5)
    np.testing.assert_allclose((estimate.low, estimate.high), naive_interval(values, groups, 200, 5))
    assert (estimate.n, estimate.groups, estimate.reason) == (40, 9, None)
    assert estimate.value == pytest.approx(values.mean())


def test_mean_ratio_and_weights_agree():
    rng = np.random.default_rng(1)
    values, weights, groups = rng.random(30), rng.random(30), rng.integers(0, 7, 30)
    mean = bootstrap_mean(values, groups, weights, resamples=100)
    by_weights = bootstrap_weights(lambda w: (w * weights) @ values / (w @ weights), groups, resamples=100)
    assert (mean.value, mean.low, mean.high) == pytest.approx((by_weights.value, by_weights.low, by_weights.high))
    assert mean.value == pytest.approx(np.average(values, weights=weights))


def test_blocks_of_memory_do_not_change_the_numbers(monkeypatch):
    rng = np.random.default_rng(2)
    values, groups = rng.random(50), rng.integers(0, 20, 50)
    whole = bootstrap_mean(values, groups, resamples=300)
    monkeypatch.setattr("grounding.metrics.intervals._CHUNK", 90)  # a few resamples at a time
    assert bootstrap_mean(values, groups, resamples=300) == whole


def test_order_does_not_matter_and_the_seed_does():
    rng = np.random.default_rng(3)
    values, groups = rng.random(60), rng.integers(0, 12, 60)
    order = rng.permutation(60)
    first, shuffled = bootstrap_mean(values, groups), bootstrap_mean(values[order], groups[order])
    assert (first.low, first.high) == pytest.approx((shuffled.low, shuffled.high))
    assert bootstrap_mean(values, groups, seed=1).low != first.low


def test_coverage_with_dependent_values_in_groups():
    """Values of one image are nearly copies. Whole images drawn: about 95 %. Values drawn one by one: far less."""
    rng = np.random.default_rng(4)
    covered = {"images": 0, "values": 0}
    for _ in range(200):
        values = (rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 6))).ravel()
        for unit, groups in (("images", np.repeat(np.arange(40), 6)), ("values", np.arange(240))):
            estimate = bootstrap_mean(values, groups, resamples=300, seed=int(rng.integers(1 << 30)))
            covered[unit] += estimate.low <= 0 <= estimate.high
    assert 0.89 <= covered["images"] / 200 <= 0.99
    assert covered["values"] / 200 < 0.75


def test_few_groups_are_reported_not_invented():
    one = bootstrap_mean([1.0, 0.0], ["a", "a"])
    assert (one.value, one.low, one.high, one.groups) == (0.5, None, None, 1)
    assert "one group" in one.reason
    none = bootstrap_mean([], [])
    assert (none.value, none.low, none.n, none.reason) == (None, None, 0, "no values")


def test_undefined_statistics_are_reported():
    nowhere = bootstrap(
        {"": Statistic.of_sums(lambda sums: np.full(len(sums), np.nan), np.ones((4, 1)), [1, 2, 3, 4])}, resamples=9
    )[""]
    assert nowhere.value is None
    assert nowhere.reason == "undefined for these values"

    def drawn_once(sums):  # the first value: so in the sample, and in 42 % of the resamples
        return np.where(sums[:, 0] == 1, 1.0, np.nan)

    rarely = bootstrap({"": Statistic.of_sums(drawn_once, np.eye(4)[:, :1], [1, 2, 3, 4])}, resamples=400)[""]
    assert (rarely.value, rarely.low, rarely.high) == (1.0, None, None)
    assert re.fullmatch(r"undefined in [56]\d% of the resamples: no interval", rarely.reason)


def test_an_interval_is_not_made_of_the_resamples_that_happen_to_be_defined():
    """One example in forty is grounded: without it (36 % of the resamples) there is no correlation."""
    rng = np.random.default_rng(0)
    task, grounded, images = rng.normal(size=40), np.zeros(40), np.arange(40)
    grounded[int(task.argmax())] = 1.0
    one = correlate("pearson", task, grounded, images, resamples=400)
    assert (one.low, one.high) == (None, None)
    assert re.fullmatch(r"undefined in 3\d% of the resamples: no interval", one.reason)
    grounded[np.argsort(task)[-8:]] = 1.0
    several = correlate("pearson", task, grounded, images, resamples=400)
    assert several.low < several.value < several.high


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="1 group labels for 2 values"):
        bootstrap_mean([1.0, 2.0], ["a"])
    with pytest.raises(BadInput, match="1 numbers that are not finite"):
        bootstrap_mean([1.0, float("nan")], ["a", "b"])
    with pytest.raises(BadInput, match="no group label"):
        bootstrap_mean([1.0, 2.0], np.array(["a", None], dtype=object))
    with pytest.raises(BadInput, match="resamples 0"):
        bootstrap_mean([1.0], ["a"], resamples=0)
    with pytest.raises(BadInput, match="level 95"):
        bootstrap_mean([1.0], ["a"], level=95)
    with pytest.raises(BadInput, match="weights"):
        bootstrap_mean([1.0, 2.0], ["a", "b"], weights=[1.0])
