"""Multi-head attention that can be read and patched from outside, and stays fused when nobody does.

The weights are those of the released checkpoints: ``qkv`` and ``proj`` as in ViT, or ``in_proj_weight``,
``in_proj_bias`` and ``out_proj`` as in ``nn.MultiheadAttention``, whose own weights no hook can reach.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionTaps(nn.Module):
    """Scaled dot-product attention between identity modules, the places for hooks.

    query: ``[B, heads, N, d]``; key, value: ``[B, heads, M, d]``; bias: additive, broadcastable to ``[B, heads, N, M]``
    (-inf where a key is masked), or None; output: ``[B, N, heads * d]``, before the output projection.
    followed: False where they only show what the model computes otherwise: a change of them would change nothing.
    """

    def __init__(self, heads: int, followed: bool = True):
        super().__init__()
        self.heads = heads
        self.followed = followed
        self.query = nn.Identity()
        self.key = nn.Identity()
        self.value = nn.Identity()
        self.bias = nn.Identity()
        self.output = nn.Identity()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
        """Attend. query ``[B, N, D]``, key and value ``[B, M, D]`` -> ``[B, N, D]``."""
        return self.attend(self._split(query), self._split(key), self._split(value), bias, dropout)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
        """The same for heads that are split: ``[B, heads, N, d]``, ``[B, heads, M, d]`` twice -> ``[B, N, D]``."""
        query, key, value, bias = self.query(query), self.key(key), self.value(value), self.bias(bias)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of some query rows: softmax(q k^T / sqrt(d) + bias), fp32 ``[..., rows, M]``."""
    scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias.float()
    return scores.softmax(-1)


def key_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive bias ``[B, 1, 1, M]`` that hides the keys where ``mask`` ``[B, M]`` is False."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, float("-inf"))[:, None, None, :]


class FusedProjectionAttention(nn.Module):
    """Self-attention with ViT's parameter names (``qkv``, ``proj``)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.taps = AttentionTaps(heads)
        self.dropout = dropout

    def forward(self, states: Tensor, bias: Tensor | None) -> Tensor:
        """states ``[B, N, D]`` -> ``[B, N, D]``."""
        query, key, value = self.qkv(states).chunk(3, dim=-1)
        return self.proj(self.taps(query, key, value, bias, self.dropout if self.training else 0.0))


class MultiheadAttention(nn.Module):
    """Attention with ``nn.MultiheadAttention``'s parameter names, batch first."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.taps = AttentionTaps(heads)
        self.dropout = dropout
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """query ``[B, N, D]``, key and value ``[B, M, D]`` -> ``[B, N, D]``."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        query, key, value = (
            functional.linear(states, weight, offset)
            for states, weight, offset in zip((query, key, value), weights, biases, strict=True)
        )
        return self.out_proj(self.taps(query, key, value, bias, self.dropout if self.training else 0.0))
