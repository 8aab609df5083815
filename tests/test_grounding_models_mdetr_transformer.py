"""MDETR's transformer alone: sine positions by hand, what positions touch, and padding that nothing sees."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import game, small_mdetr
from torch import Tensor, nn

from grounding.models.attention import key_bias
from grounding.models.mdetr import Mdetr
from grounding.models.mdetr_transformer import DecoderLayer, EncoderLayer, sine_positions


@pytest.fixture(scope="module")
def model() -> Mdetr:
    return small_mdetr()


@pytest.mark.parametrize(("temperature", "root"), [((), 100), ((10000.0,), 100), ((25.0,), 5)])
def test_positions_of_a_padded_mask_by_hand(temperature, root):
    """Two real cells in a row of three, nothing real below; y half first, sine and cosine in turn."""
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    found = sine_positions(mask, 8, *temperature)[0].unflatten(0, (2, 3))
    whole, half = 2 * math.pi, math.pi  # frequencies 1 and 1 / root of the temperature, by default 10000
    y = [math.sin(whole), math.cos(whole), math.sin(whole / root), math.cos(whole / root)]
    x = [math.sin(half), math.cos(half), math.sin(half / root), math.cos(half / root)]
    nothing = [0.0, 1.0, 0.0, 1.0]
    for (row, column), expected in {
        (0, 0): [*y, *x],
        (0, 1): [*y, *y],  # the end of the real extent is one turn in both directions
        (0, 2): [*nothing, *y],  # a column of padding has no height; the count of columns stays
        (1, 0): [*y, *nothing],
        (1, 2): [*nothing, *nothing],
    }.items():
        torch.testing.assert_close(found[row, column], torch.tensor(expected), atol=1e-5, rtol=0)


def test_positions_are_relative_to_the_real_extent():
    inside = torch.zeros(1, 5, 7, dtype=torch.bool)
    inside[:, :3, :4] = True
    padded = sine_positions(inside, 16)[0].unflatten(0, (5, 7))[:3, :4]
    alone = sine_positions(torch.ones(1, 3, 4, dtype=torch.bool), 16)[0].unflatten(0, (3, 4))
    torch.testing.assert_close(padded, alone)
    assert len({tuple(cell.tolist()) for cell in alone.flatten(0, 1)}) == 12


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_positions_are_added_to_queries_and_keys_but_not_to_values(pre_norm):
    """A single token attends to itself whatever its position, so the position must leave no trace."""
    torch.manual_seed(0)
    token, place, bias = torch.randn(1, 1, 12), torch.randn(1, 1, 12), torch.zeros(1, 1, 1, 1)
    encoder, decoder = EncoderLayer(12, 2, 16, 0.0, pre_norm), DecoderLayer(12, 2, 16, 0.0, pre_norm)
    torch.testing.assert_close(encoder(token, place, bias), encoder(token, 0 * place, bias))
    query = torch.randn(1, 1, 12)
    placed, bare = (decoder(0 * query, query, token, token + shift, bias) for shift in (place, 0 * place))
    torch.testing.assert_close(placed, bare)
    two = torch.randn(1, 2, 12)
    there, here = (encoder(two, shift, bias) for shift in (torch.cat([place, -place], 1), torch.zeros(1, 2, 12)))
    assert (there - here).abs().max() > 1e-3
    there, here = (decoder(0 * query, query, two, two + shift, bias) for shift in (torch.cat([place, -place], 1), 0))
    assert (there - here).abs().max() > 1e-3


def with_random_weights(layer: nn.Module) -> nn.Module:
    """The layer with no two parameters alike: norms too, whose fresh weights hide which of them is read."""
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5
    return layer.eval()


def attended(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, masked: Tensor | None = None) -> Tensor:
    """PyTorch's own attention with the weights of ours; masked: bool ``[B, keys]``, True where a key is hidden."""
    own = nn.MultiheadAttention(12, 2, batch_first=True).eval()
    own.load_state_dict(module.state_dict())
    return own(query, key, value, key_padding_mask=masked, need_weights=False)[0]


def normed(norm: nn.Module, states: Tensor) -> Tensor:
    """``norm`` by hand: mean 0 and variance 1 over the width, then weight and bias."""
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def fed_forward(layer: nn.Module, states: Tensor) -> Tensor:
    hidden = (states @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    return hidden @ layer.linear2.weight.T + layer.linear2.bias


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_an_encoder_layer_norms_after_adding_or_before_each_branch(pre_norm):
    torch.manual_seed(0)
    layer = with_random_weights(EncoderLayer(12, 2, 16, 0.0, pre_norm))
    x, p, masked = torch.randn(2, 5, 12), torch.randn(2, 5, 12), torch.zeros(2, 5, dtype=torch.bool)
    masked[1, 3:] = True
    if pre_norm:  # DETR: x + f(norm(x)); positions are added after the norm
        n = normed(layer.norm1, x)
        x1 = x + attended(layer.self_attn, n + p, n + p, n, masked)
        expected = x1 + fed_forward(layer, normed(layer.norm2, x1))
    else:
        x1 = normed(layer.norm1, x + attended(layer.self_attn, x + p, x + p, x, masked))
        expected = normed(layer.norm2, x1 + fed_forward(layer, x1))
    torch.testing.assert_close(layer(x, p, key_bias(~masked, x.dtype)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_a_decoder_layer_norms_after_adding_or_before_each_branch(pre_norm):
    torch.manual_seed(0)
    layer = with_random_weights(DecoderLayer(12, 2, 16, 0.0, pre_norm))
    x, q = torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    memory, p, masked = torch.randn(2, 5, 12), torch.randn(2, 5, 12), torch.zeros(2, 5, dtype=torch.bool)
    masked[1, 3:] = True
    if pre_norm:  # the memory has its norm from the encoder
        n = normed(layer.norm1, x)
        x1 = x + attended(layer.self_attn, n + q, n + q, n)
        n = normed(layer.norm3, x1)
        x2 = x1 + attended(layer.cross_attn_image, n + q, memory + p, memory, masked)
        expected = x2 + fed_forward(layer, normed(layer.norm4, x2))
    else:
        x1 = normed(layer.norm1, x + attended(layer.self_attn, x + q, x + q, x))
        x2 = normed(layer.norm3, x1 + attended(layer.cross_attn_image, x1 + q, memory + p, memory, masked))
        expected = normed(layer.norm4, x2 + fed_forward(layer, x2))
    found = layer(x, q, memory, memory + p, key_bias(~masked, x.dtype))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_encoder_ends_in_a_norm_only_with_pre_norm(model):
    """So that the decoder reads normed states either way; names of other weights are the same."""
    pre_norm = small_mdetr(pre_norm=True)
    last = "mdetr.transformer.encoder.norm"
    assert set(pre_norm.state_dict()) - set(model.state_dict()) == {f"{last}.weight", f"{last}.bias"}
    assert not set(model.state_dict()) - set(pre_norm.state_dict())
    for each in (model, pre_norm):
        batch, given = each.preprocess([game()]), []
        stack = each.mdetr.transformer.encoder.layers
        handle = stack[-1].register_forward_hook(lambda module, inputs, output, given=given: given.append(output))
        memory, *_ = each.mdetr.encode(batch.images.float(), batch.pixel_mask, batch.input_ids, batch.text_mask)
        handle.remove()
        expected = normed(each.get_submodule(last), given[0]) if each is pre_norm else given[0]
        torch.testing.assert_close(memory, expected, atol=1e-5, rtol=1e-5)
        for layer in (*stack, *each.mdetr.transformer.decoder.layers):
            assert layer.pre_norm == (each is pre_norm)


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_padding_of_image_and_text_is_invisible_to_the_transformer(pre_norm):
    """The backbone's borders see padding, as in the original; the joint encoder and the decoder must not."""
    transformer, generator = small_mdetr(pre_norm=pre_norm).mdetr.transformer, torch.Generator().manual_seed(0)
    cells = torch.randn(1, 3, 4, 24, generator=generator)
    ids, text_mask = torch.tensor([[2, 7, 8, 3]]), torch.ones(1, 4, dtype=torch.bool)
    queries = torch.randn(7, 24, generator=generator)

    def run(rows: int, columns: int, tokens: int) -> tuple[Tensor, Tensor]:
        canvas = torch.full((1, rows, columns, 24), 5.0)
        canvas[:, :3, :4] = cells
        mask = torch.zeros(1, rows, columns, dtype=torch.bool)
        mask[:, :3, :4] = True
        padded = nn.functional.pad(ids, (0, tokens - 4)), nn.functional.pad(text_mask, (0, tokens - 4))
        memory, positions, bias = transformer.encode(
            canvas.flatten(1, 2), sine_positions(mask, 24), mask.flatten(1), *padded
        )
        hidden = transformer.decode(queries, memory, positions, bias)
        image = memory[:, : rows * columns].unflatten(1, (rows, columns))[:, :3, :4].flatten(1, 2)
        return torch.cat([image, memory[:, rows * columns :][:, :4]], 1), hidden

    memory, hidden = run(3, 4, 4)
    padded_memory, padded_hidden = run(5, 6, 9)
    torch.testing.assert_close(padded_memory, memory, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(padded_hidden, hidden, atol=2e-5, rtol=1e-4)
