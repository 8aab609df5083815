"""Attention as grounding: planted heads are found and others are not, and nothing is chosen on what is reported."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from fake_maps import CELLS, IMAGES, SIDE, make_maps, noise, own_cells

from grounding.errors import BadInput
from probe.heads.maps import KINDS, baseline_maps, sink_filtered
from probe.heads.questions import Block, blocks
from probe.heads.score import COLUMNS, above_zero, score_heads
from probe.heads.tables import read_heads
from visualize.heads import head_maps

torch.set_num_threads(1)


def planted(split: str, seed: int):
    """Head 1 of block.1 looks at its phrase's cell; head 0 of block.2 does too, but an image's sink outshines it."""
    run = make_maps(split, seed=seed)
    random, rows = np.random.default_rng(seed + 10), np.arange(len(run.phrases))
    sink = random.integers(CELLS, size=len(run.examples))[run.phrases["example"]]
    seeing, sunk = noise(run, seed=seed + 1), noise(run, seed=seed + 2)
    seeing[rows, 1, own_cells(run)] += 2
    sunk[rows, 0, own_cells(run)] += 2
    sunk[rows, 0, sink] += 9
    run.add("block.0", noise(run, seed=seed + 3))
    run.add("block.1", seeing)
    run.add("block.2", sunk)
    return run


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    run, select = planted("dev", 0), planted("tune", 1)
    out = tmp_path_factory.mktemp("heads")
    ticks = []
    table = score_heads(run, select, out=out, progress=lambda *tick: ticks.append(tick), resamples=200)
    return run, table, out, ticks


def row(table, site, head, kind="raw", scope="canvas", measure="pointing"):
    asked = {"site": site, "head": head, "kind": kind, "scope": scope, "measure": measure}
    found = table[np.logical_and.reduce([table[name] == value for name, value in asked.items()])]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("scope", ["canvas", "candidate"])
def test_the_planted_head_is_found_chosen_and_perfect(scored, scope):
    _, table, _, _ = scored
    for measure in ("pointing", "iou"):
        best = row(table, "block.1", "1", scope=scope, measure=measure)
        assert best["value"] == 1.0
        assert best["selected"]
        assert best["p_holm"] < 1e-6
        assert best["gain_low"] > 0.5
    assert table.loc[table["selected"] & (table["kind"] == "raw"), "site"].eq("block.1").all()


def test_heads_of_noise_are_at_chance_and_not_above_the_centre(scored):
    _, table, _, _ = scored
    even = row(table, "", "all", "even")["value"]
    assert even == pytest.approx(1 / CELLS)
    for site, head in (("block.0", "0"), ("block.0", "1"), ("block.0", "mean"), ("block.1", "0"), ("block.2", "1")):
        null = row(table, site, head)
        assert null["low"] <= even <= null["high"]
        assert null["p_holm"] > 0.05
        assert not null["selected"]


def test_a_sink_hides_the_head_until_it_is_filtered_out(scored):
    _, table, _, _ = scored
    assert row(table, "block.2", "0")["value"] < 0.1
    assert row(table, "block.2", "0")["p_holm"] > 0.05
    assert row(table, "block.2", "0", "sink-filtered")["value"] > 0.9
    assert row(table, "block.2", "0", "sink-filtered")["p_holm"] < 1e-6


def test_baselines_are_what_can_be_worked_out(scored):
    run, table, _, _ = scored
    cell = own_cells(run) % (SIDE * SIDE)
    middle = np.isin(cell, [5, 6, 9, 10])
    centre = row(table, "", "all", "centre")
    assert centre["value"] == pytest.approx(middle.mean() / 4 / IMAGES)  # twelve cells tie for the peak
    assert row(table, "", "all", "centre", "candidate")["value"] == pytest.approx(middle.mean() / 4)
    assert row(table, "", "all", "ceiling", measure="iou")["value"] == 1.0
    assert row(table, "", "all", "own", measure="iou")["value"] == 0.5
    assert row(table, "block.1", "1", measure="iou")["own_gain"] == pytest.approx(0.5)


def test_thresholds_and_heads_come_from_the_tuning_run_alone():
    run, select = make_maps("dev"), make_maps("tune", seed=1)
    right, wrong = noise(run), noise(select, seed=2)
    right[np.arange(len(run.phrases)), 0, own_cells(run)] += 2  # good only where it is reported
    wrong[np.arange(len(select.phrases)), 1, own_cells(select)] += 2
    run.add("block.0", right)
    select.add("block.0", wrong)
    table = score_heads(run, select, ["raw"], resamples=50)
    assert row(table, "block.0", "0")["value"] > 0.9
    assert not row(table, "block.0", "0")["selected"]
    assert row(table, "block.0", "1")["selected"]
    assert row(table, "block.0", "1")["value"] < 0.2
    again = score_heads(select, run, ["raw"], resamples=50)
    level = row(again, "block.0", "0", measure="iou")
    assert level["threshold"] >= 0.5  # noise of the run where the head sees reaches half of its peak
    assert level["tuning_value"] == pytest.approx(row(table, "block.0", "0", measure="iou")["value"], abs=0.2)


def test_table_and_files(scored):
    run, table, out, ticks = scored
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(["kind", "site", "head", "scope", "measure"]).any()
    assert len(table) == (3 + 2 * 3 * 3) * 2 * 2 + 2  # baselines, kinds of sites of heads, scopes, measures; own
    assert ticks[-1] == (9, 9)
    read = read_heads(out, run)
    pd.testing.assert_frame_equal(
        read[["kind", "site", "head", "selected"]], table[["kind", "site", "head", "selected"]]
    )
    assert json.loads((out / "heads.json").read_text())["run"]["phrases"] == 180
    words = (out / "summary.md").read_text()
    assert "180 phrases in 60 images of split dev" in words
    assert "| raw | block.1, head 1 | 1.000 [1.000, 1.000] |" in words
    assert "raw: 2 of 9 maps are above the centre baseline after correction" in words  # the head, and the mean with it
    other = make_maps("dev", seed=5)
    with pytest.raises(BadInput, match=r"heads '.*' is of run hash-dev-0; accepted: one of this run, hash-dev-5"):
        read_heads(out, other)


def test_the_figure_has_a_panel_for_each_kind_and_measure(scored):
    _, table, _, _ = scored
    figure = head_maps(table, "candidate")
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles[:4] == ["raw: pointing", "sink-filtered: pointing", "raw: mean IoU", "sink-filtered: mean IoU"]
    values = {text.get_text() for text in figure.axes[0].texts}
    assert "1.00" in values
    with pytest.raises(BadInput, match="scope 'page' is unknown; accepted: canvas, candidate"):
        head_maps(table, "page")
    with pytest.raises(BadInput, match="baselines only"):
        head_maps(table[table["kind"] == "centre"])


def test_filtering_by_hand():
    run = make_maps(n_examples=2, n_phrases=2)
    block = blocks(run)[0]
    cells = np.zeros((4, 1, CELLS))
    cells[:, 0, :3] = [[5, 1, 0], [5, 0, 2], [4, 4, 0], [1, 0, 0]]
    found = sink_filtered(cells, block)[:, 0, :3]
    assert found.tolist() == [[0, 1, 0], [0, 0, 2], [3, 4, 0], [0, 0, 0]]
    alone = make_maps(n_examples=2, n_phrases=1)
    cells = noise(alone)
    np.testing.assert_array_equal(sink_filtered(cells, blocks(alone)[0]), cells)


def test_a_map_that_says_nothing_is_even_and_ties_count_by_their_share():
    block = blocks(make_maps(n_examples=1, n_phrases=1))[0]
    ious, pointed = block.score(torch.zeros(1, IMAGES, SIDE, SIDE), "canvas", (0.5,))
    assert pointed.tolist() == [pytest.approx(1 / CELLS)]
    assert ious.tolist() == [[pytest.approx(1 / CELLS)]]
    ious, pointed = block.score(-torch.ones(1, IMAGES, SIDE, SIDE), "candidate", (0.5,))
    assert pointed.tolist() == [pytest.approx(1 / SIDE**2)]


def test_rows_that_are_no_whole_number_for_a_candidate_are_cut():
    inside = torch.zeros(1, 3, 1)
    block = Block(np.array([0]), np.array([0]), 2, (3, 1), torch.tensor([1]), inside[:, None], inside)
    maps = block.candidates(np.array([[[1.0, 2.0, 3.0]]]))
    assert maps[0, 0, :, :, 0].tolist() == [[1, 1, 2], [2, 3, 3]]
    assert baseline_maps("even", block).shape == (1, 2, 3, 1)


def test_single_images_have_one_scope():
    runs = [make_maps(split, seed=seed) for seed, split in enumerate(("dev", "tune"))]
    for run in runs:
        run.examples["n_images"], run.phrases["image_index"], run.regions["image_index"] = 1, 0, 0
        run.add("block.0", noise(run))
    assert set(score_heads(*runs, resamples=20)["scope"]) == {"canvas"}


def test_p_values_of_a_null_are_uniform_with_clustered_errors():
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(40), 3)
    found = np.array([above_zero(np.repeat(random.normal(size=40), 3), images) for _ in range(400)])
    assert 0.02 < (found < 0.05).mean() < 0.09  # as if the phrases of an image were independent: 0.17
    assert above_zero(np.zeros(6), np.arange(6)) == 1.0
    assert above_zero(np.ones(6), np.arange(6)) == 0.0


def test_runs_that_do_not_go_together():
    run, select = planted("dev", 0), planted("tune", 1)
    with pytest.raises(BadInput, match=r"60 images are in both runs \('dev-0', ...\)"):
        score_heads(run, planted("dev", 3))
    with pytest.raises(BadInput, match="split 'test' is a test split"):
        score_heads(run, planted("test", 3))
    select.manifest["identity"]["fresh_weights"] = 0
    with pytest.raises(BadInput, match=r"select 'runs/tune' is of another checkpoint than 'runs/dev'"):
        score_heads(run, select)
    del select.manifest["identity"]["fresh_weights"]
    select.manifest["identity"]["checkpoint"] = "other"
    with pytest.raises(BadInput, match=r"select 'runs/tune' is of another checkpoint than 'runs/dev'"):
        score_heads(run, select)
    lone = planted("dev", 0)
    lone.phrases = lone.phrases[lone.phrases["example"] == 0]
    with pytest.raises(BadInput, match="run 'runs/dev' has phrases in 1 image; accepted: 2 or more, for intervals"):
        score_heads(lone, planted("tune", 1))
    with pytest.raises(BadInput, match="kind 'row' is unknown; accepted: raw, sink-filtered"):
        score_heads(run, planted("tune", 1), ["row"])
    with pytest.raises(BadInput, match=r"site 'block.9' is unknown; accepted: block.0, block.1, block.2"):
        score_heads(run, planted("tune", 1), sites=["block.9"])


def test_a_run_without_attention_is_told_how_to_get_it():
    run, select = planted("dev", 0), planted("tune", 1)
    run.sites = []
    with pytest.raises(BadInput, match="holds no attention; add it: probe extract --out runs/dev --add-view attention"):
        score_heads(run, select)
    select.sites = select.sites[:2]
    with pytest.raises(
        BadInput, match=r"holds no attention of block\.2; add it: probe extract --out runs/tune --add-view attention"
    ):
        score_heads(planted("dev", 0), select)


def test_the_command_lists_every_kind():
    from probe.cli.heads import KIND_NAMES

    assert ", ".join(KINDS) == KIND_NAMES
