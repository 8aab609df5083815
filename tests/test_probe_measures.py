"""Bits, data and capacity that a probe takes: planted signals, nulls, and numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fake_run import make_run, noise, plant_alignment, plant_xor
from labelled_sites import labelled
from scipy.stats import entropy

from grounding.errors import BadInput
from probe.estimators import BilinearProbe, ConcatenationProbe, MajorityProbe, MLPProbe, RegionOnlyProbe
from probe.features import PairFeatures
from probe.measures import LabelledSites, description_length, frontier, learning_curve, usable_information
from probe.measures.sites import nested_portions

STRENGTHS = (3.0, 0.3, 0.03)
LINEAR = BilinearProbe(tol=1e-4)
FAST = {"resamples": 200}


@pytest.fixture(scope="module")
def sites() -> LabelledSites:
    """Noise, a noisy alignment and a clean one."""
    run = make_run(150)
    run.add("block.0", *noise(run))
    phrase, region = plant_alignment(run)
    random = np.random.default_rng(9)
    run.add("block.1", phrase + 1.5 * random.standard_normal(phrase.shape), region)
    run.add("block.2", phrase, region)
    return labelled(run)


def by_site(table, column="value"):
    return dict(zip(table["site"], table[column], strict=True))


def test_portions_are_nested_whole_images_of_train():
    image = np.repeat([f"i{n}" for n in range(10)], 3)
    train = np.arange(30) < 24
    portions = nested_portions(image, train, (0.01, 0.1, 0.25, 0.5, 1.0))
    assert [mask.sum() for mask in portions] == [3, 6, 12, 24]  # 0.01 and 0.1 are one image of eight
    for smaller, larger in pairwise(portions):
        assert (larger | ~smaller).all()
    for mask in portions:
        assert not set(image[mask]) & set(image[~mask])
    np.testing.assert_array_equal(portions[-1], train)


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 1.5), (0.5, 0.1)])
def test_fractions_that_cannot_be_used_are_named(fractions):
    with pytest.raises(BadInput, match="accepted: rising numbers above 0 and at most 1"):
        nested_portions(np.array(["a", "b"]), np.array([True, True]), fractions)


def test_description_length_ranks_clean_before_noisy_before_none(sites):
    table = description_length(sites, LINEAR, STRENGTHS, **FAST).table
    bits = by_site(table, "bits")
    assert bits["block.2"] < 0.8 * bits["block.1"] < 0.8 * bits["block.0"]
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    np.testing.assert_allclose(table["value"], table["uniform_bits"] / table["bits"])
    np.testing.assert_allclose(table["bits_per_label"] * table["n_labels"], table["bits"])


def test_noise_costs_no_less_than_the_prior_and_a_signal_does(sites):
    prior = by_site(description_length(sites, MajorityProbe(), (1.0,), **FAST).table, "bits")
    bits = by_site(description_length(sites, LINEAR, STRENGTHS, **FAST).table, "bits")
    assert bits["block.0"] > prior["block.0"]
    assert bits["block.2"] < 0.5 * prior["block.2"]


def test_code_of_the_prior_is_that_worked_by_hand():
    """One positive of two in the first image, one of four and three of four in the next two."""
    image = np.repeat(["a", "b", "c", "v"], [2, 4, 4, 2])
    label = np.array([1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0], dtype=bool)
    part = np.where(image == "v", "validation", "train")
    one = np.ones((12, 1), dtype=np.float32)
    rows = PairFeatures(one, one, np.arange(12), np.arange(12))
    data = LabelledSites(["s"], [rows], label, np.arange(12), image, part)
    order = [name for mask in nested_portions(image, part == "train", (0.3, 0.6, 1.0)) for name in set(image[mask])]
    seen = list(dict.fromkeys(order))
    known = np.zeros(12, dtype=bool)
    expected = 0.0
    for name in seen:
        here = image == name
        share = label[known].mean() if known.any() else 0.5
        expected -= np.log2(np.where(label[here], share, 1 - share)).sum()
        known |= here
    found = description_length(data, MajorityProbe(), (1.0,), fractions=(0.3, 0.6, 1.0), **FAST)
    assert found.table["bits"].iloc[0] == pytest.approx(expected, abs=1e-4)
    assert list(found.details["images"]) == [1, 2, 3]
    assert found.details["bits"].iloc[0] == found.details["labels"].iloc[0]  # the first portion: a bit a label


def test_steps_of_the_code_rise_to_its_length(sites):
    found = description_length(sites, LINEAR, STRENGTHS, **FAST)
    for site, steps in found.details.groupby("site"):
        assert steps["bits"].is_monotonic_increasing
        assert steps["bits"].iloc[-1] == pytest.approx(by_site(found.table, "bits")[site])


def test_one_portion_is_no_online_code(sites):
    with pytest.raises(BadInput, match="give 1 portion; description length needs two or more"):
        description_length(sites, LINEAR, STRENGTHS, fractions=(1.0,))


def test_usable_information_is_in_the_signal_and_not_in_noise(sites):
    found = usable_information(sites, LINEAR, STRENGTHS, **FAST)
    value, low, high = (by_site(found.table, name) for name in ("value", "low", "high"))
    assert low["block.2"] > 2
    assert value["block.2"] > value["block.1"] > value["block.0"]
    assert high["block.0"] < 0.1
    assert low["block.0"] < 0 < high["block.0"] + 0.1


def test_pointwise_information_averages_to_that_of_the_site(sites):
    found = usable_information(sites, LINEAR, STRENGTHS, **FAST)
    means = found.details.groupby("site")["bits"].mean()
    for site, value in by_site(found.table).items():
        assert means[site] == pytest.approx(value)
    row = found.table.iloc[0]
    assert row["value"] == pytest.approx(row["entropy_without"] - row["entropy_given"])
    assert len(found.details) == row["n_phrases"] * len(sites.names)


def test_information_of_a_copied_label_is_its_entropy():
    """Three candidates, one of them the phrase's: 3 H(1/3) bits without input, none with it."""
    phrases = 120
    phrase, region = np.repeat(np.arange(phrases), 3), np.arange(3 * phrases)
    label = np.tile([True, False, False], phrases)
    copied = label[:, None].astype(np.float32)
    rows = PairFeatures(np.ones((phrases, 1), dtype=np.float32), copied, phrase, region)
    part = np.repeat(np.repeat(["train", "validation", "test"], 40), 3)
    data = LabelledSites(["s"], [rows], label, phrase, phrase.astype(str), part)
    found = usable_information(data, RegionOnlyProbe(), (1e-4,), **FAST).table.iloc[0]
    expected = -(np.log2(1 / 3) + 2 * np.log2(2 / 3))
    assert found["entropy_without"] == pytest.approx(expected, abs=1e-4)
    assert found["value"] == pytest.approx(expected, abs=0.05)


def test_information_beyond_a_weaker_probe_leaves_out_what_that_one_reads():
    run = make_run(150)
    phrase, region = noise(run)
    region[:, 0] += 3 * (run.regions["phrase"].to_numpy() >= 0)
    run.add("block.0", phrase, region)
    data = labelled(run)
    all_of_it = usable_information(data, ConcatenationProbe(tol=1e-4), STRENGTHS, **FAST).table.iloc[0]
    beyond = usable_information(data, ConcatenationProbe(tol=1e-4), STRENGTHS, RegionOnlyProbe(), **FAST).table.iloc[0]
    # Eight candidates, three of them annotated, one of these the phrase's: 8 H(1/8) - 3 H(1/3) bits can be read.
    most = 8 * entropy([1, 7], base=2) - 3 * entropy([1, 2], base=2)
    assert most / 2 < all_of_it["low"] < all_of_it["value"] < most
    assert abs(beyond["value"]) < 0.1


def test_learning_curve_rises_where_there_is_something_to_learn(sites):
    table = learning_curve(sites, LINEAR, STRENGTHS, scores=["choice_accuracy"], **FAST).table
    curves = {site: rows["value"].to_numpy() for site, rows in table.groupby("site")}
    assert curves["block.1"][-1] > curves["block.1"][0] + 0.1
    assert (curves["block.2"] > curves["block.1"]).all()
    noisy = table[table["site"] == "block.0"]
    last = noisy.iloc[-1]
    assert last["low"] < last["chance"] < last["high"]
    assert list(noisy["images"]) == [6, 12, 23, 45, 90]


def test_frontier_of_a_form_of_rank_two_ends_there():
    run = make_run(200)
    phrase, region = plant_alignment(run, width=2)
    random = np.random.default_rng(0)
    spread = [np.linalg.qr(random.standard_normal((8, 8)))[0][:2] for _ in range(2)]
    run.add("block.0", phrase @ spread[0], region @ spread[1])
    table = frontier(labelled(run), LINEAR, STRENGTHS, (1, 2, 4), scores=["auc"], **FAST).table
    one, two, four = table["value"]
    assert two > one + 0.05
    assert four == pytest.approx(two, abs=0.01)
    assert list(table["parameters"]) == [1 * (16 - 1) + 1, 2 * (16 - 2) + 1, 4 * (16 - 4) + 1]
    assert list(table["on_frontier"])[:2] == [True, True]


def test_frontier_of_the_mlp_varies_its_width_and_an_xor_needs_some():
    run = make_run(400, n_phrases=1)
    run.add("block.0", *plant_xor(run))
    table = frontier(labelled(run), MLPProbe(), (1.0,), (1, 16), scores=["choice_accuracy"], **FAST).table
    narrow, wide = table["value"]
    assert wide > 0.8 > narrow
    inputs = 3 * 8
    assert list(table["parameters"]) == [inputs + 1 + 1 + 1, 16 * inputs + 16 + 16 + 1]


def test_frontier_leaves_out_ranks_that_do_not_fit_and_probes_without_complexity(sites):
    table = frontier(sites, LINEAR, (1.0,), (8, 16, 32), scores=["auc"], **FAST).table
    assert list(table["complexity"].unique()) == [8, 16]
    with pytest.raises(BadInput, match="ConcatenationProbe has no complexity to vary"):
        frontier(sites, ConcatenationProbe(), (1.0,))
    with pytest.raises(BadInput, match="accepted: rising whole numbers from 1"):
        frontier(sites, LINEAR, (1.0,), (4, 2))


def test_random_labels_have_no_frontier_and_teach_nothing(sites):
    random = np.random.default_rng(2)
    shuffled = replace(sites, label=random.permutation(sites.label))
    table = learning_curve(shuffled, LINEAR, STRENGTHS, (0.5, 1.0), scores=["auc"], **FAST).table
    assert (table["low"] < 0.5).all()
    assert (table["high"] > 0.5).all()
    bits = by_site(description_length(shuffled, LINEAR, STRENGTHS, **FAST).table, "bits")
    prior = by_site(description_length(shuffled, MajorityProbe(), (1.0,), **FAST).table, "bits")
    assert all(bits[site] > prior[site] for site in bits)
