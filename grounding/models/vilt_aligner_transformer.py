"""ViLT's transformer: text and patch embeddings, positions, joint pre-norm blocks.

Kim, Son and Kim (2021), arXiv 2102.03334. Parameter names equal those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from grounding.models.attention import FusedProjectionAttention

if TYPE_CHECKING:
    from grounding.models.vilt_aligner import ViltAlignerConfig

STEM_FIRST = 16  # channels of the first convolution; they double up to the width


class TextEmbeddings(nn.Module):
    """BERT's embeddings: word + position + type, then a norm."""

    position_ids: Tensor

    def __init__(self, config: ViltAlignerConfig):
        super().__init__()
        self.register_buffer("position_ids", torch.arange(config.max_text)[None])
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_text, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """ids ``[B, T]`` -> ``[B, T, D]``."""
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        states = states + self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.dropout(self.LayerNorm(states))


class PatchEmbedding(nn.Module):
    """Non-overlapping patches, projected."""

    def __init__(self, config: ViltAlignerConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)

    def forward(self, images: Tensor, pixel_mask: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, rows * columns, D]``, raster order; no patch sees another, so no mask is needed."""
        return self.proj(images).flatten(2).transpose(1, 2)


class ConvolutionalStem(nn.Module):
    """4 x 4 convolutions of stride 2, one for every halving of the patch.

    Besides its own pixels a patch sees ``patch - 1`` of those around it, on every side. Padding stays zero
    throughout, as it is beyond the border, so that an image's patches do not depend on its batch.
    """

    def __init__(self, config: ViltAlignerConfig):
        super().__init__()
        halvings = config.patch.bit_length() - 1
        widths = [3, *(min(STEM_FIRST << k, config.width) for k in range(halvings))]
        convolutions = [nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.convolutions = nn.ModuleList(convolutions)
        self.proj = nn.Conv2d(widths[-1], config.width, 1)

    def forward(self, images: Tensor, pixel_mask: Tensor) -> Tensor:
        """``[B, 3, H, W]`` with real pixels ``[B, H, W]`` -> ``[B, rows * columns, D]``, raster order."""
        for convolution in self.convolutions:
            pixel_mask = pixel_mask[:, ::2, ::2]
            images = convolution(images).relu() * pixel_mask[:, None]
        return self.proj(images).flatten(2).transpose(1, 2)


STEMS: dict[str, Callable[[ViltAlignerConfig], nn.Module]] = {
    "linear": PatchEmbedding,
    "convolutions": ConvolutionalStem,
}


class FeedForward(nn.Module):
    """Two layers with GELU."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        return self.dropout(self.fc2(self.dropout(functional.gelu(self.fc1(states)))))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ViltAlignerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = FusedProjectionAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = FeedForward(config.width, config.feed_forward, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, bias: Tensor | None) -> Tensor:
        """states ``[B, N, D]``, additive key bias -> ``[B, N, D]``."""
        states = states + self.dropout(self.attn(self.norm1(states), bias))
        return states + self.mlp(self.norm2(states))


class VisionTransformer(nn.Module):
    """Patches, positions and the joint blocks."""

    def __init__(self, config: ViltAlignerConfig):
        super().__init__()
        rows, columns = config.position_grid
        self.position_grid = config.position_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, config.width))
        self.patch_embed = STEMS[config.stem](config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def embed(self, images: Tensor, pixel_mask: Tensor, grid: tuple[int, int], valid: Tensor) -> Tensor:
        """Image class token and patches with positions, ``[B, 1 + rows * columns, D]``.

        valid: ``[B, 2]`` real rows and columns of patches; the position table is resized to each image's own.
        """
        patches = self.patch_embed(images, pixel_mask)
        sizes = [tuple(size) for size in valid.tolist()]
        tables = {size: self._positions(size, grid) for size in set(sizes)}
        patches = patches + torch.stack([tables[size] for size in sizes])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1)

    def _positions(self, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Position table resized to ``size`` and zero-filled to ``grid``: ``[rows * columns, D]``."""
        table = self.pos_embed[:, 1:].unflatten(1, self.position_grid).permute(0, 3, 1, 2)  # [1, D, rows, columns]
        if size != self.position_grid:
            table = functional.interpolate(table, size, mode="bilinear", align_corners=True)
        table = functional.pad(table, (0, grid[1] - size[1], 0, grid[0] - size[0]))
        return table[0].flatten(1).T
