import numpy as np
import pytest
import torch
from fake_run import make_run, plant_alignment, plant_xor
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from grounding.errors import BadInput
from probe.estimators import (
    BilinearProbe,
    ConcatenationProbe,
    MajorityProbe,
    MLPProbe,
    PhraseOnlyProbe,
    RegionOnlyProbe,
    fit_together,
)
from probe.features import PairFeatures
from probe.lbfgs import minimise
from probe.pairs import alignment_pairs

torch.set_num_threads(1)


@parametrize_with_checks(
    [
        BilinearProbe(),
        BilinearProbe(rank=1),
        ConcatenationProbe(),
        MLPProbe(hidden=(16,), max_epochs=20),
        MajorityProbe(),
    ]
)
def test_scikit_learn_contract(estimator, check):
    assert check(estimator) is None  # or it raises


def _pairs(n=600, widths=(4, 5), seed=0):
    """Independent pairs whose label follows a known bilinear form and a term of the region alone."""
    random = np.random.default_rng(seed)
    phrase, region = (random.standard_normal((n // 3, width)).astype(np.float32) * 2 + 1 for width in widths)
    rows = random.integers(n // 3, size=(2, n))
    form = random.standard_normal(widths)
    log_odds = np.einsum("nd,de,ne->n", phrase[rows[0]] - 1, form, region[rows[1]] - 1) / 4 + region[rows[1], 0] - 1
    return PairFeatures(phrase, region, rows[0], rows[1]), random.random(n) < 1 / (1 + np.exp(-log_odds))


def _standardised(pairs):
    used = np.unique(pairs.phrase_row), np.unique(pairs.region_row)
    phrase = (pairs.phrase - pairs.phrase[used[0]].mean(0)) / pairs.phrase[used[0]].std(0)
    region = (pairs.region - pairs.region[used[1]].mean(0)) / pairs.region[used[1]].std(0)
    return phrase[pairs.phrase_row], region[pairs.region_row]


@pytest.mark.parametrize("strength", [0.1, 0.003])
@pytest.mark.parametrize("kind", [BilinearProbe, ConcatenationProbe, PhraseOnlyProbe, RegionOnlyProbe])
def test_optimum_is_that_of_logistic_regression(kind, strength):
    pairs, y = _pairs()
    phrase, region = _standardised(pairs)
    written_out = {
        BilinearProbe: (phrase[:, :, None] * region[:, None, :]).reshape(len(y), -1),
        ConcatenationProbe: np.hstack([phrase, region]),
        PhraseOnlyProbe: phrase,
        RegionOnlyProbe: region,
    }[kind]
    reference = LogisticRegression(C=1 / (strength * len(y)), tol=1e-8, max_iter=5000).fit(written_out, y)
    log_odds = reference.decision_function(written_out)
    loss = np.logaddexp(0, -np.where(y, 1, -1) * log_odds).mean() + strength / 2 * (reference.coef_**2).sum()

    found = kind(strength=strength, tol=1e-7).fit(pairs, y)

    assert found.loss_ == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(np.ravel(found.coef_), reference.coef_[0], atol=5e-3)
    np.testing.assert_allclose(found.decision_function(pairs), log_odds, atol=3e-2)
    assert found.log_loss(pairs, y) == pytest.approx(np.logaddexp(0, -np.where(y, 1, -1) * log_odds).mean(), abs=1e-4)


def test_majority_is_the_dummy_classifier_that_knows_the_prior():
    pairs, y = _pairs()
    written_out = np.hstack([pairs.phrase[pairs.phrase_row], pairs.region[pairs.region_row]])
    reference = DummyClassifier(strategy="prior").fit(written_out, y)
    probe = MajorityProbe().fit(pairs, y)
    np.testing.assert_allclose(probe.predict_proba(pairs), reference.predict_proba(written_out), atol=1e-6)
    assert probe.log_loss(pairs, y) == pytest.approx(probe.loss_, abs=1e-6)
    assert probe.loss_ == pytest.approx(entropy([y.mean(), 1 - y.mean()]), abs=1e-6)


def test_written_out_array_gives_the_same_probe_as_rows():
    pairs, y = _pairs(widths=(4, 4))
    written_out = np.hstack([pairs.phrase[pairs.phrase_row], pairs.region[pairs.region_row]])
    probe = ConcatenationProbe(tol=1e-7).fit(written_out, y)
    # Standardised over other rows (pairs, not distinct rows): the penalty differs by a little.
    by_rows = ConcatenationProbe(tol=1e-7).fit(pairs, y)
    np.testing.assert_allclose(probe.decision_function(written_out), by_rows.decision_function(pairs), atol=0.1)
    assert probe.n_features_in_ == by_rows.n_features_in_ == 8


def test_full_rank_reaches_the_optimum_of_the_full_form_and_rank_one_does_not():
    pairs, y = _pairs()
    full = BilinearProbe(tol=1e-8).fit(pairs, y)
    factored = BilinearProbe(rank=4, tol=1e-8, max_iter=1000).fit(pairs, y)
    narrow = BilinearProbe(rank=1, tol=1e-8, max_iter=1000).fit(pairs, y)
    assert factored.loss_ == pytest.approx(full.loss_, abs=1e-4)
    assert narrow.loss_ > full.loss_ + 0.01
    assert np.linalg.matrix_rank(narrow.coef_, tol=1e-4) == 1


def test_rank_one_signal_is_recovered_by_rank_one():
    random = np.random.default_rng(0)
    phrase, region = random.standard_normal((2, 2000, 12)).astype(np.float32)
    y = phrase[:, 3] * region[:, 7] > 0
    rows = np.arange(2000)
    found = BilinearProbe(rank=1).fit(PairFeatures(phrase, region, rows, rows), y)
    assert np.unravel_index(np.abs(found.coef_).argmax(), (12, 12)) == (3, 7)
    assert found.score(PairFeatures(phrase, region, rows, rows), y) > 0.95


def _sites(count=3):
    run = make_run(60)
    pairs = alignment_pairs(run)
    rows = [plant_alignment(run, 6, seed) for seed in range(count)]
    features = [
        PairFeatures(p.astype(np.float32), r.astype(np.float32), pairs.phrase, pairs.region, pairs.example)
        for p, r in rows
    ]
    return features, pairs.label


@pytest.mark.parametrize(
    "probe", [BilinearProbe(tol=1e-7), BilinearProbe(rank=3, tol=1e-7), ConcatenationProbe(), MLPProbe(max_epochs=6)]
)
def test_fitting_together_equals_fitting_alone(probe):
    features, y = _sites()
    strengths = [0.5, 0.05, 0.01]
    together = [clone(probe).set_params(strength=strength) for strength in strengths]
    fit_together(together, features, y)
    for joint, strength, rows in zip(together, strengths, features, strict=True):
        alone = clone(probe).set_params(strength=strength).fit(rows, y)
        np.testing.assert_allclose(joint.decision_function(rows), alone.decision_function(rows), atol=5e-3)


def test_early_stopping_of_one_site_does_not_depend_on_the_others():
    features, y = _sites()
    train = features[0].block < 40
    parts = [rows[train] for rows in features], [rows[~train] for rows in features]
    probe = MLPProbe(batch_blocks=4, strength=1.0)
    together = [clone(probe).set_params(strength=strength) for strength in (30.0, 1.0, 0.01)]
    fit_together(together, parts[0], y[train], (parts[1], y[~train]))
    assert len({joint.n_iter_ for joint in together}) > 1
    for joint, rows, held_out in zip(together, *parts, strict=True):
        alone = clone(joint)
        fit_together([alone], [rows], y[train], ([held_out], y[~train]))
        assert alone.n_iter_ == joint.n_iter_
        np.testing.assert_allclose(joint.decision_function(rows), alone.decision_function(rows), atol=1e-2)


@pytest.mark.parametrize("probe", [BilinearProbe(tol=1e-7), ConcatenationProbe(tol=1e-7)])
def test_blocks_change_nothing_but_speed(probe):
    features, y = _sites(1)
    phrase_blocks = PairFeatures(features[0].phrase, features[0].region, features[0].phrase_row, features[0].region_row)
    by_example = clone(probe).fit(features[0], y).decision_function(features[0])
    by_phrase = clone(probe).fit(phrase_blocks, y).decision_function(features[0])
    np.testing.assert_allclose(by_example, by_phrase, atol=2e-3)


def test_repeated_pairs_count_as_often_as_they_occur():
    pairs, y = _pairs()
    twice = np.r_[np.arange(len(y)), np.arange(100)]
    shared = BilinearProbe(tol=1e-7).fit(pairs[twice], y[twice])
    phrase, region = _standardised(pairs)
    written_out = (phrase[:, :, None] * region[:, None, :]).reshape(len(y), -1)[twice]
    reference = LogisticRegression(C=1 / (0.01 * len(twice)), tol=1e-8, max_iter=5000).fit(written_out, y[twice])
    np.testing.assert_allclose(np.ravel(shared.coef_), reference.coef_[0], atol=5e-3)


def test_mlp_finds_an_xor_that_the_bilinear_form_cannot():
    run = make_run(400, n_phrases=1)
    pairs = alignment_pairs(run)
    phrase, region = plant_xor(run)
    features = PairFeatures(
        phrase.astype(np.float32), region.astype(np.float32), pairs.phrase, pairs.region, pairs.example
    )
    train = pairs.example < 300
    mlp = MLPProbe().fit(features[train], pairs.label[train])
    linear = BilinearProbe(strength=0.1).fit(features[train], pairs.label[train])
    assert roc_auc_score(pairs.label[~train], mlp.decision_function(features[~train])) > 0.97
    assert roc_auc_score(pairs.label[~train], linear.decision_function(features[~train])) < 0.6


def test_mlp_product_is_indifferent_to_rotation_and_width():
    random = np.random.default_rng(1)
    n = 3000
    phrase = random.standard_normal((n, 6)).astype(np.float32)
    y = random.random(n) < 0.5
    signal = np.where(y[:, None], phrase, random.standard_normal((n, 6)))
    region = (signal @ np.linalg.qr(random.standard_normal((9, 6)))[0].T + 0.1).astype(np.float32)  # [n, 9]
    pairs = PairFeatures(phrase, region, np.arange(n), np.arange(n))
    train = np.arange(n) < 2000
    probe = MLPProbe(batch_blocks=128).fit(pairs[train], y[train])
    assert probe.phrase_axes_.shape == (6, 6)
    assert probe.region_axes_.shape == (9, 6)
    assert probe.score(pairs[~train], y[~train]) > 0.85
    with pytest.raises(BadInput, match=r"aligned False cannot multiply rows of widths \(6, 9\)"):
        MLPProbe(aligned=False).fit(pairs[train], y[train])


def test_mlp_keeps_the_epoch_of_the_lowest_validation_loss():
    pairs, _ = _pairs(900)
    rng = np.random.default_rng(0)
    train, validation = np.arange(300), np.arange(300, 900)
    noise = rng.random(900) < 0.5  # nothing to learn: every epoch after the first few overfits
    probe = MLPProbe(hidden=(64,), learning_rate=0.02, strength=1e-4)
    stopped, trained_on = clone(probe), clone(probe)
    fit_together([stopped], [pairs[train]], noise[train], ([pairs[validation]], noise[validation]))
    trained_on.fit(pairs[train], noise[train])
    assert stopped.n_iter_ < 10
    assert trained_on.n_iter_ == 40
    assert stopped.log_loss(pairs[validation], noise[validation]) == pytest.approx(stopped.loss_, abs=1e-4)
    assert stopped.loss_ < trained_on.log_loss(pairs[validation], noise[validation]) - 0.1


def test_same_seed_same_mlp_and_another_seed_another():
    features, y = _sites(1)
    first, again, other = (
        MLPProbe(max_epochs=3, seed=seed).fit(features[0], y).decision_function(features[0]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_warm_start_begins_where_the_last_fit_ended():
    pairs, y = _pairs()
    probe = BilinearProbe(warm_start=True, tol=1e-6).fit(pairs, y)
    first = probe.n_iter_
    assert probe.fit(pairs, y).n_iter_ < first / 2


def test_constant_columns_do_no_harm():
    pairs, y = _pairs()
    phrase = pairs.phrase.copy()
    phrase[:, 0] = 0.1
    found = BilinearProbe().fit(PairFeatures(phrase, pairs.region, pairs.phrase_row, pairs.region_row), y)
    assert found.phrase_scale_[0] == 1
    assert np.abs(found.coef_[0]).max() < 1e-4


def test_bad_input_is_named():
    pairs, y = _pairs()
    broken = PairFeatures(pairs.phrase * np.nan, pairs.region, pairs.phrase_row, pairs.region_row)
    with pytest.raises(BadInput, match="200 of 200 phrase rows are not finite"):
        BilinearProbe().fit(broken, y)
    with pytest.raises(BadInput, match="one class only"):
        BilinearProbe().fit(pairs, np.ones(len(y)))
    with pytest.raises(BadInput, match="rank 9 is out of range; accepted: 1 to 4"):
        BilinearProbe(rank=9).fit(pairs, y)
    with pytest.raises(BadInput, match="strength 0 is out of range"):
        BilinearProbe(strength=0).fit(pairs, y)
    with pytest.raises(BadInput, match=r"y has shape \(3,\) for 600 pairs"):
        MLPProbe().fit(pairs, y[:3])
    with pytest.raises(BadInput, match="hidden"):
        MLPProbe(hidden=()).fit(pairs, y)
    with pytest.raises(BadInput, match="same pairs and widths"):
        fit_together([BilinearProbe(), BilinearProbe()], [pairs, _pairs(widths=(5, 5))[0]], y)
    with pytest.raises(BadInput, match="differ only in strength"):
        fit_together([BilinearProbe(), BilinearProbe(rank=2)], [pairs, pairs], y)
    with pytest.raises(BadInput, match="was fitted on"):
        BilinearProbe().fit(pairs, y).predict(_pairs(widths=(5, 5))[0])


def test_batched_lbfgs_reaches_known_minima():
    curvature = torch.logspace(0, 3, 10).repeat(4, 1)
    centre = torch.arange(40.0).view(4, 10)

    def bowls(point, problems):
        away = point - centre[problems]
        return (curvature[problems] * away**2).sum(1) / 2 + 1, curvature[problems] * away

    found = minimise(bowls, torch.zeros(4, 10), tol=1e-9)
    torch.testing.assert_close(found.point, centre, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.loss, torch.ones(4))


def test_batched_lbfgs_handles_problems_that_finish_at_different_times():
    def rosenbrock(point, problems):
        x, y = point.T
        gradient = torch.stack([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)], 1)
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2, gradient

    start = torch.tensor([[1.0, 1.0], [-1.2, 1.0], [3.0, -2.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, max_iter=500, tol=1e-9)
    torch.testing.assert_close(found.point, torch.ones(3, 2, dtype=torch.float64), atol=1e-4, rtol=0)
    assert found.iterations[0] < found.iterations[1]
