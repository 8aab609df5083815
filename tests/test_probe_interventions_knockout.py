"""Knockout: a mask over nothing changes nothing, what is looked at is located, and what cannot be cut is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_models import tiny
from planted_model import Planted, planted_games
from small_models import Seen, game, small_mdetr, small_vilt

from extract.capture import Capture
from grounding.errors import BadInput
from grounding.examples import Region
from probe.interventions.groups import cells_of, phrase_cells
from probe.interventions.knockout import (
    ONE,
    UP_TO,
    attending,
    edit_attention,
    edit_regions,
    knock_out,
    other_cells,
    require_taps,
)
from probe.interventions.live import Live

MODELS = {
    "vilt-aligner": small_vilt,
    "mdetr": small_mdetr,
    **{name: lambda name=name: tiny(name) for name in ("vilt", "blip", "blip-2", "detr")},
}


@pytest.fixture(scope="module", params=MODELS)
def opened(request):
    model = MODELS[request.param]()
    return model, model.preprocess([game(), game("other", seed=3, images=2)])


def test_a_mask_over_nothing_changes_nothing(opened):
    model, batch = opened
    with torch.inference_mode():
        clean = model(batch)
    nothing = torch.zeros_like(phrase_cells(batch))
    with Live(model) as live:
        for site in attending(model, model.sites()):
            edits = edit_attention(model, site, batch, nothing, getattr(clean, "phrase_query", None))
            output = live.run(batch, edits)
            for name, value in vars(clean).items():
                assert torch.equal(value, getattr(output, name)), (site.name, name)


def test_the_cut_attention_is_zero_and_only_that(opened):
    """As extraction reads it, from the phrase to the patches of its regions; a decoder's query is one of its image."""
    model, batch = opened
    cells = phrase_cells(batch)
    with torch.inference_mode():
        model(batch)
    place = torch.tensor([batch.examples[b].target_index for b in batch.phrase_example.tolist()])
    for site in attending(model, model.sites()):
        weights, found = [], site.layout(batch).query
        count = 0 if found is None else found.stop - found.start
        queries = place * (count // model.passes) % count if count else None
        for cut in (torch.zeros_like(cells), cells):
            seen = Seen()
            with Live(model) as live, Capture(model, [], seen, [site]):
                live.run(batch, edit_attention(model, site, batch, cut, queries))
            weights.append(seen.weights[site.name])  # [B, heads, queries, keys]
        layout = (site.attention_layout or site.layout)(batch)
        for phrase, example in enumerate(batch.phrase_example.tolist()):
            if layout.text is not None and layout.image is not None:
                rows = layout.text.start + batch.phrase_tokens[phrase].nonzero()[:, 0]
                columns = layout.image.start + cells[phrase].nonzero()[:, 0]
            else:
                rows, columns = queries[phrase].reshape(1), cells[phrase].nonzero()[:, 0]
            before, after = (one[example][:, rows][..., columns] for one in weights)
            assert before.sum() > 0, site.name
            assert after.sum() == 0, site.name
        assert torch.allclose(weights[1].sum(-1), torch.ones(()), atol=1e-5)
        moved = (weights[0] != weights[1]).any(-1).any(1)  # [B, queries]
        assert 0 < moved.sum() < moved.numel()


def test_what_is_looked_up_is_found_and_the_control_does_nothing():
    model = Planted().eval()
    batches = [model.prepare(planted_games(30))]
    with Live(model) as live:
        rows, uncut = knock_out(live, attending(model, model.sites()), batches, None, draws=2)
    assert uncut == 0
    found = {(row["target"], row["condition"], row["score"]): row for row in rows}
    assert {row["site"] for row in rows} == {"block.1"}
    for reach in (ONE, UP_TO):
        assert found[reach, "intervention", "mean_iou"]["before"] == pytest.approx(1.0)
        assert found[reach, "intervention", "mean_iou"]["after"] < 0.1
        assert found[reach, "control", "mean_iou"]["effect"] == pytest.approx(0.0, abs=1e-6)
        assert found[reach, "specific", "mean_iou"]["high"] < -0.8
        assert found[reach, "intervention", "accuracy"]["effect"] == 0.0


def test_the_control_has_as_many_patches_of_the_same_image_and_none_of_the_region():
    model = small_vilt(candidate_size=128, position_grid=(24, 8))
    batch = model.preprocess([game(size=128), game("other", seed=3, images=2, size=128)])
    own = phrase_cells(batch)
    first, again, other = (other_cells(batch, own, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not (first & own).any()
    for phrase in range(len(own)):
        same_image = first[phrase].view(batch.grid)[8:16]  # target 1 of 128 pixels, 16 each cell
        assert same_image.sum() == first[phrase].sum() == min(own[phrase].sum(), 64 - own[phrase].sum())


def test_nothing_is_cut_where_no_control_would_match():
    model = Planted().eval()
    games = [
        replace(game, phrases=(replace(game.phrases[0], regions=(Region((0.0, 0.0, 1.0, 0.7)),)),))
        for game in planted_games(8)
    ]
    with Live(model) as live:
        rows, uncut = knock_out(live, attending(model, model.sites()), [model.prepare(games)], None, draws=1)
    assert uncut == 8
    assert {row["effect"] for row in rows} == {0.0}


def test_cells_are_those_that_a_box_touches():
    model = small_vilt(candidate_size=64, position_grid=(12, 4))
    batch = model.preprocess([game(size=64)])
    found = cells_of(batch, 0, [(1, (0.25, 0.0, 0.74, 0.3))]).view(batch.grid)
    assert found.nonzero().tolist() == [[4, 1], [4, 2], [5, 1], [5, 2]]
    tiny_box = cells_of(batch, 0, [(2, (0.30, 0.80, 0.31, 0.81))]).view(batch.grid)
    assert tiny_box.nonzero().tolist() == [[11, 1]]


def test_what_cannot_be_cut_is_named():
    clip = tiny("clip")
    with pytest.raises(BadInput, match="Clip has no taps on attention from phrases to patches"):
        attending(clip, clip.sites())
    with pytest.raises(BadInput, match=r"site 'vision.0' has no taps"):
        require_taps(clip, next(site for site in clip.sites() if site.name == "vision.0"))
    florence = tiny("florence2")
    batch, sites = florence.preprocess([game()]), {site.name: site for site in florence.sites()}
    with Live(florence) as live:
        live.run(batch, edit_regions(live, batch, sites["encoder.0"]))
        with pytest.raises(BadInput, match=r"site 'decoder.0': its attention is shown with the keys of another pass"):
            live.run(batch, edit_regions(live, batch, sites["decoder.0"]))
    dino = tiny("grounding-dino")
    with pytest.raises(BadInput, match=r"site 'encoder.text.0': its attention can be read and not be changed"):
        require_taps(dino, next(site for site in dino.sites() if site.name == "encoder.text.0"))
