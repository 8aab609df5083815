"""ViLT-Aligner's image tokens: what a stem sees of the pixels, and position tables of another size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import VILT, captured, game, single_image, small_vilt
from torch.nn import functional

from grounding.errors import BadInput
from grounding.models import model_config
from grounding.models.vilt_aligner import ViltAligner, ViltAlignerConfig
from grounding.models.vilt_aligner_transformer import ConvolutionalStem

MIXED = [single_image("tall", 64, 16, seed=1), game(images=2), single_image("wide", 16, 80, seed=2)]


@pytest.fixture(scope="module")
def model() -> ViltAligner:
    return small_vilt()


# --- stems ------------------------------------------------------------------------------------------------------


def stem_of(patch: int, width: int = 24) -> ConvolutionalStem:
    torch.manual_seed(0)
    return ConvolutionalStem(ViltAlignerConfig(**{**VILT, "stem": "convolutions", "patch": patch, "width": width}))


def everything(images: torch.Tensor) -> torch.Tensor:
    """A mask without padding."""
    return torch.ones_like(images[:, 0], dtype=torch.bool)


@torch.no_grad()
def test_a_convolutional_stem_halves_the_image_and_ends_in_a_linear_layer():
    stem, images = stem_of(8, width=72), torch.randn(2, 3, 24, 40)
    assert [tuple(c.weight.shape) for c in stem.convolutions] == [(16, 3, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4)]
    states = images
    for convolution in stem.convolutions:
        states = functional.conv2d(states, convolution.weight, convolution.bias, stride=2, padding=1).clamp(min=0)
    expected = states.permute(0, 2, 3, 1) @ stem.proj.weight[:, :, 0, 0].T + stem.proj.bias  # [B, rows, columns, D]
    found = stem(images, everything(images))
    assert found.shape == (2, 3 * 5, 72)
    torch.testing.assert_close(found.unflatten(1, (3, 5)), expected, atol=1e-5, rtol=1e-5)


def test_every_pixel_of_a_patch_matters_to_it_and_as_many_around_it_on_every_side():
    """Strides of 2 look one pixel out each time: a patch of 8 sees 7 pixels of each of its neighbours."""
    stem, images = stem_of(8), torch.randn(1, 3, 32, 40, requires_grad=True)
    patches = stem(images, everything(images)).unflatten(1, (4, 5))
    for row, column in ((0, 0), (2, 3), (3, 4)):
        (slope,) = torch.autograd.grad(patches[0, row, column].square().sum(), images, retain_graph=True)
        seen = torch.zeros(32, 40, dtype=torch.bool)
        seen[max(8 * row - 7, 0) : 8 * row + 15, max(8 * column - 7, 0) : 8 * column + 15] = True
        assert torch.equal(slope[0].ne(0).any(0), seen)


@torch.no_grad()
def test_a_convolutional_stem_gives_a_padded_image_the_patches_it_has_alone():
    stem, image = stem_of(16), torch.randn(1, 3, 32, 48)
    alone = stem(image, everything(image)).unflatten(1, (2, 3))
    padding = (0, 32, 0, 16)
    padded, mask = functional.pad(image, padding), functional.pad(everything(image), padding)
    found = stem(padded, mask).unflatten(1, (3, 5))
    torch.testing.assert_close(found[:, :2, :3], alone, atol=1e-6, rtol=1e-6)
    unmasked = stem(padded, everything(padded)).unflatten(1, (3, 5))
    assert (unmasked[:, :2, :3] - alone).abs().max() > 1e-3  # biases spread over the padding, were it not masked


def test_stems_have_their_own_names_and_fresh_weights_of_their_own_scale():
    def shapes(model: ViltAligner) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in model.transformer.patch_embed.state_dict().items()}

    assert ViltAlignerConfig().stem == "linear"
    assert shapes(small_vilt()) == {"proj.weight": (24, 3, 16, 16), "proj.bias": (24,)}
    convolutional = small_vilt(stem="convolutions", width=48)
    expected = {"proj.weight": (48, 48, 1, 1), "proj.bias": (48,)}
    for k, (before, after) in enumerate([(3, 16), (16, 32), (32, 48), (48, 48)]):
        expected |= {f"convolutions.{k}.weight": (after, before, 4, 4), f"convolutions.{k}.bias": (after,)}
    assert shapes(convolutional) == expected
    torch.manual_seed(0)
    config = model_config("vilt-aligner", "miniature")
    fresh = ViltAligner(replace(config, vocabulary=300), convolutional.preprocessor.tokenizer)  # type: ignore[arg-type]
    convolutions = list(fresh.transformer.patch_embed.convolutions)
    assert [len(c.weight) for c in convolutions] == [16, 32, 64, 96]
    for convolution in convolutions:  # He et al. (2015), equation 10
        assert float(convolution.weight.detach().std()) == pytest.approx(
            (2 / convolution.weight[0].numel()) ** 0.5, rel=0.15
        )


# --- position tables --------------------------------------------------------------------------------------------


def position_table(model: ViltAligner) -> torch.Tensor:
    """``[rows, columns, D]``."""
    return model.transformer.pos_embed[0, 1:].detach().unflatten(0, model.config.position_grid)


def same_but_for_the_table(model: ViltAligner, other: ViltAligner) -> bool:
    """Whether two models have equal weights, and configurations, apart from the position table."""
    one, two = model.state_dict(), other.state_dict()
    tables = [state.pop("transformer.pos_embed")[:, 0] for state in (one, two)]  # the class token's place stays
    return (
        torch.equal(*tables)
        and one.keys() == two.keys()
        and all(torch.equal(one[name], two[name]) for name in one)
        and replace(other.config, position_grid=model.config.position_grid) == model.config
    )


@pytest.mark.parametrize("grid", [(6, 4), (9, 2), (3, 4)])
def test_a_repeated_position_table_is_the_same_in_every_repeat_up_to_an_offset(model, grid):
    torch.manual_seed(0)
    before = model.transformer.pos_embed.detach().clone()
    repeated = model.with_position_grid(*grid)
    assert repeated.config.position_grid == repeated.transformer.position_grid == grid
    assert same_but_for_the_table(model, repeated)
    table = position_table(model)
    parts = position_table(repeated).unfold(0, 3, 3).unfold(1, 2, 2).permute(0, 1, 3, 4, 2)  # [down, across, 3, 2, D]
    offsets = parts - table
    torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), atol=1e-6, rtol=0)
    each = offsets[:, :, 0, 0].flatten(0, 1)
    assert len(each) == grid[0] * grid[1] // 6
    assert float(each.std()) == pytest.approx(float(table.std()), rel=0.2)
    for k, one in enumerate(each):
        assert all((one - other).abs().max() > 1e-3 for other in each[:k])
    assert torch.equal(model.transformer.pos_embed, before)  # the model itself is left as it was


def test_each_candidate_of_a_stack_keeps_the_positions_of_a_single_scene():
    single = small_vilt(position_grid=(2, 2))
    stacked = single.with_position_grid(6, 2)
    example = game(images=3)
    scene = replace(example, images=example.images[1:2], phrases=(), task=replace(example.task, target_index=0))
    (alone, _), (together, _) = captured(single, [scene]), captured(stacked, [example])
    layouts = [m.sites()[0].layout(m.preprocess([e])) for m, e in ((single, scene), (stacked, example))]
    expected = alone.state["embedding"][0, layouts[0].image]
    found = together.state["embedding"][0, layouts[1].image][4:8]  # candidate 1
    offset = found - expected
    torch.testing.assert_close(offset, offset[:1].expand_as(offset), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [(5, 3), (6, 3), (4, 4), (2, 2), (1, 1)])
def test_a_table_of_any_other_size_is_interpolated(model, grid):
    resized = model.with_position_grid(*grid)
    assert same_but_for_the_table(model, resized)
    table = position_table(model).permute(2, 0, 1)[None]
    expected = functional.interpolate(table, grid, mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
    assert torch.equal(position_table(resized), expected)
    assert torch.equal(position_table(resized)[0, 0], position_table(model)[0, 0])


def test_a_table_of_the_same_size_is_the_same(model):
    same = model.with_position_grid(3, 2)
    assert same is not model
    assert same_but_for_the_table(model, same)
    assert torch.equal(same.transformer.pos_embed, model.transformer.pos_embed)


@torch.no_grad()
def test_a_model_with_another_position_table_is_used_like_the_first(model):
    other = model.with_position_grid(6, 4)
    assert not other.training
    assert other.preprocessor.tokenizer is model.preprocessor.tokenizer
    batch = other.preprocess(MIXED)
    output = other(batch)
    assert len(other.predict(batch, output)) == len(MIXED)
    assert output.log_task.isfinite().all()
    assert (output.log_task - model(batch).log_task).abs().max() > 1e-4
    assert small_vilt().train().with_position_grid(6, 2).training
    for grid in ((6, 2), (5, 2)):
        assert {t.dtype for t in small_vilt().half().with_position_grid(*grid).parameters()} == {torch.float16}
    with pytest.raises(BadInput, match=r"position_grid \(0, 4\); accepted: 1 or more"):
        model.with_position_grid(0, 4)
