"""MDETR's transformer: text encoder, joint encoder over image and text, query decoder; batch first.

Kamath et al. (2021), arXiv 2104.12763; DETR: Carion et al. (2020), arXiv 2005.12872. Parameter names equal
those of the released checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import RobertaConfig, RobertaModel

from grounding.models.attention import MultiheadAttention, key_bias


def sine_positions(mask: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Sine position embedding over the real extent of each image (DETR, section A.4), fp32.

    mask: bool ``[B, rows, columns]``, True on real cells -> ``[B, rows * columns, width]``, y half first.
    """
    half = width // 2
    real = mask.float()
    halves = []
    for axis in (1, 2):
        place = real.cumsum(axis)
        place = place / (place.narrow(axis, place.shape[axis] - 1, 1) + 1e-6) * 2 * math.pi
        index = torch.arange(half, dtype=torch.float32, device=mask.device)
        angle = place[..., None] / temperature ** (2 * (index // 2) / half)
        halves.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(halves, dim=-1).flatten(1, 2)


class FeatureResizer(nn.Module):
    """Text states to the width of the joint encoder."""

    def __init__(self, before: int, after: int, dropout: float):
        super().__init__()
        self.fc = nn.Linear(before, after)
        self.layer_norm = nn.LayerNorm(after, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """``[B, T, before]`` -> ``[B, T, after]``."""
        return self.dropout(self.layer_norm(self.fc(states)))


class EncoderLayer(nn.Module):
    """Self-attention layer; positions are added to queries and keys.

    Norms follow each sum; with ``pre_norm`` they come before each branch instead (DETR's option of that name).
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        if self.pre_norm:
            states = states + self._attended(self.norm1(states), positions, bias)
            return states + self._fed_forward(self.norm2(states))
        states = self.norm1(states + self._attended(states, positions, bias))
        return self.norm2(states + self._fed_forward(states))

    def _attended(self, states: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        placed = states + positions
        return self.dropout(self.self_attn(placed, placed, states, bias))

    def _fed_forward(self, states: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(functional.relu(self.linear1(states)))))


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the joint memory; norms as in the encoder."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.cross_attn_image = MultiheadAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor, bias: Tensor) -> Tensor:
        """states and learned queries ``[B, Q, D]``, memory ``[B, N, D]`` -> ``[B, Q, D]``."""
        if self.pre_norm:
            states = states + self._among_queries(self.norm1(states), queries)
            states = states + self._from_memory(self.norm3(states), queries, memory, placed_memory, bias)
            return states + self._fed_forward(self.norm4(states))
        states = self.norm1(states + self._among_queries(states, queries))
        states = self.norm3(states + self._from_memory(states, queries, memory, placed_memory, bias))
        return self.norm4(states + self._fed_forward(states))

    def _among_queries(self, states: Tensor, queries: Tensor) -> Tensor:
        placed = states + queries
        return self.dropout(self.self_attn(placed, placed, states, None))

    def _from_memory(
        self, states: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor, bias: Tensor
    ) -> Tensor:
        return self.dropout(self.cross_attn_image(states + queries, placed_memory, memory, bias))

    def _fed_forward(self, states: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(functional.relu(self.linear1(states)))))


class Layers(nn.Module):
    """A stack of layers, and the norm after the last: the decoder's always, the encoder's with ``pre_norm``."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm is not None:
            self.norm = norm


class MdetrTransformer(nn.Module):
    """Joint encoder and query decoder around a RoBERTa text encoder."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
        text_config: RobertaConfig,
        text_pooler: bool,
        pre_norm: bool = False,
    ):
        super().__init__()
        self.pre_norm = pre_norm
        sizes = (width, heads, feed_forward, dropout, pre_norm)
        last = nn.LayerNorm(width) if pre_norm else None
        self.encoder = Layers([EncoderLayer(*sizes) for _ in range(encoder_layers)], last)
        self.decoder = Layers([DecoderLayer(*sizes) for _ in range(decoder_layers)], nn.LayerNorm(width))
        self.text_encoder = RobertaModel(text_config, add_pooling_layer=text_pooler)
        self.resizer = FeatureResizer(text_config.hidden_size, width, dropout=0.1 if dropout else 0.0)
        self.joint_input = nn.Identity()
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(
        self, image: Tensor, positions: Tensor, image_mask: Tensor, ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """image ``[B, cells, D]`` and token ids ``[B, T]`` -> memory, its positions and key bias.

        memory ``[B, cells + T, D]``: image cells in raster order, then text.
        """
        text = self.text_encoder(input_ids=ids, attention_mask=text_mask.long()).last_hidden_state
        text = self.resizer(text)
        states = self.joint_input(torch.cat([image, text], dim=1))
        positions = torch.cat([positions.to(states.dtype), torch.zeros_like(text)], dim=1)
        bias = key_bias(torch.cat([image_mask, text_mask], dim=1), states.dtype)
        for layer in self.encoder.layers:
            states = layer(states, positions, bias)
        if self.pre_norm:
            states = self.encoder.norm(states)
        return states, positions, bias

    def decode(self, queries: Tensor, memory: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """Learned queries ``[Q, D]`` -> normed states of every decoder layer ``[layers, B, Q, D]``."""
        queries = queries.expand(len(memory), -1, -1)
        states = torch.zeros_like(queries)
        placed_memory = memory + positions
        hidden = []
        for layer in self.decoder.layers:
            states = layer(states, queries, memory, placed_memory, bias)
            hidden.append(self.decoder.norm(states))
        return torch.stack(hidden)
