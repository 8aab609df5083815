import numpy as np
import pytest

from grounding.errors import BadInput
from grounding.metrics.joint import correlate
from grounding.metrics.partial import partial_correlations

FAST = {"resamples": 400, "permutations": 400}


def partial_correlation(task, grounding, covariates, groups, **settings):
    return partial_correlations(task, grounding[:, None], covariates, groups, **settings)[0]


def confounded(n=400, direct=0.0, seed=0):
    """Task and grounding that a common cause moves, and a direct link of some strength beside it."""
    rng = np.random.default_rng(seed)
    cause, size = rng.integers(2, 6, n).astype(float), rng.random(n)
    grounding = 0.3 * cause - size + rng.normal(0, 0.2, n)
    task = 0.5 * cause + size + direct * grounding + rng.normal(0, 0.3, n)
    return task, grounding, np.column_stack([cause, size]), np.arange(n) // 2


def test_a_common_cause_alone_leaves_nothing_and_a_direct_link_stays():
    task, grounding, covariates, groups = confounded()
    assert correlate("pearson", task, grounding, groups, **FAST).low > 0.2
    partial = partial_correlation(task, grounding, covariates, groups, **FAST)
    assert partial.low < 0 < partial.high
    assert partial.p > 0.05
    linked = partial_correlation(*confounded(direct=1.0), **FAST)
    assert linked.low > 0.3
    assert linked.p < 0.01
    assert (linked.n, linked.groups, linked.reason) == (400, 200, None)


def test_value_and_interval_equal_a_naive_loop():
    task, grounding, covariates, groups = confounded(n=60, direct=0.5)

    def naive(rows):
        given = np.column_stack([np.ones(len(rows)), covariates[rows]])
        left = [v[rows] - given @ np.linalg.lstsq(given, v[rows], rcond=None)[0] for v in (task, grounding)]
        return np.corrcoef(*left)[0, 1]

    found = partial_correlation(task, grounding, covariates, groups, resamples=200, permutations=1, seed=3)
    assert found.value == pytest.approx(naive(np.arange(60)))
    rng = np.random.default_rng(3)
    drawn = [
        naive(np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(30, size=30)])) for _ in range(200)
    ]
    np.testing.assert_allclose((found.low, found.high), np.quantile(drawn, [0.025, 0.975]))


def test_constant_redundant_and_rescaled_covariates_change_nothing():
    task, grounding, covariates, groups = confounded(direct=0.5)
    plain = partial_correlation(task, grounding, covariates, groups, **FAST)
    more = np.column_stack([covariates * [1e6, 1e-3], covariates.sum(1), np.full(len(task), 7.0)])
    other = partial_correlation(3 - task, grounding * 10, more, groups, **FAST)
    assert other.value == pytest.approx(-plain.value, abs=1e-6)
    assert other.low == pytest.approx(-plain.high, abs=1e-6)
    constant = partial_correlation(task, grounding, np.ones((len(task), 2)), groups, **FAST)
    assert constant.value == pytest.approx(correlate("pearson", task, grounding, groups, **FAST).value)


def test_undefined_cases_say_why():
    task, grounding, covariates, groups = confounded(n=20)
    explained = partial_correlation(covariates @ [2.0, 1.0], grounding, covariates, groups, **FAST)
    assert explained.value is None
    assert explained.reason == "the covariates explain all of the task score in 20 examples"
    flat = partial_correlation(task, np.ones(20), covariates, groups, **FAST)
    assert flat.reason == "grounding is 1 in all examples"
    few = partial_correlation(task[:2], grounding[:2], covariates[:2], groups[:2], **FAST)
    assert "needs 3 or more" in few.reason
    with pytest.raises(BadInput, match="covariates hold numbers that are not finite"):
        partial_correlation(task, grounding, covariates * np.nan, groups, **FAST)
    with pytest.raises(BadInput, match="do not fit 20 examples"):
        partial_correlation(task, grounding, covariates[:5], groups, **FAST)
