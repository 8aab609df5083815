import numpy as np
import pytest
import torch
from fake_run import make_run
from scipy.stats import norm
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from grounding.errors import BadInput
from probe.estimators import (
    LogisticProbe,
    MLPClassifierProbe,
    MLPRegressorProbe,
    RidgeProbe,
    Task,
    decide_together,
    fit_grid,
)
from probe.stored import StoredRows

torch.set_num_threads(1)


@parametrize_with_checks(
    [
        LogisticProbe(),
        RidgeProbe(),
        MLPClassifierProbe(hidden=(16,), batch_size=16, max_epochs=12, learning_rate=0.01),
        MLPRegressorProbe(hidden=(16,), batch_size=16, max_epochs=12, learning_rate=0.01),
    ]
)
def test_scikit_learn_contract(estimator, check):
    assert check(estimator) is None  # or it raises


def _vectors(n=900, width=12, classes=2, seed=0):
    """Correlated columns of unequal size, and labels drawn from a softmax of some of them."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width)) * np.geomspace(1, 0.03, width)[:, None]
    X = random.standard_normal((n, width)) @ mixing * 3 + random.standard_normal(width)
    scores = X @ random.standard_normal((width, classes)) / 3
    return X.astype(np.float32), (scores + random.gumbel(size=scores.shape)).argmax(1)


def _penalised(reference, X, y, strength):
    """What LogisticRegression with this penalty minimises, by its own probabilities."""
    likelihood = reference.predict_proba(X)[np.arange(len(y)), np.searchsorted(reference.classes_, y)]
    return -np.log(likelihood).mean() + strength / 2 * (reference.coef_**2).sum()


@pytest.mark.parametrize("strength", [0.3, 0.01, 1e-4])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_optimum_is_that_of_logistic_regression(classes, strength):
    X, y = _vectors(classes=classes)
    names = np.array([f"class-{number}" for number in range(classes)])
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    reference = LogisticRegression(C=1 / (strength * len(y)), tol=1e-8, max_iter=5000).fit(scaled, names[y])
    found = LogisticProbe(strength=strength, tol=1e-7).fit(X, names[y])
    assert found.loss_ == pytest.approx(_penalised(reference, scaled, names[y], strength), abs=1e-5)
    np.testing.assert_allclose(found.coef_, reference.coef_, atol=0.02)
    np.testing.assert_allclose(found.predict_proba(X), reference.predict_proba(scaled), atol=0.01)
    assert (found.predict(X) == reference.predict(scaled)).mean() > 0.995
    assert found.log_loss(X, names[y]) == pytest.approx(found.loss_ - strength / 2 * (found.coef_**2).sum(), abs=1e-5)


@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize("strength", [1.0, 0.01, 1e-5])
def test_ridge_is_that_of_scikit_learn(outputs, strength):
    X, _ = _vectors()
    y = X @ np.random.default_rng(1).standard_normal((12, *outputs)) + np.random.default_rng(2).standard_normal(
        (900, *outputs)
    )
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    reference = Ridge(alpha=strength * len(y)).fit(scaled, y)
    found = RidgeProbe(strength=strength).fit(X, y)
    residual = y - reference.predict(scaled)
    loss = (residual**2).sum() / len(y) / 2 + strength / 2 * (reference.coef_**2).sum()
    assert found.loss_ == pytest.approx(loss, rel=1e-3)
    assert found.coef_.shape == reference.coef_.shape
    np.testing.assert_allclose(found.coef_, reference.coef_, atol=1e-2)
    np.testing.assert_allclose(found.predict(X), reference.predict(scaled), atol=0.01)


@pytest.mark.parametrize(("classes", "tol"), [(2, 1e-7), (4, 1e-7)])
def test_grid_of_sites_tasks_and_strengths_equals_fitting_alone(classes, tol):
    sites = [_vectors(classes=classes, seed=seed)[0] for seed in range(2)]
    y = _vectors(classes=classes)[1]
    random = np.random.default_rng(3)
    tasks = [Task(y, random.random(len(y)) < share) for share in (0.8, 0.5)]
    tasks.append(Task(random.permutation(y)))  # other labels, every row
    strengths = (1.0, 0.01)
    found = fit_grid(LogisticProbe(tol=tol), sites, tasks, strengths)
    for site, of_site in zip(sites, found, strict=True):
        for task, of_task in zip(tasks, of_site, strict=True):
            rows = slice(None) if task.rows is None else task.rows
            for strength, joint in zip(strengths, of_task, strict=True):
                alone = clone(joint).fit(site[rows], task.y[rows])
                assert joint.strength == strength
                assert joint.loss_ == pytest.approx(alone.loss_, abs=1e-5)
                np.testing.assert_allclose(joint.mean_, alone.mean_, atol=1e-5)
                np.testing.assert_allclose(joint.decision_function(site), alone.decision_function(site), atol=1e-2)
    # None of them is another: they do differ in what they were trained on.
    losses = {round(probe.loss_, 4) for site in found for task in site for probe in task}
    assert len(losses) == 2 * 3 * 2


def test_ridge_grid_equals_fitting_alone():
    X, y = _vectors()
    tasks = [Task(X[:, 0] + y, np.arange(len(y)) % 3 != fold) for fold in range(3)] + [Task(X[:, 1] * y)]
    for task, of_task in zip(tasks, fit_grid(RidgeProbe(), [X], tasks, [0.1, 0.001])[0], strict=True):
        rows = slice(None) if task.rows is None else task.rows
        for joint in of_task:
            alone = clone(joint).fit(X[rows], task.y[rows])
            np.testing.assert_allclose(joint.predict(X), alone.predict(X), atol=1e-3)


def _xor(n=3000, width=10, seed=0):
    """The label says whether two coordinates agree in sign; neither says anything alone."""
    X = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return X, (X[:, 2] > 0) ^ (X[:, 7] > 0)


def test_mlp_finds_an_xor_of_two_coordinates_that_the_linear_probe_cannot():
    X, y = _xor()
    train = np.arange(3000) < 2000
    mlp = MLPClassifierProbe(hidden=(32,), learning_rate=0.01).fit(X[train], y[train])
    deep = MLPClassifierProbe(hidden=(32, 16), learning_rate=0.01).fit(X[train], y[train])
    linear = LogisticProbe().fit(X[train], y[train])
    assert mlp.score(X[~train], y[~train]) > 0.93
    assert deep.score(X[~train], y[~train]) > 0.93
    assert abs(linear.score(X[~train], y[~train]) - 0.5) < 0.05
    nothing = np.random.default_rng(1).random(3000) < 0.5
    blind = clone(mlp).fit(X[train], nothing[train])
    assert abs(blind.score(X[~train], nothing[~train]) - 0.5) < 0.05


def test_mlp_regression_finds_a_product_that_ridge_cannot():
    X, _ = _xor()
    train, y = np.arange(3000) < 2000, np.stack([X[:, 2] * X[:, 7], X[:, 0]], 1)
    mlp = MLPRegressorProbe(hidden=(64,), learning_rate=0.01).fit(X[train], y[train])
    found = 1 - ((mlp.predict(X) - y)[~train] ** 2).mean(0) / y[~train].var(0)
    linear = 1 - ((RidgeProbe().fit(X[train], y[train]).predict(X) - y)[~train] ** 2).mean(0) / y[~train].var(0)
    assert found.min() > 0.85
    assert linear[0] < 0.05
    assert linear[1] > 0.99


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_mlp_is_about_as_good_as_that_of_scikit_learn():
    X, y = _vectors(n=3000, classes=4)
    train = np.arange(3000) < 2000
    scaled = StandardScaler().fit(X[train]).transform(X)
    reference = MLPClassifier((32,), max_iter=20, random_state=0).fit(scaled[train], y[train])
    found = MLPClassifierProbe((32,), strength=1e-4, max_epochs=20).fit(X[train], y[train])
    assert found.score(X[~train], y[~train]) == pytest.approx(reference.score(scaled[~train], y[~train]), abs=0.03)
    probabilities = found.predict_proba(X[:5])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert found.log_loss(X[train], y[train]) == pytest.approx(found.loss_, abs=0.05)


@pytest.mark.parametrize("classes", [2, 3])
def test_mlp_grid_equals_fitting_alone(classes):
    sites = [_vectors(n=300, classes=classes, seed=seed)[0] for seed in range(2)]
    y = _vectors(n=300, classes=classes)[1]
    tasks = [Task(y, np.arange(300) % 4 != fold, seed=fold) for fold in range(2)]
    found = fit_grid(MLPClassifierProbe((8, 6), max_epochs=5), sites, tasks, [1.0, 1e-3])
    for site, of_site in zip(sites, found, strict=True):
        for task, of_task in zip(tasks, of_site, strict=True):
            for joint in of_task:
                alone = clone(joint).fit(site[task.rows], task.y[task.rows])
                assert joint.seed == task.seed
                np.testing.assert_allclose(joint.decision_function(site), alone.decision_function(site), atol=1e-3)
    strong, weak = found[0][0]
    assert np.abs(strong.coefs_[0]).sum() < np.abs(weak.coefs_[0]).sum()
    assert not np.allclose(found[0][0][0].coefs_[0], found[0][1][0].coefs_[0], atol=0.01)


def test_mlp_keeps_the_epoch_of_the_lowest_held_out_loss():
    X, _ = _vectors()
    noise = np.random.default_rng(0).random(900) < 0.5  # nothing to learn: every epoch after the first few overfits
    train = np.arange(900) < 300
    probe = MLPClassifierProbe((64,), learning_rate=0.02)
    stopped = fit_grid(probe, [X], [Task(noise, train, ~train)], [1e-4, 30.0])[0][0]
    assert stopped[0].n_iter_ < 10
    for other in stopped:
        assert other.log_loss(X[~train], noise[~train]) == pytest.approx(other.loss_, abs=1e-4)
        # An epoch is not kept later because another network is still learning.
        alone = fit_grid(probe, [X], [Task(noise, train, ~train)], [other.strength])[0][0][0]
        assert alone.n_iter_ == other.n_iter_
    went_on = clone(probe).set_params(strength=1e-4).fit(X[train], noise[train])
    assert went_on.n_iter_ == 40
    assert stopped[0].loss_ < went_on.log_loss(X[~train], noise[~train]) - 0.1


def test_deciding_together_equals_deciding_alone():
    for classes in (2, 3):
        X, y = _vectors(classes=classes)
        probes = fit_grid(LogisticProbe(), [X], [Task(y), Task(y, np.arange(900) < 500)], [0.1, 0.01])[0]
        probes = [probe for task in probes for probe in task]
        for probe, together in zip(probes, decide_together(probes, X), strict=True):
            np.testing.assert_allclose(together, probe.decision_function(X), atol=1e-6)


def test_rows_far_from_zero_and_columns_that_are_constant_do_no_harm():
    X, y = _vectors()
    moved = np.hstack([X + 300, np.full((len(X), 1), 0.1, np.float32)])
    found, plain = (LogisticProbe(tol=1e-7).fit(rows, y) for rows in (moved, X))
    assert found.scale_[-1] == 1
    assert abs(found.coef_[0, -1]) < 1e-6
    assert found.loss_ == pytest.approx(plain.loss_, abs=1e-5)
    np.testing.assert_allclose(found.coef_[:, :-1], plain.coef_, atol=0.02)


def test_more_columns_than_rows():
    X, y = _vectors(n=60, width=90)
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    reference = LogisticRegression(C=1 / (0.01 * 60), tol=1e-8, max_iter=5000).fit(scaled, y)
    found = LogisticProbe(tol=1e-7).fit(X, y)
    assert found.loss_ == pytest.approx(_penalised(reference, scaled, y, 0.01), abs=1e-5)


def test_stored_rows_give_what_the_array_gives(monkeypatch):
    run = make_run(300)
    X, y = _vectors(n=900, width=6, classes=3)
    run.add("block.0", X, np.zeros((len(run.regions), 6)))
    stored, X = StoredRows(run, "block.0", "phrase"), run.read("block.0", "phrase")
    monkeypatch.setattr("probe.estimators.blocks._ELEMENTS", {"cpu": 2_000})  # many blocks
    monkeypatch.setattr("probe.estimators.blocks._SAMPLE", 100)
    monkeypatch.setattr("probe.estimators.blocks.CHUNK", 200)
    asked = []
    read = run.read
    monkeypatch.setattr(run, "read", lambda *which: asked.append(len(which[2])) or read(*which))
    for probe in (LogisticProbe(tol=1e-7), RidgeProbe(), MLPClassifierProbe(max_epochs=2)):
        from_disk = clone(probe).fit(stored, y)
        assert max(asked) < 900 / 2
        in_memory = clone(probe).fit(X, y)
        assert from_disk.loss_ == pytest.approx(in_memory.loss_, abs=1e-5)
        np.testing.assert_allclose(from_disk.predict(stored), in_memory.predict(X), atol=1e-4)
    with pytest.raises(BadInput, match="X has width 6, but LogisticProbe was fitted on 5"):
        LogisticProbe().fit(X[:, :5], y).predict(stored)


def test_bad_input_is_named():
    X, y = _vectors()
    with pytest.raises(BadInput, match="one class only"):
        LogisticProbe().fit(X, np.ones(len(y)))
    with pytest.raises(BadInput, match="strength 0 is out of range"):
        RidgeProbe(strength=0).fit(X, X[:, 0])
    with pytest.raises(BadInput, match="tol 0 is out of range"):
        LogisticProbe(tol=0).fit(X, y)
    with pytest.raises(BadInput, match=r"y has 3 targets, 900 of them used, for 900 rows"):
        fit_grid(LogisticProbe(), [X], [Task(y[:3])], [1.0])
    with pytest.raises(BadInput, match=r"y has 900 targets, 0 of them used"):
        fit_grid(LogisticProbe(), [X], [Task(y, y > 5)], [1.0])
    with pytest.raises(BadInput, match="different classes"):
        fit_grid(LogisticProbe(), [X], [Task(y), Task(y + 1)], [1.0])
    with pytest.raises(BadInput, match=r"sites fitted together have shapes \[\(900, 5\), \(900, 12\)\]"):
        fit_grid(LogisticProbe(), [X, X[:, :5]], [Task(y)], [1.0])
    with pytest.raises(BadInput, match="0 strengths"):
        fit_grid(LogisticProbe(), [X], [Task(y)], [])
    with pytest.raises(BadInput, match="not finite"):
        fit_grid(LogisticProbe(), [np.where(X > 3, np.nan, X)], [Task(y)], [1.0])
    with pytest.raises(BadInput, match="1 of 2 tasks have rows held out"):
        fit_grid(MLPClassifierProbe(), [X], [Task(y, held_out=y > 0), Task(y)], [1.0])
    with pytest.raises(BadInput, match="rows held out have classes that those trained on lack"):
        fit_grid(
            MLPClassifierProbe(), [X], [Task(np.r_[y[:899], 5], np.arange(900) < 800, np.arange(900) > 800)], [1.0]
        )
    for name, value in (("hidden", ()), ("batch_size", 0), ("learning_rate", 0)):
        with pytest.raises(BadInput, match=f"{name} .*; accepted"):
            MLPClassifierProbe(**{name: value}).fit(X, y)
    with pytest.raises(BadInput, match="rows of one width"):
        decide_together([LogisticProbe().fit(X, y), LogisticProbe().fit(X[:, :5], y)], X)


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_log_loss_of_a_regression_is_that_of_a_normal_density_round_it(strength):
    X, _ = _vectors()
    y = X @ np.random.default_rng(1).standard_normal((12, 3)) + np.random.default_rng(2).standard_normal((900, 3))
    found = RidgeProbe(strength=strength).fit(X[:600], y[:600])
    scaler = StandardScaler().fit(X[:600].astype(np.float64))
    reference = Ridge(alpha=strength * 600).fit(scaler.transform(X[:600]), y[:600])
    spread = ((reference.predict(scaler.transform(X[:600])) - y[:600]) ** 2).mean() ** 0.5
    density = norm(reference.predict(scaler.transform(X[600:])), spread).logpdf(y[600:]).sum(1)
    assert found.log_loss(X[600:], y[600:]) == pytest.approx(-density.mean(), rel=1e-4)
    assert found.variance_ == pytest.approx(spread**2, rel=1e-4)
    np.testing.assert_allclose(found.target_mean_, y[:600].mean(0), atol=1e-5)
    perceptron = MLPRegressorProbe(hidden=(8,), max_epochs=3).fit(X[:600], y[:600])
    assert perceptron.target_mean_ == pytest.approx(found.target_mean_)
    squares = ((perceptron.predict(X[600:]) - y[600:]) ** 2).sum(1) / perceptron.variance_ / 2
    assert perceptron.log_loss(X[600:], y[600:]) == pytest.approx(
        squares.mean() + 1.5 * np.log(2 * np.pi * perceptron.variance_)
    )
