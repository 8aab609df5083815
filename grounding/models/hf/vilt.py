"""Hugging Face's ViLT with its retrieval head (Kim, Son and Kim 2021, arXiv 2102.03334), patches in raster order.

transformers draws the order of the patches with ``torch.multinomial``, even in eval mode, and does not tell it. Here
the patches are embedded in raster order and handed to the model as ``image_embeds``; nothing else is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.attention import mean_attention, tap_projections
from grounding.models.hf.heatmaps import HeatmapModel, HeatmapOutput, attended_places


class ViltRetrieval(HeatmapModel):
    """``ViltForImageAndTextRetrieval``; sites ``embedding``, ``block.k``, ``norm``, each of text and patches.

    The retrieval score answers a game. A phrase's place is where its tokens look: the mean over heads and blocks.
    """

    architecture = "ViltForImageAndTextRetrieval"
    attention = "eager"

    @staticmethod
    def image_size(settings: Any, size: int | None) -> tuple[int, int]:
        """The square that the position table was made for: no interpolation."""
        return settings.image_size, settings.image_size // settings.patch_size

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Length of the table of text positions."""
        return settings.max_position_embeddings

    @staticmethod
    def tap(module: Any) -> None:
        """The attention computes its own softmax."""
        tap_projections(module)

    def sites(self) -> list[Site]:
        """The input of the blocks, each block, and the final norm."""
        width, blocks = self.settings.hidden_size, self.layers(BLOCKS)
        sites = [self.joint_site("embedding", "network.vilt.embeddings", "embedding", 0, width)]
        for k, path in enumerate(blocks):
            attention = f"{path}.attention.attention"
            sites.append(self.joint_site(f"block.{k}", path, "block", k, width, attention_path=attention))
        return [*sites, self.joint_site("norm", "network.vilt.layernorm", "norm", len(blocks), width)]

    def forward(self, batch: Batch) -> HeatmapOutput:
        """Every candidate with its caption."""
        candidates, pixels = self.take(batch)
        modules = [self.get_submodule(f"{path}.attention.attention") for path in self.layers(BLOCKS)]
        with mean_attention(modules) as attention:
            match = self.match(pixels, batch.input_ids[candidates.example], batch.text_mask[candidates.example])
        looks = attention()[:, : batch.input_ids.shape[1]]
        return self.maps(batch, candidates, match, attended_places(batch, candidates, looks, slice(-self.cells, None)))

    def match(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Retrieval scores ``[M]`` of captions ``[M, T]`` with images ``[M, 3, S, S]``."""
        image = self.embed(pixels)
        return self.network(
            input_ids=ids,
            attention_mask=mask.long(),
            image_embeds=image,
            pixel_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
        ).logits[:, 0]

    def embed(self, pixels: Tensor) -> Tensor:
        """The class token and the patches in raster order, with their positions: ``[M, 1 + cells, D]``."""
        embeddings = self.network.vilt.embeddings
        patches = embeddings.patch_embeddings(pixels).flatten(2).transpose(1, 2)
        classes = embeddings.cls_token.expand(len(patches), -1, -1)
        return embeddings.dropout(torch.cat([classes, patches], dim=1) + embeddings.position_embeddings)


BLOCKS = "network.vilt.encoder.layer"
