"""A run's twin with fresh weights: same architecture, examples, boxes and sites; nothing that was learned."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hf_models import tiny, write_folder
from unadapted import hugging_face

from extract.from_checkpoint import continue_run, extract_checkpoint
from extract.reader import Run
from extract.twin import random_twin
from grounding.checkpoint import load_checkpoint
from grounding.errors import BadInput

FEW = {"limit": 4, "views": ["phrase", "region", "attention"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "x"
    return extract_checkpoint("vilt-aligner-grounded", "mini-game", "dev", out, sites=["block.0", "norm"], **FEW)


@pytest.fixture(scope="module")
def twin(run):
    return random_twin(run)


def test_twin_lies_beside_the_run_and_asks_about_the_same_phrases_and_boxes(run, twin):
    assert twin.path == run.path.resolve().with_name("x-random")
    assert [(site.name, site.views) for site in twin.sites] == [
        ("block.0", ("phrase", "region")),
        ("norm", ("phrase", "region")),
    ]
    assert list(twin.phrases["id"]) == list(run.phrases["id"])
    boxes = ["example", "image_index", "x1", "y1", "x2", "y2", "kind", "phrase"]
    assert twin.regions[boxes].equals(run.regions[boxes])


def test_identity_is_that_of_the_run_with_fresh_weights(run, twin):
    assert twin.manifest["identity"] == {**run.manifest["identity"], "fresh_weights": 0}
    assert twin.manifest["identity_hash"] != run.manifest["identity_hash"]


def test_weights_are_other_ones_and_the_same_for_a_seed(run, twin, tmp_path):
    rows = twin.read("norm", "region")
    assert not np.allclose(rows, run.read("norm", "region"), atol=0.1)
    torch.manual_seed(5)
    np.testing.assert_array_equal(random_twin(run, tmp_path / "again").read("norm", "region"), rows)
    other = random_twin(run, seed=1)
    assert other.path.name == "x-random-1"
    assert not np.allclose(other.read("norm", "region"), rows, atol=0.1)


def test_twin_that_is_there_is_opened_without_a_model(run, twin, monkeypatch):
    monkeypatch.setattr("extract.twin.extract_checkpoint", None)
    assert random_twin(run).manifest == twin.manifest


def test_interrupted_twin_goes_on_and_continue_run_knows_it(run, twin, tmp_path):
    unfinished = random_twin(run, tmp_path / "t")
    manifest = json.loads((unfinished.path / "manifest.json").read_text())
    next(unfinished.path.glob("shard-*.json")).unlink()
    (unfinished.path / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    finished = random_twin(run, unfinished.path)
    np.testing.assert_array_equal(finished.read("norm", "phrase"), twin.read("norm", "phrase"))
    added = continue_run(finished.path, add_sites=["block.3"])
    assert added.manifest["identity"]["fresh_weights"] == 0
    assert "block.3" in [site.name for site in added.sites]


def test_run_gets_sites_later_and_its_twin_gets_them_too(tmp_path):
    run = extract_checkpoint("mdetr-grounded", "mini-game", "dev", tmp_path / "m", sites=["encoder.0"], **FEW)
    random_twin(run)
    more = continue_run(run.path, add_sites=["decoder.0"])
    assert {site.name for site in random_twin(more).sites} >= {"encoder.0", "decoder.0"}


def test_run_gets_a_view_later_and_its_twin_gets_it_too(tmp_path):
    run = extract_checkpoint("vilt-aligner-grounded", "mini-game", "dev", tmp_path / "v", sites=["block.0"], **FEW)
    before = random_twin(run).read("block.0", "phrase")
    more = continue_run(run.path, add_views=["tokens"])
    twin = random_twin(more)
    assert twin.site("block.0").views == ("phrase", "region", "tokens")
    assert twin.tokens("block.0", 3).shape == more.tokens("block.0", 3).shape
    np.testing.assert_array_equal(twin.read("block.0", "phrase"), before)


def test_fresh_weights_say_so_in_the_report_and_leave_torch_as_it_was():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    loaded = load_checkpoint("mdetr-grounded", fresh_weights=0)
    assert torch.equal(before, torch.random.get_rng_state())
    trained = load_checkpoint("mdetr-grounded")
    assert loaded.content == trained.content
    assert not loaded.report.loaded
    assert set(loaded.report.missing.values()) == {"fresh weights of seed 0"}
    assert [p.shape for p in loaded.model.parameters()] == [p.shape for p in trained.model.parameters()]


def test_a_model_of_transformers_with_an_adapter_has_a_twin(tmp_path):
    folder = write_folder(tiny("clip"), tmp_path / "clip")
    run = extract_checkpoint(folder, "mini-game", "dev", tmp_path / "x", limit=3, dtype="float32")
    twin = random_twin(run)
    assert [site.name for site in twin.sites] == [site.name for site in run.sites]
    assert not np.allclose(twin.read(run.sites[-1].name, "region"), run.read(run.sites[-1].name, "region"))


def test_a_model_without_an_adapter_has_a_twin_at_its_modules(tmp_path):
    folder = hugging_face(tmp_path / "flava", "flava")
    modules = ["text_model.encoder.layer.*", "image_model.encoder.layer.*=1+image"]
    run = extract_checkpoint(folder, "mini-game", "dev", tmp_path / "x", limit=3, modules=modules)
    twin = random_twin(run)
    assert [site.name for site in twin.sites] == [site.name for site in run.sites]
    name = run.sites[0].name
    assert not np.allclose(twin.read(name, "phrase"), run.read(name, "phrase"), atol=0.1)
    assert random_twin(run).manifest == twin.manifest


def test_runs_that_have_no_twin_say_why(run, twin):
    with pytest.raises(BadInput, match="has fresh weights already"):
        random_twin(twin)
    made_by_hand = Run(run.path, run.manifest | {"source": {}}, run.shards)
    with pytest.raises(BadInput, match="was not made from a checkpoint by name; leave out the control 'random-model'"):
        random_twin(made_by_hand)
    only = Run(run.path, run.manifest | {"views": ["attention"]}, run.shards)
    with pytest.raises(
        BadInput, match=r"has no states \(phrase, region, tokens\); accepted: a run that probes can read"
    ):
        random_twin(only)
    with pytest.raises(BadInput, match="fresh_weights -1 is no seed; accepted: 0 or more"):
        random_twin(run, seed=-1)
