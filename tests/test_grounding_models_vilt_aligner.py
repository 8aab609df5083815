"""ViLT-Aligner at a few thousand weights: the head, batches, positions, attention, answers, sites."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import VILT, captured, game, single_image, small_vilt
from torch import nn
from torch.nn import functional

from grounding.errors import BadInput
from grounding.models.vilt_aligner import AlignerHead, ViltAligner, ViltAlignerConfig, ViltAlignerOutput

MIXED = [single_image("tall", 64, 16, seed=1), game(images=2), single_image("wide", 16, 80, seed=2)]


@pytest.fixture(scope="module")
def model() -> ViltAligner:
    return small_vilt()


@torch.no_grad()
def test_the_head_equals_its_transposed_convolutions():
    torch.manual_seed(0)
    width, rows, columns = 16, 3, 5
    head = AlignerHead(width)
    for parameter in head.parameters():
        parameter.normal_()
    features, text, example = torch.randn(2, rows * columns, width), torch.randn(4, width), torch.tensor([0, 1, 1, 0])
    maps = features[example].transpose(1, 2).unflatten(2, (rows, columns))
    tiled = text[:, :, None, None].expand(-1, -1, rows, columns)
    expected = head._head(torch.cat([maps, tiled], dim=1))[:, 0]
    found = head(features, text, example, (rows, columns))
    assert found.shape == (4, 8 * rows, 8 * columns)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.std()), rtol=1e-5)


@torch.no_grad()
def test_pixels_are_normalised_to_one_half_and_padding_to_zero(model):
    given: list[torch.Tensor] = []
    handle = model.transformer.patch_embed.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 16:, 0], pixels[:, 16:, 1] = 255, 51
    model(model.preprocess([replace(single_image(), images=(pixels,)), single_image(height=64, width=64)]))
    handle.remove()
    image = given[0][0]
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([-1.0, -1, -1]))
    torch.testing.assert_close(image[:, 0, 20], torch.tensor([1.0, -0.6, -1]))
    assert not image[:, 32:].any()
    assert not image[:, :, 32:].any()


def test_two_forward_passes_are_equal(model):
    first, second = (captured(model, MIXED)[1] for _ in range(2))
    assert torch.equal(first.log_task, second.log_task)
    assert torch.equal(first.log_phrases, second.log_phrases)


@pytest.mark.parametrize(("patch", "stem"), [(16, "linear"), (8, "linear"), (16, "convolutions")])
def test_a_batch_gives_what_its_examples_give_alone(patch, stem):
    model = small_vilt(patch=patch, stem=stem)
    together, _ = captured(model, MIXED)
    batch = model.preprocess(MIXED)
    for row, example in enumerate(MIXED):
        alone, _ = captured(model, [example])
        single = model.preprocess([example])
        rows, columns = single.grid
        for site in model.sites():
            layout, own = site.layout(batch), site.layout(single)
            states, expected = together.state[site.name][row], alone.state[site.name][0]
            length = int(single.text_mask.sum())
            torch.testing.assert_close(states[layout.text][:length], expected[own.text][:length], atol=2e-5, rtol=1e-4)
            image = states[layout.image].unflatten(0, batch.grid)[:rows, :columns].flatten(0, 1)
            torch.testing.assert_close(image, expected[own.image], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_predictions_of_a_batch_are_those_of_its_examples_alone(patch):
    """With patches of 8 pixels the head's cells are pixels; others are interpolated, up to the padding's edge."""
    model = small_vilt(patch=patch)
    with torch.no_grad():
        batch = model.preprocess(MIXED)
        together = model.predict(batch, model(batch))
        for example, found in zip(MIXED, together, strict=True):
            single = model.preprocess([example])
            (expected,) = model.predict(single, model(single))
            assert found.answer == pytest.approx(expected.answer)
            assert found.score == pytest.approx(expected.score, abs=1e-4)
            for one, other in zip(found.phrases, expected.phrases, strict=True):
                np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=2e-3)


@pytest.mark.parametrize("stem", ["linear", "convolutions"])
def test_what_is_under_the_padding_does_not_matter(stem):
    model = small_vilt(stem=stem)
    batch = model.preprocess(MIXED)
    with torch.no_grad():
        clean = model(batch)
        images = torch.where(batch.pixel_mask[:, None], batch.images, 77)
        ids = torch.where(batch.text_mask, batch.input_ids, 9)
        dirty = model(replace(batch, images=images, input_ids=ids))
    torch.testing.assert_close(dirty.log_task, clean.log_task)
    torch.testing.assert_close(dirty.log_phrases, clean.log_phrases)
    torch.testing.assert_close(dirty.image_log_phrases, clean.image_log_phrases)


def test_text_padded_to_the_limit_or_to_the_longest_is_the_same():
    longest, fixed = small_vilt(text_padding="longest"), small_vilt(text_padding="max")
    examples = [game(), replace(game("short"), caption="a dot", phrases=())]
    assert fixed.preprocess(examples).input_ids.shape[1] == 20
    assert longest.preprocess(examples).input_ids.shape[1] < 20
    with torch.no_grad():
        one, other = (m(m.preprocess(examples)) for m in (longest, fixed))
    torch.testing.assert_close(one.log_task, other.log_task, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.log_phrases, other.log_phrases, atol=1e-5, rtol=1e-5)


def test_the_position_table_is_stretched_to_each_image(model):
    vision = model.transformer
    table = torch.zeros(1, 1 + 3 * 2, 24)
    table[0, 1:, 0] = torch.arange(3).repeat_interleave(2)  # row
    table[0, 1:, 1] = torch.arange(2).repeat(3)  # column
    kept = vision.pos_embed.data.clone()
    vision.pos_embed.data = table
    try:
        own = vision._positions((3, 2), (3, 2))
        assert torch.equal(own, table[0, 1:])
        padded = vision._positions((3, 2), (4, 5)).unflatten(0, (4, 5))
        assert torch.equal(padded[:3, :2].flatten(0, 1), table[0, 1:])
        assert not padded[3:].any()
        assert not padded[:, 2:].any()
        stretched = vision._positions((5, 3), (5, 3)).unflatten(0, (5, 3))
        torch.testing.assert_close(stretched[:, 0, 0], torch.tensor([0, 0.5, 1, 1.5, 2]))  # corners stay corners
        torch.testing.assert_close(stretched[0, :, 1], torch.tensor([0, 0.5, 1]))
    finally:
        vision.pos_embed.data = kept


def test_attention_is_the_softmax_of_the_blocks_own_projections(model):
    seen, _ = captured(model, MIXED)
    batch = model.preprocess(MIXED)
    before = {"block.0": seen.state["embedding"], "block.1": seen.state["block.0"]}
    patches = batch.pixel_mask[:, ::16, ::16].flatten(1)
    visible = torch.cat([batch.text_mask, torch.ones(3, 1, dtype=torch.bool), patches], dim=1)
    assert set(seen.weights) == set(before)
    for k, (name, states) in enumerate(before.items()):
        block = model.transformer.blocks[k]
        with torch.no_grad():
            query, key, _ = block.attn.qkv(block.norm1(states)).chunk(3, -1)
        query, key = (t.unflatten(-1, (2, 12)).transpose(1, 2) for t in (query, key))
        scores = (query @ key.transpose(-1, -2) / math.sqrt(12)).masked_fill(~visible[:, None, None], -math.inf)
        torch.testing.assert_close(seen.weights[name], scores.softmax(-1), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(seen.weights[name].sum(-1), torch.ones(*seen.weights[name].shape[:3]))
        assert not seen.weights[name].masked_select(~visible[:, None, None].expand_as(scores)).any()


@pytest.mark.parametrize("tap", ["query", "key", "output"])
@pytest.mark.parametrize("block", [0, 1])
@torch.no_grad()
def test_changing_a_tap_changes_the_output(model, block, tap):
    batch = model.preprocess([game()])
    before = model(batch).log_task
    module = model.transformer.blocks[block].attn.taps.get_submodule(tap)
    handle = module.register_forward_hook(lambda module, inputs, output: output.flip(-1) * 2)
    try:
        assert (model(batch).log_task - before).abs().max() > 1e-3
    finally:
        handle.remove()
    assert torch.equal(model(batch).log_task, before)


def test_sites_are_modules_whose_states_cover_text_and_image(model):
    seen, _ = captured(model, MIXED)
    batch = model.preprocess(MIXED)
    tokens = batch.input_ids.shape[1]
    assert [site.name for site in model.sites()] == ["embedding", "block.0", "block.1", "norm"]
    for site in model.sites():
        assert seen.state[site.name].shape == (3, tokens + 1 + batch.grid[0] * batch.grid[1], site.width)
        layout = site.layout(batch)
        everything = range(seen.state[site.name].shape[1])
        text, image = everything[layout.text], everything[layout.image]
        assert list(text) == list(range(tokens))
        assert len(image) == batch.grid[0] * batch.grid[1]
        assert set(everything) - set(text) - set(image) == {tokens}  # the class token of the image
        assert layout.query is None
    # The norm's states are what the heads read: the last site of the curve is the model's own last word.
    torch.testing.assert_close(seen.state["norm"], model.transformer.norm(seen.state["block.1"]))


def test_image_tokens_are_in_raster_order(model):
    example = game(images=3)
    changed = [pixels.copy() for pixels in example.images]
    changed[1][16:, :16] = 255 - changed[1][16:, :16]  # candidate 1, lower left: row 3, column 0 of a grid of 6 x 2
    before, _ = captured(model, [example])
    after, _ = captured(model, [replace(example, images=tuple(changed))])
    layout = model.sites()[0].layout(model.preprocess([example]))
    moved = (before.state["embedding"] - after.state["embedding"])[0].abs().amax(-1)
    assert np.flatnonzero(moved[layout.image]).tolist() == [3 * 2 + 0]
    assert not moved[layout.text].any()


def test_heatmaps_are_probabilities_over_all_candidates(model):
    batch = model.preprocess(MIXED)
    with torch.no_grad():
        output = model(batch)
        predictions = model.predict(batch, output)
    shapes = [(1, 64, 16), (2, 32, 32), (1, 16, 80)]
    for prediction, shape in zip(predictions, shapes, strict=True):
        assert len(prediction.phrases) == 2
        for phrase in prediction.phrases:
            assert phrase.heatmap.shape == shape
            assert phrase.heatmap.sum() == pytest.approx(1, abs=1e-5)
            assert phrase.heatmap.min() >= 0
    torch.testing.assert_close(output.log_task.exp().sum((1, 2)), torch.ones(3))
    assert [p.example_id for p in predictions] == ["tall", "game", "wide"]


@torch.no_grad()
def test_phrases_of_the_same_words_get_the_same_map_and_others_another(model):
    example = game()
    twin = replace(example.phrases[0], id="twin")
    output = model(model.preprocess([replace(example, phrases=(*example.phrases, twin))]))
    assert torch.equal(output.log_phrases[0], output.log_phrases[2])
    assert (output.log_phrases[0] - output.log_phrases[1]).abs().max() > 1e-3


@pytest.mark.parametrize("count", [6, 10])
def test_every_row_of_a_planted_peak_is_decoded_to_its_candidate(count):
    model = small_vilt(candidate_size=16)
    for target in range(count):
        examples = [game(images=count, target=target)] * 16
        batch = model.preprocess(examples)
        rows = 16 * target + torch.arange(16)
        log_task = torch.full((16, 16 * count, 16), -20.0)
        log_task[torch.arange(16), rows, torch.arange(16)] = 0.0
        predictions = model.predict(batch, planted(batch, log_task))
        assert [p.answer for p in predictions] == [target] * 16
        assert all(p.correct for p in predictions)


def planted(batch, log_task: torch.Tensor) -> ViltAlignerOutput:
    """An output with a given task map (normalised here), as ``forward`` makes it."""
    from grounding.models.vilt_aligner import _log_softmax, _peaks

    image_log_task = _log_softmax(log_task.masked_fill(~batch.pixel_mask, -math.inf))
    owners = batch.phrase_example
    return ViltAlignerOutput(
        task_point=_peaks(log_task, batch, torch.arange(len(batch))),
        phrase_point=_peaks(log_task[owners], batch, owners),
        log_task=_log_softmax(log_task),
        log_phrases=_log_softmax(log_task)[owners],
        image_log_task=image_log_task,
        image_log_phrases=image_log_task[owners],
        phrase_normaliser=torch.zeros(len(owners)),
    )


def test_a_peak_on_padding_is_no_answer():
    model = small_vilt()
    batch = model.preprocess([single_image("a", 32, 32, target_xy=(0.9, 0.1)), single_image("b", 64, 80)])
    log_task = torch.zeros(2, 64, 80)
    log_task[0, 50, 70] = 9.0  # on padding
    log_task[0, 8, 24] = 5.0
    log_task[1, 50, 70] = 9.0
    first, second = model.predict(batch, planted(batch, log_task))
    assert first.answer == pytest.approx((24.5 / 32, 8.5 / 32))
    assert second.answer == pytest.approx((70.5 / 80, 50.5 / 64))


def test_the_score_is_the_log_probability_of_the_target_pixel():
    model = small_vilt()
    example = single_image("a", 32, 48, target_xy=(0.5, 0.25))
    log_task = torch.zeros(1, 32, 48)
    log_task[0, 8, 24] = 2.0
    batch = model.preprocess([example])
    (prediction,) = model.predict(batch, planted(batch, log_task))
    assert prediction.score == pytest.approx(2 - math.log(math.exp(2) + 32 * 48 - 1), abs=1e-5)
    corner = replace(example, task=replace(example.task, target_xy=(1.0, 1.0)))
    (prediction,) = model.predict(replace(batch, examples=(corner,)), planted(batch, log_task))
    assert prediction.score == pytest.approx(-math.log(math.exp(2) + 32 * 48 - 1), abs=1e-5)


@torch.no_grad()
def test_a_caption_without_words_gives_a_map_and_no_number_that_is_not_finite(model):
    batch = model.preprocess([replace(game(), caption="", phrases=())])
    for one in (model, small_vilt().half()):
        output = one(batch)
        assert output.log_task.isfinite().all()
        assert output.log_phrases.shape == (0, 96, 32)
        assert one.predict(batch, output)[0].phrases == ()


@torch.no_grad()
def test_bf16_autocast_on_cpu_is_close(model):
    batch = model.preprocess(MIXED)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    assert rough.log_task.dtype == torch.float32
    torch.testing.assert_close(rough.log_task.exp().sum((1, 2)), torch.ones(3), atol=1e-4, rtol=0)
    error = (rough.log_task - exact.log_task).abs()
    assert 0 < error.mean() < 0.2 * exact.log_task.std()


@torch.no_grad()
def test_logits_are_stretched_to_the_canvas_without_moving():
    """Patches of 32 pixels have 8 cells: each of 4 pixels, whose centres agree (align_corners False)."""
    model = small_vilt(patch=32, candidate_size=32, position_grid=(3, 1))
    batch = model.preprocess([game()])
    output = model(batch)
    states = {}
    model.sdr_head.register_forward_hook(lambda module, inputs, logits: states.update(logits=logits))
    model(batch)
    logits = states["logits"][-1:]
    assert logits.shape == (1, 24, 8)
    expected = functional.interpolate(logits[None], (96, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(output.log_task, expected.flatten(1).log_softmax(1).view_as(expected))


def test_a_configuration_that_cannot_be_built_names_its_field():
    with pytest.raises(BadInput, match="vilt-aligner configuration: width 24 is not a multiple of heads 5"):
        ViltAlignerConfig(**{**VILT, "heads": 5})
    with pytest.raises(BadInput, match="heads 0 is too small; accepted: 1 or more"):
        ViltAlignerConfig(**{**VILT, "heads": 0})
    with pytest.raises(BadInput, match="text_padding 'maximum' is unknown; accepted: max, longest"):
        ViltAlignerConfig(**{**VILT, "text_padding": "maximum"})
    with pytest.raises(BadInput, match="stem 'convolution' is unknown; accepted: linear, convolutions"):
        ViltAlignerConfig(**{**VILT, "stem": "convolution"})
    for patch in (0, 1, 12, 24):
        with pytest.raises(BadInput, match=f"patch {patch} with stem 'convolutions'; accepted: 2, 4, 8, 16, ..."):
            ViltAlignerConfig(**{**VILT, "stem": "convolutions", "patch": patch})
    assert small_vilt(patch=12, candidate_size=24).config.stem == "linear"  # which takes any patch
    for grid in ((0, 4), (3, -1)):
        with pytest.raises(BadInput, match=r"position_grid \(.*\); accepted: 1 or more"):
            ViltAlignerConfig(**{**VILT, "position_grid": grid})
    with pytest.raises(BadInput, match="candidate size 40 is not a multiple of 16"):
        small_vilt(candidate_size=40)


def test_the_pooler_is_there_where_the_checkpoint_has_one():
    names = set(small_vilt(pooler=True).state_dict())
    assert names - set(small_vilt().state_dict()) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert isinstance(small_vilt(pooler=True).pooler, nn.Module)
