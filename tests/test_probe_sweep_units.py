"""Sweeps that are interrupted, of several runs, from YAML files, and on Ray."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fake_run import make_run, noise, plant_alignment
from test_probe_cli_sweep import games_of_own_images
from tiny_run import run_tiny

from grounding.errors import BadInput
from probe.ray_sweep import RayEngine
from probe.settings import SweepSettings
from probe.sweep import sweep
from probe.sweep_config import ACCEPTED, read_config
from probe.tables import read_sweep
from probe.units import Asker, Unit

torch.set_num_threads(1)
FAST = {"resamples": 100, "linear_strengths": (1.0, 0.1), "mlp_strengths": (3.0,), "controls": ("labels",)}


@pytest.fixture(scope="module")
def run():
    run = make_run(60)
    run.add("block.0", *noise(run))
    run.add("block.1", *plant_alignment(run))
    return run


def test_same_arguments_same_table_and_seeds_differ(run, tmp_path):
    settings = {**FAST, "seeds": (0, 1), "sites": ("block.1",), "controls": ()}
    first = sweep(run, **settings)
    again = sweep(run, out=tmp_path, **settings)  # another folder: nothing is read back
    pd.testing.assert_frame_equal(first, again)
    by_seed = first[first["condition"] == "alignment"].groupby("seed")["validation_loss"].first()
    assert by_seed.nunique() == 2
    assert "Over 2 seeds a site's figure varies by at most" in (tmp_path / "summary.md").read_text()


def test_an_interrupted_sweep_goes_on_where_it_was(run, tmp_path, monkeypatch):
    settings = {**FAST, "questions": ("alignment", "boxes"), "probes": ("linear",), "seeds": (0, 1)}
    whole = sweep(run, out=tmp_path / "whole", **settings)
    answer, done = Asker.answer, []

    def failing(self, unit):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(unit)
        return answer(self, unit)

    monkeypatch.setattr(Asker, "answer", failing)
    with pytest.raises(KeyboardInterrupt):
        sweep(run, out=tmp_path / "again", **settings)
    assert not (tmp_path / "again" / "sweep.csv").exists()
    done.clear()
    ticks = []
    monkeypatch.setattr(Asker, "answer", lambda self, unit: done.append(unit) or answer(self, unit))
    table = sweep(run, out=tmp_path / "again", progress=lambda *tick: ticks.append(tick), **settings)
    assert len(done) == 4 - 3  # two questions, two seeds
    assert ticks == [(3, 4), (4, 4)]
    pd.testing.assert_frame_equal(table, whole)
    for name in ("sweep.csv", "sweep.json", "joined.csv", "summary.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    done.clear()
    sweep(run, out=tmp_path / "again", **settings)
    assert not done
    path = next((tmp_path / "again" / "units").glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "form": 1}))  # as an earlier version kept it
    sweep(run, out=tmp_path / "again", **settings)
    assert len(done) == 1


def test_a_folder_with_another_sweep_is_refused_with_both_values(run, tmp_path):
    sweep(run, ("linear",), out=tmp_path, **FAST)
    with pytest.raises(BadInput, match=r"another sweep: seeds is \[0\] there and \[0, 1\] here; choose another folder"):
        sweep(run, ("linear",), out=tmp_path, seeds=(0, 1), **FAST)
    other = replace(run, manifest={"identity_hash": "other", "identity": {}})
    with pytest.raises(BadInput, match="holds a sweep of another run, fake, not of this one, other;"):
        sweep(other, ("linear",), out=tmp_path, **FAST)


def test_runs_of_one_identity_and_other_sites_stay_apart_in_a_sweep(tmp_path):
    one, other, third = (replace(make_run(60), path=tmp_path / name) for name in ("one", "other", "third"))
    one.add("block.0", *plant_alignment(one))
    other.add("block.1", *plant_alignment(other))
    for _ in range(2):  # the second finds what the first left
        sweep([one, other], ("linear",), out=tmp_path / "sweep", **FAST)
    for run, site in ((one, "block.0"), (other, "block.1")):
        assert set(read_sweep(tmp_path / "sweep", run)["site"]) == {site}
    with pytest.raises(BadInput, match=r"several runs of this identity, one, other, and none is named .* 'third'; acc"):
        read_sweep(tmp_path / "sweep", third)
    with pytest.raises(BadInput, match="holds a sweep of another run, fake, fake, not of this one, fake;"):
        sweep(one, ("linear",), out=tmp_path / "sweep", **FAST)


def test_a_sweep_that_cannot_begin_leaves_nothing(run, tmp_path):
    broken = make_run(60)
    broken.add("block.0", *noise(broken))
    broken.rows["block.0", "region"][3, 5] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        sweep(broken, out=tmp_path / "new", **FAST)
    assert not (tmp_path / "new").exists()


def test_runs_side_by_side_are_those_alone(run, tmp_path):
    other = make_run(50, seed=1)
    other.add("encoder.0", *plant_alignment(other, 12))
    other.manifest = {"identity_hash": "other", "identity": {}}
    both = sweep({"one": run, "other": other}, ("linear",), out=tmp_path, sites=["block.1", "encoder.*"], **FAST)
    assert both[["run", "site"]].drop_duplicates().to_numpy().tolist() == [["one", "block.1"], ["other", "encoder.0"]]
    alone = sweep({"other": other}, ("linear",), **FAST)
    pd.testing.assert_frame_equal(both[both["run"] == "other"].reset_index(drop=True), alone)
    words = (tmp_path / "summary.md").read_text()
    assert "## alignment, run `one`" in words
    assert "## alignment, run `other`" in words
    with pytest.raises(
        BadInput, match=r"'other': question 'alignment' cannot be asked of block\.1; accepted: encoder\.0"
    ):
        sweep({"one": run, "other": other}, ("linear",), sites=["block.1"], **FAST)
    with pytest.raises(BadInput, match=r"runs \['fake', 'fake'\] cannot be told apart"):
        sweep([run, other])


def test_spread_over_seeds_is_beside_the_intervals_over_images(run):
    table = sweep(run, ("linear",), seeds=(0, 1, 2), sites=["block.1"], **FAST)
    rows = table[(table["condition"] == "alignment") & (table["score"] == "auc")]
    assert rows["seed_spread"].nunique() == 1
    assert rows["seed_spread"].iloc[0] == pytest.approx(np.std(rows["value"], ddof=1))
    assert sweep(run, ("linear",), **FAST)["seed_spread"].isna().all()


def test_phrases_stand_beside_the_models_own_answers(run, tmp_path):
    sweep(run, ("linear",), out=tmp_path, **FAST)
    items = pd.read_parquet(tmp_path / "phrases.parquet")
    assert len(items) == 2 * (36 + 36)  # two sites; validation and test
    one = items[(items["site"] == "block.1") & (items["part"] == "test")].iloc[0]
    phrase = run.phrases.iloc[one["phrase"]]
    assert (one["phrase_id"], one["own_iou"]) == (phrase["id"], phrase["iou"])
    assert (one["example_id"], one["image"]) == (run.examples["id"][phrase["example"]],) * 2
    assert one["task_correct"] == run.examples["task_correct"][phrase["example"]]
    table = pd.read_csv(tmp_path / "sweep.csv")
    value = table[(table["site"] == "block.1") & (table["score"] == "choice_accuracy")]["value"].iloc[0]
    assert items[(items["site"] == "block.1") & (items["part"] == "test")]["correct"].mean() == pytest.approx(value)
    joined = pd.read_csv(tmp_path / "joined.csv")
    assert set(joined["site"]) == {"block.0", "block.1", "model"}


def test_yaml_files_say_what_a_sweep_is_of(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("runs: [a, b]\nquestions: [boxes]\nseeds: 3\niou: 1\nlinear_strengths: [1, 0.1]\nout: c\n")
    assert read_config(path) == {
        "runs": ["a", "b"], "questions": ["boxes"], "seeds": [3], "iou": 1, "linear_strengths": [1, 0.1], "out": "c",
    }  # fmt: skip
    for text, message in (
        ("question: boxes", f"key 'question' is unknown; accepted: {', '.join(ACCEPTED)}"),
        ("seeds: [one]", r"seeds is \['one'\]; accepted: a list of int"),
        ("seeds: true", "seeds is True; accepted: a list of int"),
        ("folds: five", "folds is 'five'; accepted: int"),
        ("probes: []", r"probes is \[\]; accepted: a list of str"),
        ("- runs", "holds a list; accepted: keys runs, out, "),
        ("runs: [", "is not YAML: while parsing"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            read_config(path)
    with pytest.raises(BadInput, match=r"none\.yaml' cannot be read: No such file"):
        read_config(tmp_path / "none.yaml")


def test_impossible_workers_are_refused():
    with pytest.raises(BadInput, match="num_workers 0 is too small; accepted: 1 or more"):
        RayEngine(num_workers=0)


UNITS = [Unit("gone", "alignment", ("block.0",), "linear", 0)]


@pytest.mark.slow
def test_units_on_ray_give_the_tables_of_one_process(tmp_path, cluster):
    stored = run_tiny(tmp_path / "run", games_of_own_images(30))
    settings = {"probes": ("linear",), "controls": (), "questions": ("boxes",), "resamples": 100, "seeds": (0, 1)}
    here = sweep(stored, out=tmp_path / "here", **settings)
    there = sweep(stored, out=tmp_path / "there", engine=RayEngine(num_workers=2), **settings)
    pd.testing.assert_frame_equal(here, there)
    words = [json.loads((tmp_path / name / "settings.json").read_text()) for name in ("here", "there")]
    assert words[0] == words[1]
    stored.path = tmp_path / "gone"
    with pytest.raises(BadInput, match=r"gone' is not there on"):
        RayEngine(num_workers=1)(Asker({"gone": stored}, SweepSettings()), list(UNITS)).__next__()


def test_what_cannot_be_split_or_controlled_is_told_before_anything_is_asked(tmp_path):
    run = make_run(40)
    run.add("block.0", *noise(run))
    run.examples["task_correct"] = run.examples.index == 0  # some part is without a success
    with pytest.raises(BadInput, match=r"question 'outcome': one outcome only in the .* part; extract more examples"):
        sweep(run, ["linear"], questions=("alignment", "outcome"), out=tmp_path / "outcome")
    run.phrases["type"] = [f"type {row}" for row in range(len(run.phrases))]
    with pytest.raises(BadInput, match="control labels cannot be built: no phrase type of the test part occurs in tr"):
        sweep(run, ["linear"], questions=("boxes", "alignment"), out=tmp_path / "labels")
    assert not list(tmp_path.iterdir())


def test_a_site_that_some_shards_lack_is_told_before_any_is_asked(run, tmp_path, monkeypatch):
    def count(self, site, view):
        if site == "block.1":
            raise BadInput(f"shard 1 of run 'fake' lacks {site}/{view}; extract again to mend it")

    monkeypatch.setattr(type(run), "count", count)
    with pytest.raises(BadInput, match=r"shard 1 of run 'fake' lacks block\.1/phrase; extract again to mend it"):
        sweep(run, out=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()
