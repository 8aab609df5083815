"""MDETR's transformer alone: sine positions by hand, what positions touch, and padding that nothing sees."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import small_mdetr
from torch import Tensor, nn

from grounding.models.mdetr import Mdetr
from grounding.models.mdetr_transformer import DecoderLayer, EncoderLayer, sine_positions


@pytest.fixture(scope="module")
def model() -> Mdetr:
    return small_mdetr()


def test_positions_of_a_padded_mask_by_hand():
    """Two real cells in a row of three, nothing real below; y half first, sine and cosine in turn."""
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    found = sine_positions(mask, 8)[0].unflatten(0, (2, 3))
    whole, half = 2 * math.pi, math.pi  # frequencies 1 and 1 / 100, the root of the temperature 10000
    y = [math.sin(whole), math.cos(whole), math.sin(whole / 100), math.cos(whole / 100)]
    x = [math.sin(half), math.cos(half), math.sin(half / 100), math.cos(half / 100)]
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


@torch.no_grad()
def test_positions_are_added_to_queries_and_keys_but_not_to_values():
    """A single token attends to itself whatever its position, so the position must leave no trace."""
    torch.manual_seed(0)
    token, place, bias = torch.randn(1, 1, 12), torch.randn(1, 1, 12), torch.zeros(1, 1, 1, 1)
    encoder, decoder = EncoderLayer(12, 2, 16, 0.0), DecoderLayer(12, 2, 16, 0.0)
    torch.testing.assert_close(encoder(token, place, bias), encoder(token, 0 * place, bias))
    query = torch.randn(1, 1, 12)
    placed, bare = (decoder(0 * query, query, token, token + shift, bias) for shift in (place, 0 * place))
    torch.testing.assert_close(placed, bare)
    two = torch.randn(1, 2, 12)
    there, here = (encoder(two, shift, bias) for shift in (torch.cat([place, -place], 1), torch.zeros(1, 2, 12)))
    assert (there - here).abs().max() > 1e-3
    there, here = (decoder(0 * query, query, two, two + shift, bias) for shift in (torch.cat([place, -place], 1), 0))
    assert (there - here).abs().max() > 1e-3


@torch.no_grad()
def test_layers_norm_after_adding():
    torch.manual_seed(0)
    states, bias = torch.randn(2, 5, 12), torch.zeros(1, 1, 1, 5)
    layer = EncoderLayer(12, 2, 16, 0.0)
    attended = layer.norm1(states + layer.self_attn(states, states, states, bias))
    expected = layer.norm2(attended + layer.linear2(layer.linear1(attended).relu()))
    torch.testing.assert_close(layer(states, torch.zeros_like(states), bias), expected)
    torch.testing.assert_close(expected.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_of_image_and_text_is_invisible_to_the_transformer(model):
    """The backbone's borders see padding, as in the original; the joint encoder and the decoder must not."""
    transformer, generator = model.mdetr.transformer, torch.Generator().manual_seed(0)
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
