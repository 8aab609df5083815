"""Patching: everything restores, nothing does nothing, and a planted circuit is located."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hf_models import tiny
from planted_model import Planted, planted_games
from small_models import small_mdetr, small_vilt

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.minimal_pairs import MinimalPair
from grounding.errors import BadInput
from grounding.examples import ReferenceGame
from probe.interventions.live import Live, changeable, same_states
from probe.interventions.patching import (
    PairBatch,
    keep_states,
    logit_differences,
    pair_batches,
    pair_groups,
    patch,
    patching,
)


def planted_pairs(count: int = 12) -> list[MinimalPair]:
    """The caption names red in one and blue in the other: another candidate is meant."""
    pairs = []
    for game in planted_games(count):
        blues = [float((image == (0, 0, 255)).all(-1).mean()) for image in game.images]
        other = int(np.argmax(blues))
        changed = replace(game, id=f"{game.id}/caption", caption="zz b zz", task=ReferenceGame(other))
        box = game.phrases[0].regions[0].box
        pairs.append(MinimalPair("caption", game, changed, (game.phrases[0].id,), ((game.target_index, box),), other))
    return pairs


@pytest.fixture(scope="module")
def planted():
    model = Planted().eval()
    return model, pair_batches(model, planted_pairs(), 5)


def test_a_planted_circuit_is_located(planted):
    model, batches = planted
    with Live(model) as live:
        rows, counts = patch(live, model.sites(), batches)
    found = {(row["site"], row["target"]): row["effect"] for row in rows}
    assert counts == {"caption": 12}
    # Before the circuit the word decides; behind it the cells of both colours do, half each.
    expected = {"phrase": 1, "other-text": 0, "region": 0, "other-patches": 0, "everything": 1}
    assert {target: found["block.0", target] for target in expected} == pytest.approx(expected, abs=1e-6)
    expected = {"phrase": 0, "other-text": 0, "region": 0.5, "other-patches": 0.5, "everything": 1}
    assert {target: found["block.1", target] for target in expected} == pytest.approx(expected, abs=1e-6)
    row = next(row for row in rows if row["site"] == "block.0" and row["target"] == "phrase")
    assert (row["before"], row["after"], row["n"], row["n_images"]) == (pytest.approx(-2), pytest.approx(2), 12, 12)
    assert row["low"] == pytest.approx(1)


def test_patching_no_token_does_nothing(planted):
    model, batches = planted
    batch = batches[0]
    with Live(model) as live:
        before = live.run(batch.corrupted)
        donor = torch.randn(1, len(batch.pairs), 7 + 1 + 48, 12)
        nothing = torch.zeros(donor.shape[1:3], dtype=torch.bool)
        after = live.run(batch.corrupted, [patching(model, model.sites()[0], donor, nothing)])
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.phrase_point, after.phrase_point)


def test_groups_are_all_real_tokens_once(planted):
    model, batches = planted
    batch, site = batches[0], model.sites()[0]
    groups = pair_groups(site, batch, 8 + 48)
    everything = groups.pop("everything")
    assert everything.all()
    total = sum(group.long() for group in groups.values())
    assert set(groups) == {"phrase", "other-text", "region", "other-patches"}
    assert (total == 1).all()
    assert groups["phrase"].sum(1).tolist() == groups["region"].sum(1).tolist() == [1] * len(batch.pairs)


MODELS = {
    "vilt-aligner": lambda: small_vilt(max_text=60),
    "mdetr": lambda: small_mdetr(max_text=60, text_positions=64, token_slots=60),
    **{name: lambda name=name: tiny(name) for name in ("vilt", "blip", "blip-2", "clip")},
}


@pytest.mark.parametrize("name", MODELS)
def test_everything_at_a_joint_site_restores_the_clean_answer(name):
    """Also where the caption is read once for each candidate."""
    model = MODELS[name]()
    games = open_benchmark("mini-game", None, 0).load("dev", 2)
    pairs = [MinimalPair("images", game, replace(game, images=games[1 - k].images), (), ((0, (0, 0, 1, 1)),))
             for k, game in enumerate(games)]  # fmt: skip
    batch = pair_batches(model, pairs, 2)[0]
    # MDETR's decoder reads all of encoder.1; of CLIP's sites only the first holds all that the answer comes from.
    chosen = {"mdetr": "encoder.1", "clip": "vision.embedding"}.get(name, model.sites()[-1].name)
    site = next(site for site in model.sites() if site.name == chosen)
    kept: dict[str, torch.Tensor] = {}
    with Live(model) as live:
        output = live.run(batch.clean, [keep_states(model, site, kept)])
        wanted = logit_differences(model, batch.clean, output, batch.pairs)
        before = logit_differences(model, batch.corrupted, live.run(batch.corrupted), batch.pairs)
        mask = torch.ones(kept[chosen].shape[1:3], dtype=torch.bool)
        output = live.run(batch.corrupted, [patching(model, site, kept[chosen], mask)])
        found = logit_differences(model, batch.corrupted, output, batch.pairs)
    assert (abs(before - wanted) > 1e-3).all()
    assert found == pytest.approx(wanted, abs=1e-4)


def test_pairs_with_other_tokens_are_left_out_and_none_is_an_error(planted):
    model, _ = planted
    pairs = planted_pairs(4)
    longer = replace(pairs[1], corrupted=replace(pairs[1].corrupted, caption="zz b zz zz"))
    found = pair_batches(model, [pairs[0], longer, pairs[2]], 3)
    assert [pair.clean.id for pair in found[0].pairs] == [pairs[0].clean.id, pairs[2].clean.id]
    with pytest.raises(BadInput, match="none of 1 pairs has as many tokens"):
        pair_batches(model, [longer], 3)


def test_a_model_that_does_not_see_the_change_is_refused(planted):
    model, batches = planted
    same = [PairBatch(batch.pairs, batch.clean, batch.clean) for batch in batches]
    with Live(model) as live, pytest.raises(BadInput, match="the model does not see the changes"):
        patch(live, model.sites()[:1], same)


def test_sites_that_cannot_be_changed_are_left_out_unless_asked_for():
    model = tiny("florence2")
    game = open_benchmark("mini-game", None, 0).load("dev", 1)
    edits = partial(same_states, model)
    with Live(model) as live:
        found = changeable(live, model.prepare(game), model.sites(), edits, asked=False)
        assert [site.name for site in found] == [site.name for site in model.sites()[1:]]
        with pytest.raises(BadInput, match="can be read, not changed"):
            changeable(live, model.prepare(game), model.sites(), edits, asked=True)
