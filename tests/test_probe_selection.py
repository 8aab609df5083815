"""Strengths are chosen along one path, whether probes are fitted one by one or as a grid."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from grounding.errors import BadInput
from probe.estimators import LogisticProbe, MLPRegressorProbe, RidgeProbe
from probe.selection import choose_strength

torch.set_num_threads(1)
STRENGTHS = (1.0, 0.1, 0.01, 0.001)


def _sites(n, width=10):
    random = np.random.default_rng(0)
    latent = random.standard_normal(n)
    noise = random.standard_normal((2, n, width)).astype(np.float32)
    noise[1, :, 0] += latent
    return list(noise), latent, random.standard_normal(n)


def _along_path(models, losses):
    """The last one before the loss rises."""
    rises = np.flatnonzero(np.diff(losses) >= 0)
    best = rises[0] if len(rises) else len(losses) - 1
    return models[best], losses[best]


def test_a_grid_chooses_what_scikit_learns_probes_would_along_the_path():
    sites, latent, noise = _sites(300)
    label, number = latent + noise > 0, (latent + noise)[:, None]
    train, held_out = slice(0, 200), slice(200, 300)
    parts = [site[train] for site in sites], [site[held_out] for site in sites]
    logistic, ridge = (
        choose_strength(probe, parts[0], y[train], parts[1], y[held_out], STRENGTHS[::-1])
        for probe, y in ((LogisticProbe(tol=1e-8), label), (RidgeProbe(), number))
    )
    for place, site in enumerate(sites):
        scaler = StandardScaler().fit(site[train])
        X, X_held_out = scaler.transform(site[train]), scaler.transform(site[held_out])
        models = [LogisticRegression(C=1 / (s * 200), tol=1e-8).fit(X, label[train]) for s in STRENGTHS]
        losses = [-np.log(m.predict_proba(X_held_out)[range(100), label[held_out].astype(int)]).mean() for m in models]
        model, loss = _along_path(models, losses)
        assert logistic[place].probe.strength == pytest.approx(1 / (model.C * 200))
        assert logistic[place].validation_loss == pytest.approx(loss, abs=1e-4)
        np.testing.assert_allclose(logistic[place].probe.coef_, model.coef_, atol=1e-3)
        models = [Ridge(alpha=s * 200).fit(X, number[train, 0]) for s in STRENGTHS]
        spread = [((m.predict(X) - number[train, 0]) ** 2).mean() for m in models]
        away = [((m.predict(X_held_out) - number[held_out, 0]) ** 2).mean() for m in models]
        losses = [a / v / 2 + np.log(2 * np.pi * v) / 2 for a, v in zip(away, spread, strict=True)]
        model, loss = _along_path(models, losses)
        assert ridge[place].probe.strength == pytest.approx(model.alpha / 200)
        assert ridge[place].validation_loss == pytest.approx(loss, abs=1e-4)


def test_a_perceptron_of_vectors_stops_by_the_part_held_out():
    sites, latent, _ = _sites(400, width=3)
    y = np.abs(latent)[:, None]
    probe = MLPRegressorProbe((16,), learning_rate=0.01, batch_size=16, max_epochs=60, patience=3)
    parts = [s[:300] for s in sites], [s[300:] for s in sites]
    blind, seeing = choose_strength(probe, parts[0], y[:300], parts[1], y[300:], (1.0, 0.1))
    assert seeing.validation_loss < blind.validation_loss - 0.1
    assert blind.probe.n_iter_ < 60
    assert seeing.probe.predict(parts[1][1]).shape == (100, 1)


def test_strengths_that_cannot_be_used_are_refused():
    sites, latent, _ = _sites(20)
    for strengths in ((), (1.0, 0.0)):
        with pytest.raises(BadInput, match="accepted: one or more numbers above 0"):
            choose_strength(RidgeProbe(), sites, latent, sites, latent, strengths)
