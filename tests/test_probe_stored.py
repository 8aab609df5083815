"""Probes of pairs whose rows stay on disk."""

import numpy as np
import pytest
import torch
from fake_run import make_run, plant_alignment
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from grounding.errors import BadInput
from probe.estimators import BilinearProbe, ConcatenationProbe, MLPProbe, PhraseOnlyProbe, RegionOnlyProbe, fit_together
from probe.features import PairFeatures
from probe.pairs import alignment_pairs
from probe.stored import StoredRows

torch.set_num_threads(1)


@pytest.fixture
def run():
    made = make_run(120)
    for number in range(2):
        made.add(f"block.{number}", *plant_alignment(made, 6, number))
    return made


def _features(run, site, on_disk):
    pairs = alignment_pairs(run)
    rows = [StoredRows(run, site, view) if on_disk else run.read(site, view) for view in ("phrase", "region")]
    return PairFeatures(*rows, pairs.phrase, pairs.region, pairs.example), pairs.label


@pytest.mark.parametrize(
    "probe",
    [
        BilinearProbe(tol=1e-7),
        BilinearProbe(rank=3, tol=1e-7),
        ConcatenationProbe(tol=1e-7),
        PhraseOnlyProbe(tol=1e-7),
        RegionOnlyProbe(tol=1e-7),
        MLPProbe(max_epochs=4),
    ],
)
def test_streaming_equals_in_memory(run, probe, monkeypatch):
    sites = [site.name for site in run.sites]
    strengths = (0.1, 0.01)
    in_memory = [clone(probe).set_params(strength=strength) for strength in strengths]
    features, y = zip(*(_features(run, site, on_disk=False) for site in sites), strict=True)
    held_out = np.isin(features[0].block, np.arange(100, 120))
    fit_together(
        in_memory, [f[~held_out] for f in features], y[0][~held_out], ([f[held_out] for f in features], y[0][held_out])
    )

    monkeypatch.setattr("probe.estimators.chunks._STREAMED", 1_000)  # seven examples
    monkeypatch.setattr("probe.estimators.blocks.CHUNK", 100)
    monkeypatch.setattr("probe.estimators.site_rows.CHUNK", 100)
    monkeypatch.setattr("probe.features._CHUNK", 100)
    asked, read = [], run.read
    monkeypatch.setattr(run, "read", lambda *which: asked.append(len(which[2])) or read(*which))
    on_disk = [clone(probe).set_params(strength=strength) for strength in strengths]
    stored = [_features(run, site, on_disk=True)[0] for site in sites]
    fit_together(
        on_disk, [f[~held_out] for f in stored], y[0][~held_out], ([f[held_out] for f in stored], y[0][held_out])
    )
    scores = [joint.decision_function(rows) for joint, rows in zip(on_disk, stored, strict=True)]
    assert max(asked) <= 16 * 8  # a mini-batch of the MLP: 16 examples of 8 regions; never the site's 960
    for joint, reference, found, rows in zip(on_disk, in_memory, scores, features, strict=True):
        assert joint.loss_ == pytest.approx(reference.loss_, abs=1e-5)
        # Where an optimum is flat, sums in another order end elsewhere on it.
        expected = reference.decision_function(rows)
        assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_a_planted_alignment_is_found_on_disk_and_not_by_the_concatenation(run, monkeypatch):
    monkeypatch.setattr("probe.estimators.chunks._STREAMED", 1_000)
    features, y = _features(run, "block.0", on_disk=True)
    train = features.block < 80
    found, blind = (probe.fit(features[train], y[train]) for probe in (BilinearProbe(), ConcatenationProbe()))
    assert roc_auc_score(y[~train], found.decision_function(features[~train])) > 0.9
    assert abs(roc_auc_score(y[~train], blind.decision_function(features[~train])) - 0.5) < 0.1
    random = np.random.default_rng(0).permutation(y)
    nothing = BilinearProbe().fit(features[train], random[train])
    assert abs(roc_auc_score(random[~train], nothing.decision_function(features[~train])) - 0.5) < 0.1


def test_rows_on_disk_that_are_not_finite_are_counted(run):
    run.rows["block.0", "phrase"][3] = np.nan
    features, y = _features(run, "block.0", on_disk=True)
    with pytest.raises(BadInput, match="1 of 360 phrase rows are not finite"):
        BilinearProbe().fit(features, y)


def test_stored_rows_are_indexed_like_an_array(run):
    rows, array = StoredRows(run, "block.1", "region"), run.read("block.1", "region")
    assert rows.shape == array.shape == (960, 6)
    for chosen in (slice(5, 9), np.array([7, 7, 2]), array[:, 0] > 1):
        np.testing.assert_array_equal(rows[chosen], array[chosen])
