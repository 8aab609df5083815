"""Heatmaps of probes by phrase: as the sweep fits them, on every cell of the right example; and the expression gap."""

from __future__ import annotations

import numpy as np
import pytest
from fake_run import make_run, noise, patch_of, plant_patches

from grounding.errors import BadInput
from probe.gaps import example_gaps
from probe.phrase_maps import fit_probes, probe_maps, swept_strengths, unseen_examples
from probe.settings import SweepSettings
from probe.sweep import sweep
from probe.tables import read_settings, read_sweep

SETTINGS = {"linear_strengths": (0.1, 0.01), "resamples": 20}


@pytest.fixture(scope="module")
def run():
    """At block.1 a phrase finds the patch of its box, at block.0 nothing."""
    run = make_run(n_examples=80)
    width = 16
    blind = noise(run, width)[0], np.random.default_rng(5).standard_normal((len(run.examples) * 27, width))
    run.add_tokens("block.0", *blind, streams=("text", "image"))
    run.add_tokens("block.1", *plant_patches(run), streams=("text", "image"))
    return run


@pytest.fixture(scope="module")
def swept(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "sweep"
    sweep(run, probes=("linear",), controls=(), questions=("localisation",), out=out, **SETTINGS)
    return out


def pointed(run, maps) -> float:
    """Share of phrases whose highest cell is the patch of their box."""
    own = run.regions[run.regions["phrase"] >= 0].set_index("phrase")
    return float(np.mean([maps.cells[row].argmax() == patch_of(own.loc[[row]])[0] for row in maps.cells]))


def test_a_planted_patch_is_where_the_probe_puts_its_phrase(run, swept):
    settings = read_settings(swept, run)
    assert settings.linear_strengths == SETTINGS["linear_strengths"]
    rows = unseen_examples(run, settings)
    assert 10 < len(rows) < 25  # a fold of five
    blind, found = probe_maps(run, rows, settings=settings)
    assert (blind.site, found.site) == ("block.0", "block.1")
    assert pointed(run, found) > 0.9
    assert pointed(run, blind) < 0.2
    assert set(found.part.values()) == {"test"}
    assert {cells.shape for cells in found.cells.values()} == {(5, 5)}
    assert all(0 <= cells.min() <= cells.max() <= 1 for cells in found.cells.values())


def test_maps_are_those_of_the_sweep(run, swept):
    """The sweep keeps each map's highest value: the same probe gives the same."""
    import pandas as pd

    items = pd.read_parquet(swept / "phrases.parquet")
    items = items[(items["site"] == "block.1") & (items["part"] == "test")].set_index("phrase")["score"]
    settings = read_settings(swept, run)
    (maps,) = probe_maps(run, unseen_examples(run, settings), sites=["block.1"], settings=settings)
    np.testing.assert_allclose([maps.cells[row].max() for row in items.index], items, rtol=1e-5)


def test_examples_that_the_probe_saw_are_told_apart(run):
    (maps,) = probe_maps(run, range(len(run.examples)), sites=["block.1"], settings=SweepSettings(**SETTINGS))
    assert set(maps.part.values()) == {"train", "validation", "test"}
    assert len(maps.cells) == len(run.phrases)


def test_probes_draw_any_phrase_when_asked_as_all_at_once(run, swept):
    settings = read_settings(swept, run)
    strengths = swept_strengths(read_sweep(swept, run), settings.seeds[0])
    assert set(strengths) == {"block.0", "block.1"}
    assert set(strengths.values()) <= set(SETTINGS["linear_strengths"])
    probes = fit_probes(run, ["block.1"], settings=settings, strengths=strengths)
    assert probes.probes["block.1"][0].strength == strengths["block.1"]
    (maps,) = probe_maps(run, range(len(run.examples)), sites=["block.1"], settings=settings)
    rows = np.array([7, 2, 3])
    found = probes.read("block.1", rows).reshape(3, 5, 5)
    np.testing.assert_allclose(found, [maps.cells[row] for row in rows], atol=0.02)  # one fit, begun elsewhere
    assert probes.read("block.1", rows[:0]).size == 0
    assert probes.part == maps.part


def test_gaps_are_of_test_images_at_the_best_site(run, swept):
    gaps = example_gaps(swept, run)
    assert (gaps.question, gaps.probe, gaps.site) == ("localisation", "linear", "block.1")
    assert set(gaps.table["example"]) == set(unseen_examples(run, read_settings(swept, run)))
    example = int(gaps.table["example"].iloc[0])
    own = run.phrases.loc[run.phrases["example"] == example, "iou"].mean()
    assert gaps.table["own"].iloc[0] == pytest.approx(own)
    assert example_gaps(swept / "nothing", run) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ["block.7"]}, "site 'block.7' is unknown; accepted: block.0, block.1"),
        ({"probe": "forest"}, "probe 'forest' is unknown; accepted: linear, mlp"),
        ({"examples": [80]}, "example rows 80 to 80 are not all in the run's 80"),
    ],
)
def test_what_is_not_there_is_refused(run, options, message):
    with pytest.raises(BadInput, match=message):
        probe_maps(run, **{"examples": [0], **options})


def test_a_run_without_tokens_says_how_to_add_them():
    with pytest.raises(BadInput, match="tokens"):
        probe_maps(make_run(20), [0])
