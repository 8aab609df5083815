"""Attention that can be read and patched: the weights, the taps, and the names of the released modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from grounding.models.attention import (
    AttentionTaps,
    FusedProjectionAttention,
    MultiheadAttention,
    attention_weights,
    key_bias,
)

BATCH, ROWS, KEYS, WIDTH, HEADS = 2, 5, 7, 12, 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    """bool ``[BATCH, KEYS]``: the second example has two keys less."""
    return torch.arange(KEYS) < torch.tensor([[KEYS], [KEYS - 2]])


def loops(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Attention as its definition reads, one number at a time: states and weights ``[B, heads, rows, keys]``."""
    width = query.shape[-1] // HEADS
    states, weights = torch.zeros_like(query), torch.zeros(len(query), HEADS, query.shape[1], key.shape[1])
    for b in range(len(query)):
        for head in range(HEADS):
            own = slice(head * width, (head + 1) * width)
            for row in range(query.shape[1]):
                scores = [
                    math.exp(float(query[b, row, own] @ key[b, k, own]) / math.sqrt(width)) if seen[b, k] else 0.0
                    for k in range(key.shape[1])
                ]
                for k, score in enumerate(scores):
                    weights[b, head, row, k] = score / sum(scores)
                    states[b, row, own] += weights[b, head, row, k] * value[b, k, own]
    return states, weights


def tapped(taps: AttentionTaps) -> dict[str, Tensor]:
    """Fills up with what passes the taps."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[name] = output

        taps.get_submodule(name).register_forward_hook(hook)

    for name in ("query", "key", "bias", "output"):
        keep(name)
    return seen


def test_states_and_weights_are_those_of_the_definition():
    query, key, value = noise(BATCH, ROWS, WIDTH), noise(BATCH, KEYS, WIDTH, seed=1), noise(BATCH, KEYS, WIDTH, seed=2)
    taps = AttentionTaps(HEADS)
    seen = tapped(taps)
    states = taps(query, key, value, key_bias(mask(), torch.float32))
    expected_states, expected_weights = loops(query, key, value, mask())
    weights = attention_weights(seen["query"], seen["key"], seen["bias"])
    assert weights.shape == (BATCH, HEADS, ROWS, KEYS)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, ROWS))
    assert (weights[1, ..., KEYS - 2 :] == 0).all()
    assert torch.equal(seen["output"], states)


def test_weights_of_chosen_rows_are_those_rows_of_all_and_in_full_precision():
    query, key = noise(BATCH, HEADS, ROWS, 4).bfloat16(), noise(BATCH, HEADS, KEYS, 4, seed=1).bfloat16()
    bias = key_bias(mask(), torch.bfloat16)
    every = attention_weights(query, key, bias)
    assert every.dtype == torch.float32
    torch.testing.assert_close(every.sum(-1), torch.ones(BATCH, HEADS, ROWS))
    assert torch.equal(attention_weights(query[:, :, 1:3], key, bias), every[:, :, 1:3])
    torch.testing.assert_close(attention_weights(query, key, None)[0], every[0])  # nothing is masked in the first


@torch.no_grad()
def test_the_taps_see_the_parameters_of_vit():
    attention = FusedProjectionAttention(WIDTH, HEADS)
    assert {name for name, _ in attention.named_parameters()} == {
        f"{part}.{kind}" for part in ("qkv", "proj") for kind in ("weight", "bias")
    }
    states = noise(BATCH, KEYS, WIDTH)
    query, key, value = (states @ attention.qkv.weight.T + attention.qkv.bias).split(WIDTH, dim=-1)
    expected, _ = loops(query, key, value, mask())
    found = attention(states, key_bias(mask(), torch.float32))
    torch.testing.assert_close(found, attention.proj(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_it_equals_torchs_attention_with_the_same_state(train):
    ours, theirs = MultiheadAttention(WIDTH, HEADS), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.in_proj_bias.data = noise(3 * WIDTH, seed=4)
    theirs.out_proj.bias.data = noise(WIDTH, seed=5)
    ours.load_state_dict(theirs.state_dict())
    ours.train(train)
    query, key, value = noise(BATCH, ROWS, WIDTH), noise(BATCH, KEYS, WIDTH, seed=1), noise(BATCH, KEYS, WIDTH, seed=2)
    seen = tapped(ours.taps)
    found = ours(query, key, value, key_bias(mask(), torch.float32))
    expected, weights = theirs(query, key, value, key_padding_mask=~mask(), average_attn_weights=False)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention_weights(seen["query"], seen["key"], seen["bias"]), weights)


@pytest.mark.parametrize("tap", ["query", "key", "bias", "output"])
def test_what_a_hook_returns_at_a_tap_is_what_counts(tap):
    attention = FusedProjectionAttention(WIDTH, HEADS).eval()
    states = noise(1, KEYS, WIDTH)
    before = attention(states, torch.zeros(1, 1, 1, KEYS))

    def patch(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., :1, 0] += 3.0  # of one token: added to every key, softmax would not notice
        return changed

    handle = attention.taps.get_submodule(tap).register_forward_hook(patch)
    assert (attention(states, torch.zeros(1, 1, 1, KEYS)) - before).abs().max() > 1e-3
    handle.remove()
    assert torch.equal(attention(states, torch.zeros(1, 1, 1, KEYS)), before)


def test_a_key_hidden_at_the_bias_tap_is_as_if_it_was_masked():
    attention = FusedProjectionAttention(WIDTH, HEADS).eval()
    states = noise(BATCH, KEYS, WIDTH)
    hidden = torch.ones(BATCH, KEYS, dtype=torch.bool)
    hidden[:, 2] = False
    wanted = attention(states, key_bias(hidden, torch.float32))
    attention.taps.bias.register_forward_hook(lambda module, inputs, output: key_bias(hidden, torch.float32))
    assert torch.equal(attention(states, None), wanted)


def test_dropout_acts_in_training_only():
    for attention in (FusedProjectionAttention(WIDTH, HEADS, 0.5), MultiheadAttention(WIDTH, HEADS, 0.5)):
        states = noise(1, KEYS, WIDTH)
        inputs = (states,) if isinstance(attention, FusedProjectionAttention) else (states, states, states)
        attention.eval()
        assert torch.equal(attention(*inputs, None), attention(*inputs, None))
        attention.train()
        assert not torch.equal(attention(*inputs, None), attention(*inputs, None))


def test_the_bias_hides_what_is_false():
    bias = key_bias(mask(), torch.float32)
    assert bias.shape == (BATCH, 1, 1, KEYS)
    assert torch.equal(bias[:, 0, 0].isinf(), ~mask())
    assert (bias[:, 0, 0][mask()] == 0).all()
