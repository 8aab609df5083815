"""Relevance views: what they are of a model, and how a run holds them."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from hf_models import square_game, tiny
from small_models import game, single_image, small_mdetr, small_vilt
from tiny_model import TinyModel, tiny_games
from tiny_run import IDENTITY, contents, interrupt_at

from extract.collect import VIEWS, choose_views
from extract.plan import Plan, Regions
from extract.reader import Run
from extract.relevance.compute import relevance
from extract.relevance.kinds import DEFAULT, RELEVANCE, expand
from extract.relevance.scores import phrase_scores, place_scores, task_scores
from extract.run import extract
from extract.store import faults, verify_run
from grounding.errors import BadInput

torch.set_num_threads(1)
EVERY = [*RELEVANCE]


def prepared(model, examples):
    batch = model.preprocess(examples)
    return batch, Plan.of(batch, Regions.of(batch, 8, 0))


def computed(model, examples, views=EVERY):
    """Relevance by (site, view), ``[B, K, cells, C]``, changes, and the batch."""
    batch, plan = prepared(model, examples)
    return *relevance(model, batch, plan, choose_views(model.all_sites(), views)), batch


@pytest.fixture(scope="module", params=[small_vilt, small_mdetr], ids=["vilt", "mdetr"])
def made(request):
    model = request.param()
    return model, *computed(model, [game("a"), game("b", seed=3)])


def test_every_view_has_rows_at_the_sites_that_offer_it(made):
    model, values, changes, batch = made
    assert {view for _, view in values} == set(EVERY)
    carried = [s.name for s in model.sites() if s.attention_path]
    assert [site for site, view in values if view == "relevance.gradient"] == carried
    assert [site for site, view in values if view == "relevance.rollout"] == carried
    assert [site for site, view in values if view == "relevance.occlusion"] == ["embedding"]
    cells = batch.grid[0] * batch.grid[1]
    for (_, view), rows in values.items():
        assert rows.shape == (2, 2, cells, 2 if "gradient-attention" in view else 1)
        assert rows.isfinite().all()
        assert rows.any() or view.endswith("-task")
    assert set(changes) == {("embedding", f"relevance.integrated-gradients{end}") for end in ("", "-task")}


def test_relevance_of_phrases_differs_and_that_of_the_task_needs_the_task(made):
    _, values, _, _ = made
    for view in ("relevance.grad-cam", "relevance.integrated-gradients", "relevance.occlusion"):
        phrase, task = values["embedding", view], values["embedding", f"{view}-task"]
        assert not torch.allclose(phrase[:, 0], phrase[:, 1])
        torch.testing.assert_close(task[:, 0], task[:, 1])  # one task an example


def test_integrated_gradients_sum_to_the_change_of_the_score(made):
    model, values, changes, batch = made
    found = values["embedding", "relevance.integrated-gradients"].sum((2, 3))
    total, error = changes["embedding", "relevance.integrated-gradients"].unbind(-1)
    slots = Plan.of(batch, Regions.of(batch, 8, 0)).phrase_slots
    torch.testing.assert_close(found[batch.phrase_example, slots], total + error, rtol=1e-3, atol=1e-4)
    assert (error.abs() < 0.05 * total.abs() + 0.01).all()
    with torch.no_grad():
        plain = phrase_scores(batch, model(batch))
        blank = replace(batch, images=mean_images(batch))
        output = model(batch)
        places = place_scores(batch, output).argmax(1)
        torch.testing.assert_close(total, plain - phrase_scores(blank, model(blank), places), rtol=1e-3, atol=1e-4)


def mean_images(batch):
    return batch.images.float().mean((2, 3), keepdim=True).round().expand(batch.images.shape).to(torch.uint8)


def test_occlusion_is_the_fall_of_the_score_by_hand(made):
    model, values, _, batch = made
    rows, columns = batch.grid
    height, width = batch.images.shape[2] // rows, batch.images.shape[3] // columns
    images = batch.images.clone()
    images[:, :, height : 2 * height, :width] = mean_images(batch)[:, :, height : 2 * height, :width]  # row 1, column 0
    with torch.no_grad():
        output = model(batch)
        places = place_scores(batch, output).argmax(1)
        after = phrase_scores(batch, model(replace(batch, images=images)), places)
        fall = phrase_scores(batch, output) - after
    found = values["embedding", "relevance.occlusion"][..., columns, 0]
    slots = Plan.of(batch, Regions.of(batch, 8, 0)).phrase_slots
    torch.testing.assert_close(found[batch.phrase_example, slots], fall, rtol=1e-4, atol=1e-5)


def test_grad_cam_equals_captums_on_a_feature_map():
    model = small_mdetr()
    values, _, batch = computed(model, [game("a")], ["relevance.grad-cam"])
    images = batch.images.float().requires_grad_()

    def scores(images):
        return phrase_scores(batch, model(replace(batch, images=images)))[:1]

    plain = LayerGradCam(scores, model.get_submodule("mdetr.input_proj")).attribute(images)
    found = values["backbone", "relevance.grad-cam"][0, 0, :, 0]
    torch.testing.assert_close(found, plain.relu().flatten(), rtol=1e-4, atol=1e-6)


def aligned_vilt():
    """Its head gives pixels: where maps are enlarged, the last row of a smaller image mixes with padding."""
    return small_vilt(patch=8)


@pytest.mark.parametrize("make", [aligned_vilt, small_mdetr])
def test_a_batch_equals_single_examples_and_padding_has_nothing(make):
    model = make()
    examples = [single_image("wide"), single_image("tall", 64, 48, seed=4)]
    views = [*DEFAULT, "relevance.grad-cam", "relevance.gradient-task"]
    together, _, batch = computed(model, examples, views)
    alone = [computed(model, [example], views) for example in examples]
    if model.image_padding:  # its backbone sees the zeros around smaller images, so twins are compared
        together, _, batch = computed(model, [examples[0]] * 2, views)
        alone = [alone[0]] * 2
    for (site, view), rows in together.items():
        for b, (single, _, own) in enumerate(alone):
            cells, expected = rows[b].unflatten(1, batch.grid), single[site, view][0].unflatten(1, own.grid)
            inside = cells[:, : own.grid[0], : own.grid[1]]
            scale = expected.abs().max().clamp(min=1e-9)
            torch.testing.assert_close(inside / scale, expected / scale, rtol=1e-3, atol=1e-3)
            assert cells.count_nonzero() == inside.count_nonzero()  # nothing is on padding


def test_frozen_weights_make_no_difference():
    model = small_vilt()
    plain, _, _ = computed(model, [game("a")], [*DEFAULT])
    frozen, _, _ = computed(model.requires_grad_(False), [game("a")], [*DEFAULT])
    for key, rows in plain.items():
        torch.testing.assert_close(frozen[key], rows)


def test_scores_are_those_of_predictions():
    for model in (small_vilt(), small_mdetr()):
        batch = model.preprocess([game("a"), single_image("b")])
        with torch.no_grad():
            output = model(batch)
            found = task_scores(batch, output)
        expected = [prediction.score for prediction in model.predict(batch, output)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_examples_without_phrases_have_no_rows(tmp_path):
    games = [replace(one, phrases=()) for one in GAMES[:3]]
    run = extract(small_vilt(), games, tmp_path / "x", **SETTINGS, views=["attention"])
    added = extract(small_vilt(), games, run.path, **SETTINGS, views=KEPT, add=True)
    assert added.read("block.0", "relevance.gradient").shape == (0, 1)
    assert added.completeness("embedding").shape == (0, 2)


def test_a_model_without_scores_of_phrases_is_refused():
    with pytest.raises(BadInput, match="the model has no score of phrases to take relevance of"):
        computed(TinyModel(), tiny_games(1), ["relevance.gradient"])
    rollout, _, _ = computed(TinyModel(), tiny_games(1), ["relevance.rollout"])  # which needs none
    assert [site for site, _ in rollout] == ["block.0", "block.1"]
    assert all(0 < float(rows.sum((2, 3)).max()) < 1 for rows in rollout.values())


def test_a_model_that_runs_once_an_image_has_grad_cam_and_occlusion():
    model = tiny("clip")
    values, _, batch = computed(model, [square_game(model)], ["relevance.grad-cam", "relevance.occlusion"])
    assert {site for site, _ in values} == {"vision.embedding", "vision.0", "vision.1"}
    for rows in values.values():
        assert rows.shape[2] == batch.grid[0] * batch.grid[1]
        assert rows.any()
    with pytest.raises(BadInput, match=r"site 'vision.embedding' has 3 rows for 1 examples, and integrated gradients"):
        computed(model, [square_game(model)], ["relevance.integrated-gradients"])
    with pytest.raises(BadInput, match=r"view 'relevance.rollout' is offered by none of the sites"):
        choose_views(model.sites(), ["relevance.rollout"])


def test_the_logit_of_a_place_is_explained_not_its_share_of_probability():
    model, seen = small_vilt(patch=8), {}
    batch = model.preprocess([game("a")])
    handle = model.sdr_head.register_forward_hook(lambda module, inputs, output: seen.update(logits=output))
    with torch.no_grad():
        found = place_scores(batch, model(batch))
    handle.remove()
    torch.testing.assert_close(found, seen["logits"][:2].flatten(1), rtol=1e-4, atol=1e-5)


def test_relevance_alone_stands_for_what_needs_one_pass():
    assert expand(["relevance", "phrase", "relevance.rollout"]) == [*DEFAULT, "phrase"]
    sites = TinyModel().sites()
    assert choose_views(sites, ["relevance"])["block.0"] == DEFAULT
    assert choose_views(sites, ["relevance"])["decoder.0"] == ()  # nothing says what its keys are
    assert choose_views(sites, ["relevance.occlusion"]) == {
        "text.0": (), "block.0": ("relevance.occlusion",), "block.1": (), "decoder.0": ()
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"view 'relevance.grad' is unknown; accepted: phrase, .*relevance\.occlusion"):
        choose_views(sites, ["relevance.grad"])
    assert set(RELEVANCE) < set(VIEWS)


GAMES = [game(f"game-{i}", seed=i) for i in range(5)]
SETTINGS = {"identity": IDENTITY, "batch_size": 2, "shard_size": 2}
KEPT = ["relevance", "relevance.integrated-gradients"]


def run_small(out, **options) -> Run:
    return extract(small_vilt(), GAMES, out, **{**SETTINGS, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return run_small(tmp_path_factory.mktemp("run") / "x", views=["attention", *KEPT])


def test_a_run_holds_what_was_computed(whole):
    values, changes, batch = computed(small_vilt(), GAMES[:2], KEPT)
    for row, (example, slot) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for (site, view), rows in values.items():
            stored = whole.maps(site, view, row)
            np.testing.assert_allclose(stored.reshape(len(stored), -1).T, rows[example, slot], rtol=1e-5, atol=1e-9)
    assert whole.completeness("embedding").shape == (10, 2)
    np.testing.assert_allclose(whole.completeness("embedding")[:4], changes["embedding", KEPT[1]], rtol=1e-4, atol=1e-6)
    assert whole.attention("block.0", 3).shape == (2, *batch.grid)
    assert whole.manifest["views"] == ["attention", *DEFAULT, KEPT[1]]
    with pytest.raises(BadInput, match=r"view 'phrase' is unknown; accepted: attention, attention.back, rel"):
        whole.maps("block.0", "phrase", 0)
    with pytest.raises(BadInput, match=r"site 'norm' has no view 'relevance.integrated-gradients' in this run"):
        whole.completeness("norm")


@pytest.mark.parametrize("stop", [None, 1])
def test_relevance_is_added_to_a_finished_run_and_resumed(tmp_path, whole, monkeypatch, stop):
    some = run_small(tmp_path / "x", views=["attention"])
    before = {path.name: path.read_bytes() for path in some.path.glob("shard-*")}
    if stop is not None:
        interrupt_at(monkeypatch, stop)
        with pytest.raises(KeyboardInterrupt):
            run_small(some.path, views=KEPT, add=True)
        monkeypatch.undo()
    added = run_small(some.path, views=KEPT, add=True)
    after = {path.name: path.read_bytes() for path in some.path.glob("shard-*")}
    assert {name: after[name] for name in before} == before
    assert added.manifest["identity_hash"] == whole.manifest["identity_hash"]
    assert added.sites == whole.sites
    for site in whole.sites:
        for view in site.views:
            np.testing.assert_array_equal(added.read(site.name, view), whole.read(site.name, view))
    np.testing.assert_array_equal(added.completeness("embedding"), whole.completeness("embedding"))


def test_a_damaged_part_is_found_and_written_again(tmp_path):
    run = run_small(tmp_path / "x", views=["attention"])
    run_small(run.path, views=["relevance.rollout"], add=True)
    before = contents(run.path)
    path = run.path / "shard-00001.part1.relevance.rollout.h5"
    damaged = bytearray(path.read_bytes())
    damaged[-7] ^= 1
    path.write_bytes(damaged)
    assert faults(run.path) == {(1, 1): [f"{path.name} has other bytes than were written"]}
    verify_run(run.path, drop=True)
    run_small(run.path, views=["relevance.rollout"], add=True)
    assert verify_run(run.path) == []
    assert contents(run.path) == before


def test_relevance_is_kept_in_float32_whatever_the_run_is_stored_in(whole):
    record = json.loads((whole.path / "shard-00000.json").read_text())
    assert whole.manifest["identity"]["dtype"] == "float16"
    name = next(name for name, file in record["files"].items() if file["view"] == "relevance.gradient")
    with h5py.File(whole.path / name) as file:
        assert file["block.0/relevance.gradient"].dtype == np.float32
