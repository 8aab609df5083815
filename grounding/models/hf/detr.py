"""DETR (Carion et al. 2020, arXiv 2005.12872) and its kin, which detect a fixed list of labels and read no text.

A phrase is asked for through the labels that occur in it as words ("a small dog" asks for ``dog``): each query's logit
for it is that of the likeliest of them. A phrase with no label in it has no boxes, and an example whose task words have
none has no answer. Text has no states: probes of these models read regions only.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.boxes import BoxModel, BoxOutput
from grounding.models.hf.candidate_attention import stacked_attention
from grounding.models.hf.captions import asked_texts


class Detr(BoxModel):
    """``DetrForObjectDetection``; sites ``backbone`` (projected), ``encoder.k`` and ``decoder.k`` with cross-attention.

    The image tokens are those of the feature map that the encoder reads.
    """

    architecture = "DetrForObjectDetection"
    reads_text = False
    answers_all = False
    no_object = True  # the last class; without one, classes are independent of each other
    projection = "input_projection"
    cross_attention: str | None = "encoder_attn"

    @classmethod
    def image_size(cls, settings: Any, size: int | None) -> tuple[int, int]:
        """The image processor's shortest edge; convolutions round up."""
        side = size or 800
        return side, -(-side // cls.stride(settings))

    @staticmethod
    def stride(settings: Any) -> int:
        """Pixels along the side of an image token: the last stage keeps the resolution where it is dilated."""
        return 16 if settings.dilation else 32

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Words are read by no weight: as many as MDETR reads tokens."""
        return 256

    @staticmethod
    def query_count(settings: Any) -> int:
        """Queries of an image."""
        return settings.num_queries

    def sites(self) -> list[Site]:
        """The projected features, the encoder, and the decoder's queries."""
        width, sites = self.settings.d_model, [self.feature_site("backbone", self.projection)]
        for k, path in enumerate(self.layers("network.model.encoder.layers")):
            sites.append(self.image_site(f"encoder.{k}", path, "encoder", k, width))
        return sites + self.decoder_sites()

    def feature_site(self, name: str, path: str) -> Site:
        """Projected features, a module of the model's."""
        return self.map_site(name, f"network.model.{path}", name, 0, self.settings.d_model)

    def decoder_sites(self) -> list[Site]:
        """The decoder's layers, each with its cross-attention if it has weights to read."""
        count, sites = self.query_count(self.settings), []
        for k, path in enumerate(self.layers("network.model.decoder.layers")):
            looks: dict[str, Any] = {}
            if self.cross_attention:
                looks = {"attention_path": f"{path}.{self.cross_attention}", "to_attention": self._stacked_attention}
            sites.append(self.query_site(f"decoder.{k}", path, "decoder", k, self.settings.d_model, count, **looks))
        return sites

    def _stacked_attention(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return stacked_attention(self.candidates, query, key, bias, slice(0, self.cells))

    def forward(self, batch: Batch) -> BoxOutput:
        """Every candidate; then the labels that are asked for."""
        candidates, pixels = self.take(batch)
        found = self.network(pixel_values=pixels)
        logits = found.logits  # [M, Q, labels]
        if self.no_object:
            logits = torch.logit(logits.softmax(-1)[..., :-1], eps=1e-6)
        asked = self.labels_asked(batch, logits.shape[-1]).to(logits.device)
        return self.answers(batch, candidates, found.pred_boxes, self.best_of(batch, candidates, logits, asked))

    def labels_asked(self, batch: Batch, count: int) -> Tensor:
        """Which labels occur in each phrase, then in each example's task words: bool ``[P + B, count]``."""
        texts = asked_texts(batch)
        labels = [re.compile(rf"(?<!\w){re.escape(self.settings.id2label[k])}(?!\w)", re.I) for k in range(count)]
        found = [[label.search(text) is not None for label in labels] for text in texts]
        return torch.tensor(found, dtype=torch.bool).view(len(texts), count)


class ConditionalDetr(Detr):
    """``ConditionalDetrForObjectDetection`` (Meng et al. 2021, arXiv 2108.06152)."""

    architecture = "ConditionalDetrForObjectDetection"
    no_object = False


class DeformableDetr(Detr):
    """``DeformableDetrForObjectDetection`` (Zhu et al. 2021, arXiv 2010.04159); tokens of the finest feature level.

    Its attention samples a few points of the image for each query: there are no weights over patches to read.
    """

    architecture = "DeformableDetrForObjectDetection"
    no_object = False
    projection = "input_proj.0"
    cross_attention = None

    @staticmethod
    def stride(settings: Any) -> int:
        """That of the first level: the second stage of the backbone, or its last where there is one level."""
        if settings.num_feature_levels > 1:
            return 8
        return Detr.stride(settings)

    @staticmethod
    def query_count(settings: Any) -> int:
        """Queries of an image: proposals where the encoder makes them."""
        return settings.two_stage_num_proposals if settings.two_stage else settings.num_queries


class RtDetr(Detr):
    """``RTDetrForObjectDetection`` (Zhao et al. 2024, arXiv 2304.08069); tokens of the finest feature level.

    Sites ``backbone`` (projected), ``fused`` (after the hybrid encoder, as the decoder reads it) and ``decoder.k``. The
    encoder's attention runs over its coarsest level only, and the decoder's samples points: neither is on the grid.
    """

    architecture = "RTDetrForObjectDetection"
    no_object = False
    projection = "encoder_input_proj.0"
    cross_attention = None

    @staticmethod
    def stride(settings: Any) -> int:
        """That of the first feature level."""
        return settings.feat_strides[0]

    def sites(self) -> list[Site]:
        """The finest features before and after the encoder, and the decoder's queries."""
        sites = [self.feature_site("backbone", self.projection), self.feature_site("fused", "decoder_input_proj.0")]
        return sites + self.decoder_sites()
