"""Grounding DINO (Liu et al. 2023, arXiv 2303.05499) and MM-Grounding-DINO (Zhao et al. 2024, arXiv 2401.02361).

The caption is the prompt; a box's logit for a phrase is the highest over the phrase's tokens, as these detectors are
used. The image tokens are those of the finest feature level; coarser levels are not on the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grounding.models.attention import AttentionTaps
from grounding.models.base import Batch, Site
from grounding.models.hf.attention import attach_taps
from grounding.models.hf.base import crossed
from grounding.models.hf.boxes import BoxModel, BoxOutput
from grounding.models.hf.prompts import PromptTokenizer
from grounding.models.text import CaptionTokenizer


class GroundingDino(BoxModel):
    """``GroundingDinoForObjectDetection``.

    Sites ``text.k``, ``backbone``, ``encoder.text.k``, ``encoder.image.k`` and ``decoder.k``. The attention of
    ``encoder.text.k`` is that of words to the image, in the fusion before it; it can be read and not be patched. The
    decoder samples a few points of the image for each query, so its sites have no attention.
    """

    architecture = "GroundingDinoForObjectDetection"

    @staticmethod
    def image_size(settings: Any, size: int | None) -> tuple[int, int]:
        """The image processor's shortest edge; the stride of the finest level is the patch, doubled at each stage."""
        backbone = settings.backbone_config
        side = size or backbone.image_size
        return side, side // (backbone.patch_size * 2 ** (min(backbone.out_indices) - 1))

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Tokens that a box has logits for."""
        return min(settings.max_text_len, settings.text_config.max_position_embeddings)

    def reading(self, tokenizer: CaptionTokenizer) -> CaptionTokenizer:
        """A "." ends every caption: without one, words see each other only where their caption is padded."""
        return PromptTokenizer(tokenizer, after=".")

    @staticmethod
    def tap(module: Any) -> None:
        """The fusion computes two attentions from one product; the text encoder is BERT."""
        (tap_fusion if hasattr(module, "vision_proj") else attach_taps)(module)

    def sites(self) -> list[Site]:
        """The text encoder, the finest features, the fusing encoder, and the decoder's queries."""
        width, model = self.settings.d_model, "network.model"
        encoder, decoder = self.layers(f"{model}.encoder.layers"), self.layers(f"{model}.decoder.layers")
        last = len(encoder) - 1
        read: Any = {"rows": "candidates", "region_partner": f"encoder.image.{last}"}
        see: Any = {"phrase_partner": f"encoder.text.{last}"}
        looks: Any = {"to_attention": self.own_attention(slice(0, self.cells)), "attention_layout": crossed}
        sites = []
        for k, path in enumerate(self.layers(f"{model}.text_backbone.encoder.layer")):
            attention, text = f"{path}.attention.self", self.settings.text_config.hidden_size
            sites.append(self.text_site(f"text.{k}", path, "text", k, text, attention_path=attention, **read))
        backbone = f"{model}.input_proj_vision.0"
        sites.append(self.map_site("backbone", backbone, "backbone", 0, width, **see))
        for k, path in enumerate(encoder):
            attention, stage = f"{path}.fusion_layer.attn", "encoder.text"
            text_site = self.text_site(
                f"{stage}.{k}", f"{path}.text_enhancer_layer", stage, k, width, attention_path=attention,
                **read, **looks,
            )  # fmt: skip
            stage = "encoder.image"
            sites += [
                text_site, self.image_site(f"{stage}.{k}", f"{path}.deformable_layer", stage, k, width, **see)
            ]  # fmt: skip
        count = self.settings.num_queries
        return sites + [
            self.query_site(f"decoder.{k}", path, "decoder", k, width, count, **see) for k, path in enumerate(decoder)
        ]

    def forward(self, batch: Batch) -> BoxOutput:
        """Every candidate with its caption."""
        candidates, pixels = self.take(batch)
        found = self.network(
            pixel_values=pixels,
            input_ids=batch.input_ids[candidates.example],
            attention_mask=batch.text_mask[candidates.example].long(),
        )
        tokens = batch.input_ids.shape[1]
        asked = torch.cat([batch.phrase_tokens, batch.caption_tokens])
        logits = self.best_of(batch, candidates, found.logits[..., :tokens], asked)
        return self.answers(batch, candidates, found.pred_boxes, logits)


class MMGroundingDino(GroundingDino):
    """``MMGroundingDinoForObjectDetection``: the same, with a bias and a scale in the logits."""

    architecture = "MMGroundingDinoForObjectDetection"


def tap_fusion(module: Any) -> None:
    """Show the text-to-image attention of a fusion layer: queries and keys of its own projections pass through taps.

    Images fill their squares, so that no key is masked.
    """
    module.add_module("taps", AttentionTaps(module.num_heads, followed=False))
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(projection: Any, inputs: Any, output: Tensor) -> None:
            seen[name] = output.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

        return hook

    def show(fusion: Any, inputs: Any, output: Any) -> None:
        module.taps.query(seen.pop("query"))
        module.taps.key(seen.pop("key"))
        module.taps.bias(None)

    module.text_proj.register_forward_hook(keep("query"))
    module.vision_proj.register_forward_hook(keep("key"))
    module.register_forward_hook(show)
