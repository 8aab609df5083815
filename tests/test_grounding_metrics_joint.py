import numpy as np
import pytest
from scipy import stats

from grounding.errors import BadInput
from grounding.metrics.joint import CORRELATIONS, correlate, pearson, permutation_p, spearman

FAST = {"resamples": 400, "permutations": 400}


def sample(linked, n=300, seed=0):
    """Scores and IoUs of n examples, two an image; with or without a link between them."""
    rng = np.random.default_rng(seed)
    iou = rng.random(n).round(2)  # with ties
    score = linked * iou + rng.normal(0, 0.3, n)
    return score, score > np.median(score), iou, np.arange(n) // 2


def joint_view(score, success, iou, groups):
    """Every kind of correlation, each with the task column that it takes."""
    columns = {kind: success if kind == "point_biserial" else score for kind in CORRELATIONS}
    return {kind: correlate(kind, task, iou, groups, **FAST) for kind, task in columns.items()}


def test_values_equal_scipys():
    score, success, iou, _ = sample(linked=0.5)
    assert pearson(score, iou) == pytest.approx(stats.pearsonr(score, iou).statistic)
    assert spearman(score, iou) == pytest.approx(stats.spearmanr(score, iou).statistic)
    view = joint_view(*sample(linked=0.5))
    assert view["pearson"].value == pytest.approx(stats.pearsonr(score, iou).statistic)
    assert view["spearman"].value == pytest.approx(stats.spearmanr(score, iou).statistic)
    assert view["point_biserial"].value == pytest.approx(stats.pointbiserialr(success, iou).statistic)


def test_a_planted_link_is_found_and_none_where_there_is_none():
    for correlation in joint_view(*sample(linked=0.8)).values():
        assert correlation.low > 0.1
        assert correlation.p < 0.01
        assert (correlation.n, correlation.groups, correlation.reason) == (300, 150, None)
    for correlation in joint_view(*sample(linked=0.0)).values():
        assert correlation.low < 0 < correlation.high
        assert correlation.p > 0.05


def test_p_values_are_uniform_without_a_link():
    rng = np.random.default_rng(1)
    values = [permutation_p(rng.random(20), rng.random(20), 99, seed) for seed in range(300)]
    assert 0.02 < np.mean(np.array(values) <= 0.05) < 0.09
    assert 0.4 < np.mean(values) < 0.6


def test_spearmans_interval_equals_a_naive_loop():
    score, _, iou, groups = sample(linked=0.5, n=24)
    estimate = correlate("spearman", score, iou, groups, resamples=200, permutations=1, seed=3)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(12, size=12)])
        drawn.append(stats.spearmanr(score[rows], iou[rows]).statistic)
    np.testing.assert_allclose((estimate.low, estimate.high), np.quantile(drawn, [0.025, 0.975]))


@pytest.mark.parametrize("kind", CORRELATIONS)
def test_order_scale_and_sign(kind):
    score, success, iou, groups = sample(linked=0.5, n=80)
    task = success.astype(float) if kind == "point_biserial" else score
    first = correlate(kind, task, iou, groups, **FAST)
    order = np.random.default_rng(2).permutation(80)
    shuffled = correlate(kind, task[order], iou[order], groups[order], **FAST)
    scaled = correlate(kind, task, 3 * iou + 1, groups, **FAST)
    for same in (shuffled, scaled):
        assert (same.value, same.low, same.high) == pytest.approx((first.value, first.low, first.high))
        assert same.p == first.p
    assert correlate(kind, task, -iou, groups, **FAST).value == pytest.approx(-first.value)


@pytest.mark.parametrize(
    ("kind", "task", "grounding", "reason"),
    [
        ("point_biserial", [1, 1, 1, 1], [0.1, 0.2, 0.3, 0.4], "one class only: the task is right"),
        ("point_biserial", [0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4], "one class only: the task is wrong"),
        ("pearson", [0.1, 0.2, 0.3, 0.4], [0.7] * 4, "grounding is 0.7 in all"),
        ("pearson", [0.1, 0.2, 0.3, 0.4], [0.7, 0.7 + 1e-16, 0.7 + 2e-16, 0.7], "grounding is 0.7 in all"),
        ("spearman", [0.1] * 4, [0.1, 0.2, 0.3, 0.4], "the task score is 0.1 in all"),
        ("pearson", [0.1, 0.2], [0.3, 0.4], "2 examples"),
        ("spearman", [], [], "0 examples"),
    ],
)
def test_undefined_cases_have_a_reason_and_no_number(kind, task, grounding, reason):
    correlation = correlate(kind, np.array(task), np.array(grounding), np.arange(len(task)), **FAST)
    assert (correlation.value, correlation.low, correlation.high, correlation.p) == (None,) * 4
    assert reason in correlation.reason


def test_bad_input_is_named():
    three = np.array([0.1, 0.2, 0.3])
    with pytest.raises(BadInput, match="correlation 'kendall' is unknown; accepted: pearson"):
        correlate("kendall", three, three, three)
    with pytest.raises(BadInput, match="0 or 1"):
        correlate("point_biserial", three, three, three)
    with pytest.raises(BadInput, match="differ in length"):
        correlate("pearson", three, three[:2], three)
    with pytest.raises(BadInput, match="not finite"):
        correlate("pearson", np.array([0.1, np.nan, 0.3]), three, three)
    with pytest.raises(BadInput, match="constant"):
        permutation_p(three, np.ones(3))
