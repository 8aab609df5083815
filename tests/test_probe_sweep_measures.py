"""Measures taken in a sweep: tables of their own, kept and read back, words that choose no site on test, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import make_run, noise, plant_alignment, twin_of

from grounding.errors import BadInput
from probe.measures.asked import ABOUT
from probe.measures.words import measure_lines
from probe.settings import MEASURES
from probe.sweep import sweep
from probe.tables import read_measures
from visualize.measures import FIGURES, draw_measure

torch.set_num_threads(1)
LINEAR = {"probes": ("linear",), "resamples": 100, "linear_strengths": (1.0, 0.1)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    run = make_run(80)
    run.add("block.0", *noise(run))
    run.add("block.1", *plant_alignment(run))
    out = tmp_path_factory.mktemp("sweep")
    controls = ("labels", "position-only", "random-model")
    arguments = {"controls": controls, "measures": MEASURES, "twins": {"fake": twin_of(run)}, "out": out, **LINEAR}
    return run, out, sweep(run, **arguments), arguments


def test_each_measure_has_a_table_that_says_what_it_is_of(measured):
    run, out, table, _ = measured
    tables = read_measures(out, run)
    assert list(tables) == [*MEASURES, "description-length-portions", "usable-information-phrases"]
    for found in tables.values():
        assert list(found.columns[: len(ABOUT)]) == ABOUT
        assert set(found["run"]) == {"fake"}
        assert set(found["question"]) == {"alignment"}
        assert list(found["site"].unique()) == ["block.0", "block.1"]
    conditions = {"alignment", "control-labels", "position-only", "random-model"}
    assert set(tables["usable-information"]["condition"]) == conditions
    code = tables["description-length"]
    assert set(code.loc[code["probe"] == "linear", "condition"]) == conditions
    assert set(code["probe"]) == {"linear", "majority"}
    assert set(tables["frontier"]["condition"]) == {"alignment"}
    assert set(table["score"]) == {"choice_accuracy", "average_precision", "auc"}  # measures are not in it


def test_bits_are_in_the_planted_alignment_and_in_none_of_its_controls(measured):
    run, out, _, _ = measured
    tables = read_measures(out, run)
    information = tables["usable-information"].set_index(["site", "condition"])["value"]
    code = tables["description-length"].set_index(["site", "probe", "condition"])["value"]
    for condition in ("control-labels", "position-only", "random-model"):
        assert information["block.1", "alignment"] > information["block.1", condition] + 1
        assert code["block.1", "linear", "alignment"] > 1.2 * code["block.1", "linear", condition]
    assert code["block.1", "linear", "alignment"] > 1.2 * code["block.1", "majority", "alignment"]


def test_a_finished_sweep_is_read_and_not_done_again(measured, monkeypatch):
    run, out, table, arguments = measured
    before = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    monkeypatch.setattr("probe.units.take", None)
    pd.testing.assert_frame_equal(sweep(run, **arguments), table)
    assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == before


def test_words_name_the_site_and_its_figures(measured):
    words = (measured[1] / "summary.md").read_text()
    assert "alignment, linear: the shortest code is at `block.1`" in words
    assert "bits a phrase at `block.1`, the site of the lowest validation loss" in words
    assert "alignment, linear, at `block.1`: " in words
    assert "The lowest validation loss is at " in words


def test_nothing_follows_from_few_images_and_blind_codes_are_of_their_question(measured):
    run, out, _, _ = measured
    tables = read_measures(out, run)
    assert "images. " in "\n".join(measure_lines(tables))
    assert "images. " not in "\n".join(measure_lines(tables, {("fake", "alignment")}))
    twice = {name: pd.concat([t, t.replace("alignment", "queries")], ignore_index=True) for name, t in tables.items()}
    codes = [line for line in measure_lines(twice) if "the shortest code" in line]
    assert len(codes) == 2 * len([line for line in measure_lines(tables) if "the shortest code" in line])
    assert all(line.count("the share of positives alone") == 1 for line in codes)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_what_the_tables_hold(measured, name):
    run, out, _, _ = measured
    tables = read_measures(out, run)
    figure = draw_measure(name, tables, "alignment")
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in figure.axes[0].lines])
    table = tables[name][tables[name]["probe"] != "majority"]
    if "score" in table:
        table = table[table["score"] == table["score"].iloc[0]]
    assert set(table["value"].round(9)) <= set(drawn.astype(float).round(9))


def test_figures_refuse_other_tables(measured):
    with pytest.raises(
        BadInput, match=r"frontier table lacks the columns .*; accepted: one that probe sweep --measure"
    ):
        draw_measure("frontier", {"frontier": pd.DataFrame({"question": ["alignment"]})}, "alignment")


def test_what_cannot_be_measured_is_named(tmp_path):
    run = make_run(20)
    run.add("block.0", *noise(run))
    with pytest.raises(BadInput, match=r"measure 'bits' is unknown; accepted: description-length, usable-information"):
        sweep(run, measures=("bits",), out=tmp_path)
    with pytest.raises(BadInput, match="measures are written as tables of their own; give out"):
        sweep(run, measures=("frontier",))
    with pytest.raises(BadInput, match="measure 'frontier' is not of the questions boxes; accepted: alignment"):
        sweep(run, measures=("frontier",), questions=("boxes",), out=tmp_path)
    assert not list(tmp_path.iterdir())
