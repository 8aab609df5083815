import json

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import FakeSite, make_run, noise, plant_alignment, plant_xor, twin_of

from grounding.errors import BadInput
from probe.conditions import DIFFERENCES
from probe.features import read_rows
from probe.joined import COLUMNS as JOINED_COLUMNS
from probe.questions import QUESTIONS
from probe.questions.base import matching_sites
from probe.settings import CONTROLS, SweepSettings
from probe.significance import enough_resamples
from probe.summary import summarise
from probe.sweep import COLUMNS, sweep
from probe.tables import read_sweep
from probe.wording import figure

torch.set_num_threads(1)
FAST = {"resamples": 200}
SETTINGS = {"controls": [], "resamples": 200}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    run = make_run(300)
    run.add("block.0", *noise(run))
    run.add("block.1", *plant_alignment(run))
    out = tmp_path_factory.mktemp("sweep")
    ticks = []
    twins = {"fake": twin_of(run)}
    table = sweep(run, controls="all", out=out, progress=lambda *tick: ticks.append(tick), twins=twins, **FAST)
    return run, table, out, ticks


def _row(table, site, probe, condition="alignment", score="choice_accuracy"):
    asked = {"site": site, "probe": probe, "condition": condition, "score": score}
    rows = table[np.logical_and.reduce([table[name] == value for name, value in asked.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def _at_chance(row):
    return row["low"] <= row["chance"] <= row["high"]


@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_planted_alignment_is_found_where_it_is_and_not_elsewhere(planted, probe):
    _, table, _, _ = planted
    assert _row(table, "block.1", probe)["value"] > 0.9
    assert _row(table, "block.1", probe, score="auc")["value"] > 0.9
    assert _row(table, "block.1", probe, score="average_precision")["value"] > 0.8
    assert _at_chance(_row(table, "block.0", probe))
    assert _at_chance(_row(table, "block.0", probe, score="auc"))


@pytest.mark.parametrize("control", ["concatenation", "phrase-only", "region-only", "majority"])
def test_baselines_stay_at_chance_for_a_planted_alignment(planted, control):
    _, table, _, _ = planted
    assert _at_chance(_row(table, "block.1", control))


@pytest.mark.parametrize("control", ["phrase-only", "majority"])
def test_what_cannot_rank_candidates_is_exactly_at_chance_of_choosing(planted, control):
    row = _row(planted[1], "block.1", control)
    assert row["value"] == pytest.approx(row["chance"])


@pytest.mark.parametrize("control", ["position-only", "random-model"])
@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_other_features_than_the_models_states_stay_at_chance_and_below_the_alignment(planted, probe, control):
    _, table, _, _ = planted
    only = _row(table, "block.1", probe, control)
    assert only["low"] < only["chance"]
    above = _row(table, "block.1", probe, f"above-{control}")
    real, other = (_row(table, "block.1", probe, condition) for condition in ("alignment", control))
    assert above["value"] == pytest.approx(real["value"] - other["value"])
    assert above["low"] > 0.5
    assert _row(table, "block.0", probe, f"above-{control}")["low"] < 0


def test_p_values_find_the_planted_site_after_correction_and_not_the_other(planted):
    _, table, _, _ = planted
    for probe in ("linear", "mlp"):
        planted_row, noisy = (_row(table, site, probe) for site in ("block.1", "block.0"))
        least = 1 / 201  # of 200 resamples
        assert planted_row["p_chance"] == planted_row["p_control"] == pytest.approx(least)
        assert planted_row["p_chance_holm"] == planted_row["p_control_holm"] == pytest.approx(2 * least)
        assert noisy["p_chance_holm"] > 0.05
        assert noisy["p_control_holm"] > 0.05
    assert set(DIFFERENCES) == {"control-labels", *CONTROLS} - {"labels"}
    differences = [_row(table, "block.0", "mlp", name)["p_chance"] for name in DIFFERENCES.values()]
    assert _row(table, "block.0", "mlp")["p_control"] == max(differences)
    assert table.loc[table["probe"] == "concatenation", "p_control"].isna().all()


def test_selectivity_of_a_planted_alignment_is_high_and_of_noise_none(planted):
    _, table, _, _ = planted
    real, control = (_row(table, "block.1", "linear", c) for c in ("alignment", "control-labels"))
    selectivity = _row(table, "block.1", "linear", "selectivity")
    assert selectivity["value"] == pytest.approx(real["value"] - control["value"])
    assert selectivity["low"] > 0.5
    assert _at_chance(control)
    assert _at_chance(_row(table, "block.0", "linear", "selectivity"))


def test_signal_of_type_and_place_alone_shows_in_the_control_and_not_in_selectivity():
    run = make_run(500, n_types=3, n_extra=9)
    random = np.random.default_rng(0)
    kind = run.phrases["type"].str[-1].astype(int).to_numpy()
    centres = (run.regions[["x1", "y1"]].to_numpy() + run.regions[["x2", "y2"]].to_numpy()) / 2
    place = (centres * 4).astype(int) @ [1, 4]
    phrase = random.standard_normal((3, 12))[kind] + 0.05 * random.standard_normal((len(kind), 12))
    region = np.eye(16)[place] @ random.standard_normal((16, 24)) + 0.05 * random.standard_normal((len(place), 24))
    run.add("block.0", phrase, region)
    table = sweep(run, probes=("linear",), controls=("labels",), **FAST)
    control = _row(table, "block.0", "linear", "control-labels")
    assert control["low"] > control["chance"] + 0.3
    assert _at_chance(_row(table, "block.0", "linear"))
    assert _row(table, "block.0", "linear", "selectivity")["high"] < 0


def test_xor_is_found_by_the_mlp_and_not_by_the_linear_probe():
    run = make_run(500, n_phrases=1)
    run.add("block.0", *plant_xor(run))
    table = sweep(run, controls=(), **FAST)
    assert _row(table, "block.0", "mlp")["value"] > 0.9
    linear = _row(table, "block.0", "linear")
    assert linear["low"] < linear["chance"] + 0.02
    assert linear["value"] < 0.35


def test_regions_that_look_annotated_lift_the_concatenation_control():
    run = make_run(200)
    phrase, region = noise(run)
    region[:, 0] += 4 * (run.regions["phrase"].to_numpy() >= 0)
    run.add("block.0", phrase, region)
    table = sweep(run, probes=("linear",), controls=("concatenation",), **FAST)
    row = _row(table, "block.0", "concatenation")
    assert row["low"] > row["chance"]
    assert row["value"] == pytest.approx(1 / 3, abs=0.12)  # one of the three annotated regions


def test_what_a_baseline_reads_too_is_counted_against_the_probe(tmp_path):
    run = make_run(300)
    phrase, region = noise(run)
    region[:, 0] += 4 * (run.regions["phrase"].to_numpy() >= 0)
    run.add("block.0", phrase, region)
    table = sweep(run, ("mlp",), ("labels", "region-only"), out=tmp_path, **FAST)
    mlp, above, selectivity = (
        _row(table, "block.0", "mlp", name) for name in ("alignment", "above-region-only", "selectivity")
    )
    assert above["value"] == pytest.approx(mlp["value"] - _row(table, "block.0", "region-only")["value"])
    assert max(mlp["p_chance"], selectivity["p_chance"]) < 0.05 < mlp["p_control"] == above["p_chance"]
    words = (tmp_path / "summary.md").read_text()
    assert "Above chance, but not clearly above region-only: which region is meant may be told without" in words
    assert "Not shown to be above every one of its controls at 5 %: `block.0`." in words


def test_table_is_tidy_and_complete(planted):
    _, table, _, ticks = planted
    assert list(table.columns) == COLUMNS
    # linear and mlp: alignment, three controls, differences from them and from four baselines; those
    conditions = 2 * (1 + 3 + 3 + 4) + 4
    assert len(table) == 2 * conditions * 3
    assert not table.duplicated(["site", "probe", "condition", "score", "seed"]).any()
    assert (table["low"] <= table["high"]).all()
    assert (table["n_images"] == 60).all()
    assert (table["n_phrases"] == 180).all()
    assert list(table["site"].unique()) == ["block.0", "block.1"]
    reads = table["condition"] == "position-only"
    assert table.loc[(table["probe"] == "linear") & ~reads, "rank"].eq(16).all()
    assert table.loc[(table["probe"] == "linear") & reads, "rank"].eq(6).all()  # a box, its area, one candidate
    assert table.loc[table["probe"] == "mlp", "rank"].isna().all()
    assert _row(table, "block.0", "linear")["chance"] == pytest.approx(1 / 8)
    assert ticks == [(done, 6) for done in range(1, 7)]


def test_files_hold_the_table_its_settings_and_words(planted):
    _, table, out, _ = planted
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "sweep.csv"), table.astype({"rank": float}), check_dtype=False, check_exact=False, rtol=1e-9
    )
    stored = json.loads((out / "sweep.json").read_text())
    assert [run["identity_hash"] for run in stored["runs"]] == ["fake"]
    assert stored["settings"]["seeds"] == [0]
    assert stored["settings"]["folds"] == 5
    (split,) = stored["asked"][0]["splits"]
    assert split["parts"]["test"] == {"images": 60, "phrases": 180, "pairs": 1440}
    assert split["seen_types"] == 1
    assert len(stored["rows"]) == len(table)
    assert stored["rows"][0]["value"] == pytest.approx(table["value"][0], abs=1e-5)
    words = (out / "summary.md").read_text()
    assert "Best site (by validation loss, of 2): `block.1`" in words
    assert "can be matched at this site" in words
    assert "Not shown to be above chance after Holm's correction over 2 sites: `block.0`." in words
    assert "Not shown to be above every one of its controls after Holm's correction over 2 sites: `block.0`." in words
    assert "more than the same probe memorises" in words
    assert "Above the same probe on places instead of states: " in words
    assert "more than the architecture gives without training" in words
    assert "Too few test images" not in words


@pytest.mark.parametrize(("images", "few"), [(9, True), (10, False)])
def test_nothing_is_concluded_from_few_images(planted, images, few):
    parts = {"test": {"images": images, "phrases": 27}}
    split = {"seed": 0, "parts": parts, "seen_types": None}
    asked = {"run": "fake", "question": "alignment", "left_out": 0, "notes": [], "controls": [], "splits": [split]}
    nothing = pd.DataFrame(columns=JOINED_COLUMNS)
    words = summarise(planted[1], nothing, {"runs": [{"name": "fake"}], "asked": [asked], "settings": SETTINGS})
    assert ("Too few test images to conclude anything: 9; at least 10 are needed." in words) == few
    assert all(
        (said in words) == (not few) for said in ("can be matched", "the same probe memorises", "shown to be above")
    )
    assert words.count("Selectivity (minus control labels): ") == 2


def test_a_sweep_is_read_back_for_its_own_run_only(planted, tmp_path):
    run, table, out, _ = planted
    assert len(read_sweep(out, run)) == len(table)
    other = make_run(20)
    other.manifest["identity_hash"] = "other"
    with pytest.raises(BadInput, match=r"sweep '.*' is of run fake; accepted: a sweep of this run, other$"):
        read_sweep(out, other, required=False)
    assert read_sweep(tmp_path, run, required=False) is None
    with pytest.raises(BadInput, match=r"holds no sweep\.csv"):
        read_sweep(tmp_path, run)
    (tmp_path / "sweep.csv").write_text("site\n")
    with pytest.raises(BadInput, match=r"holds no sweep\.json"):
        read_sweep(tmp_path, run, required=False)


def test_sites_of_unequal_widths_and_partners_are_swept():
    run = make_run(60)
    phrase, region = plant_alignment(run, 8)
    wide = np.hstack([region, np.random.default_rng(0).standard_normal((len(region), 4))])
    run.add("encoder.0", phrase, wide)
    run.add("block.0", phrase, region)
    run.sites.append(FakeSite("vision.0", "vision", 0, views=("region",), phrase_partner="block.0"))
    run.sites.append(FakeSite("vision.1", "vision", 1, views=("region",)))  # no phrase rows anywhere
    run.rows["vision.0", "phrase"], run.rows["vision.0", "region"] = phrase, region
    table = sweep(run, controls=(), **FAST)
    assert list(table["site"].unique()) == ["encoder.0", "block.0", "vision.0"]
    assert (table.loc[table["score"] == "auc", "value"] > 0.7).all()


def test_sites_can_be_named_or_taken_by_stage():
    run = make_run(10)
    for name in ("block.0", "block.1", "encoder.0"):
        run.add(name, *noise(run))
    sites = QUESTIONS["alignment"](run, SweepSettings()).sites()
    assert [s.name for s in matching_sites(sites, ["block.*"])] == ["block.0", "block.1"]
    assert [s.name for s in matching_sites(sites, ["encoder.0", "encoder.*"])] == ["encoder.0"]
    with pytest.raises(BadInput, match=r"site 'blok.0' is unknown; accepted: block.0, block.1, encoder.0"):
        matching_sites(sites, ["blok.0"])


@pytest.mark.parametrize(
    "given",
    [{"seeds": (0, 0)}, {"questions": ("alignment",) * 2}, {"probes": ("linear",) * 2}, {"controls": ("labels",) * 2}],
)
def test_nothing_is_asked_twice(given):
    with pytest.raises(BadInput, match=rf"{next(iter(given))} .* name one twice; accepted: each once"):
        SweepSettings(**given)


def test_bad_runs_are_named():
    run = make_run(20)
    run.add("block.0", *noise(run))
    run.rows["block.0", "region"][3, 5] = np.inf
    with pytest.raises(BadInput, match=r"site 'block.0': 1 of 160 region rows are not finite"):
        sweep(run)
    run.rows["block.0", "region"] = run.rows["block.0", "region"][:100]
    with pytest.raises(BadInput, match="holds 100 region rows for 160 regions: some shards lack it"):
        read_rows(run, "block.0", "region")
    few = make_run(4)
    few.add("block.0", *noise(few))
    with pytest.raises(BadInput, match="fewer than 5 folds"):
        sweep(few)
    bare = make_run(20)
    with pytest.raises(BadInput, match=r"no site of the run, whose sites hold .*, has phrase and region rows"):
        sweep(bare)


def test_bad_arguments_are_named(tmp_path):
    run = make_run(20)
    run.add("block.0", *noise(run))
    with pytest.raises(BadInput, match="probe 'svm' is unknown; accepted: linear, mlp"):
        sweep(run, probes=("svm",))
    with pytest.raises(BadInput, match="control 'label' is unknown"):
        sweep(run, controls=("label",))
    with pytest.raises(BadInput, match="controls 'labels' is unknown; accepted: all"):
        sweep(run, controls="labels")
    with pytest.raises(BadInput, match="at least one of each"):
        sweep(run, seeds=())
    with pytest.raises(BadInput, match="seed -1 is too small; accepted: 0 or more"):
        sweep(run, seeds=(0, -1))
    with pytest.raises(BadInput, match="strengths"):
        sweep(run, linear_strengths=())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is not a folder"):
        sweep(run, probes=("linear",), controls=(), out=tmp_path / "file", **FAST)
    description = tmp_path / "taken" / "sweep.json"
    description.parent.mkdir()
    for content, message in {
        '{"runs": [{"name": "x", "identity_hash": "another"}]}': "taken' holds a sweep of another run, another, not",
        '{"run"': "sweep.json does not describe a sweep",
    }.items():
        description.write_text(content)
        with pytest.raises(BadInput, match=message):
            sweep(run, probes=("linear",), controls=(), out=description.parent, **FAST)
        assert [path.read_text() for path in description.parent.iterdir()] == [content]


def test_a_rank_that_positions_are_too_few_for_is_cut_there_and_refused_elsewhere():
    run = make_run(60)
    run.add("block.0", *plant_alignment(run))
    table = sweep(run, probes=("linear",), controls=("position-only",), rank=8, **FAST)
    assert set(table.loc[table["condition"] == "position-only", "rank"]) == {6}
    with pytest.raises(BadInput, match="rank 17 is out of range; accepted: 1 to 16"):
        sweep(run, probes=("linear",), controls=(), rank=17, **FAST)


def test_a_twin_of_other_regions_or_a_run_that_can_have_none_is_refused():
    run = make_run(20)
    run.add("block.0", *noise(run))
    other = twin_of(run)
    other.regions = other.regions.assign(x1=0.0)
    with pytest.raises(BadInput, match=r"'fake-random' is no twin of 'fake': its regions differ; remove it"):
        sweep(run, controls=("random-model",), twins={"fake": other})
    with pytest.raises(BadInput, match=r"'fake' has no twin .* leave out the control 'random-model'"):
        sweep(run, controls=("random-model",))


def test_control_without_a_type_in_common_is_refused():
    run = make_run(20)
    run.add("block.0", *noise(run))
    run.phrases["type"] = [f"only-{i}" for i in range(len(run.phrases))]
    with pytest.raises(BadInput, match="no phrase type of the test part occurs in train"):
        sweep(run, controls=("labels",))


def test_a_question_goes_without_controls_that_it_lacks_and_says_so(tmp_path):
    run = make_run(60)
    run.add("block.0", *noise(run))
    asked = {"probes": ["linear"], "questions": ("alignment", "boxes"), **FAST}
    table = sweep(run, controls=["labels"], out=tmp_path, **asked)
    assert set(table[table["question"] == "boxes"]["condition"]) == {"boxes"}
    words = (tmp_path / "summary.md").read_text()
    assert words.count("Not of this question, and so not beside it: the control(s) labels.") == 1
    assert "No control stands beside its figures; it has: random-model." in words
    with pytest.raises(BadInput, match="control 'labels' is not of the question boxes; accepted: random-model"):
        sweep(run, controls=["labels"], questions=("boxes",))
    with pytest.raises(BadInput, match="control 'majority' is not of the questions boxes, aligner-head; accepted: r"):
        sweep(run, controls=["majority"], questions=("boxes", "aligner-head"))
    with pytest.raises(BadInput, match="control 'random-model' is not of the question aligner-head; accepted: none"):
        sweep(run, controls=["random-model"], questions=("aligner-head",))
    assert set(sweep(run, questions=("boxes",), probes=["linear"], **FAST)["condition"]) == {"boxes"}


def test_resamples_are_enough_for_the_correction_or_the_page_says_that_they_are_not(planted):
    assert enough_resamples(50) == 1000
    assert enough_resamples(61) * 0.05 >= 61
    nothing = pd.DataFrame(columns=JOINED_COLUMNS)
    split = {"seed": 0, "parts": {"test": {"images": 60, "phrases": 180}}, "seen_types": None}
    asked = {"run": "fake", "question": "alignment", "left_out": 0, "notes": [], "controls": ["labels"]}
    about = {"runs": [{"name": "fake"}], "asked": [asked | {"splits": [split]}]}
    missing = "With 38 resamples p is at least 0.026, so that nothing can pass Holm's correction over 2 sites: 1,000"
    for resamples, said in ((38, True), (39, False)):
        words = summarise(planted[1], nothing, about | {"settings": {"controls": ["labels"], "resamples": resamples}})
        assert (missing in words) == said


def test_an_unknown_device_is_refused(planted):
    with pytest.raises(BadInput, match="device 'foo' is unknown; accepted: auto, cpu, cuda"):
        sweep(planted[0], device="foo")


def linear_alignment(planted):
    """What ``summarise`` takes of one probe and its control labels."""
    table = planted[1]
    table = table[(table["probe"] == "linear") & table["condition"].isin(["alignment", "selectivity"])].copy()
    split = {"seed": 0, "parts": {"test": {"images": 60, "phrases": 180}}, "seen_types": None}
    asked = {"run": "fake", "question": "alignment", "left_out": 0, "notes": [], "controls": ["labels"]}
    about = {"runs": [{"name": "fake"}], "asked": [asked | {"splits": [split]}]}
    about |= {"settings": {"controls": ["labels"], "resamples": 200}}
    return table, pd.DataFrame(columns=JOINED_COLUMNS), about


def test_what_a_control_reaches_too_is_not_said_to_follow(planted):
    table, nothing, about = linear_alignment(planted)
    assert "Above chance: phrase and region can be matched at this site." in summarise(table, nothing, about)
    table.loc[table["condition"] == "selectivity", "low"] = -0.1
    words = summarise(table, nothing, about)
    assert "Above chance, but not clearly above each of the controls below." in words
    assert "can be matched" not in words


def test_baselines_are_held_against_by_the_paired_difference_and_not_by_two_intervals(planted):
    table, (_, nothing, about) = planted[1], linear_alignment(planted)
    table = table[table["probe"].isin(["linear", "region-only"])].copy()
    real, only = (table["probe"] == "linear") & (table["condition"] == "alignment"), table["probe"] == "region-only"
    table.loc[only, "high"] = table.loc[real, "high"].max()  # the two intervals meet
    words = summarise(table, nothing, about)
    assert "Above chance and above region-only: phrase and region can be matched at this site." in words
    assert f"Above the region-only control: {figure(_row(table, 'block.1', 'linear', 'above-region-only'))}." in words
    table.loc[table["condition"] == "above-region-only", "low"] = 0.0
    words = summarise(table, nothing, about)
    assert "Above chance, but not clearly above region-only: which region is meant may be told without" in words


def test_beside_a_figure_that_shows_nothing_no_difference_is_said_to_show_something(planted):
    table, nothing, about = linear_alignment(planted)
    real, difference = table["condition"] == "alignment", table["condition"] == "selectivity"
    table.loc[difference, "low"] = 0.1
    assert "memorises of random labels" in summarise(table, nothing, about)
    for low, reason in ((0.0, "the interval reaches chance"), (np.nan, "the figure has no interval")):
        table.loc[real, "low"] = low
        words = summarise(table, nothing, about)
        assert f"Nothing can be concluded: {reason}." in words
        assert "Selectivity (minus control labels): " in words
        assert "memorises of random labels" not in words
