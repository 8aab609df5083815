"""BLIP with its image-text matching head (Li et al. 2022, arXiv 2201.12086): the text encoder looks at the image.

The head's log-odds of a match answer a game. A phrase's place is where its tokens look, by the mean over all heads and
layers of the cross-attention: the model has no output for it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.attention import mean_attention, tap_fused, tap_projections
from grounding.models.hf.base import crossed
from grounding.models.hf.heatmaps import HeatmapModel, HeatmapOutput, attended_places


class BlipMatching(HeatmapModel):
    """``BlipForImageTextRetrieval``; sites ``vision.embedding``, ``vision.k``, ``text.embedding``, ``text.k``.

    Text runs once for each candidate; the attention of ``text.k`` is its cross-attention. The image encoder's final
    norm is no site: the model runs it twice.
    """

    architecture = "BlipForImageTextRetrieval"
    attention = "eager"

    @staticmethod
    def tap(module: Any) -> None:
        """Both kinds of attention compute their own softmax."""
        (tap_fused if hasattr(module, "qkv") else tap_projections)(module)

    def sites(self) -> list[Site]:
        """The image encoder, then the text encoder that looks at it."""
        text, vision = self.settings.text_config.hidden_size, self.settings.vision_config.hidden_size
        images, captions = self.layers("network.vision_model.encoder.layers"), self.layers(TEXT_LAYERS)
        last_image, last_text = f"vision.{len(images) - 1}", f"text.{len(captions) - 1}"
        see: Any = {"skip": 1, "phrase_partner": last_text}
        read: Any = {"rows": "candidates", "region_partner": last_image}
        looks: Any = {"to_attention": self.own_attention(self.patches), "attention_layout": crossed}
        sites = [
            self.image_site("vision.embedding", "network.vision_model.embeddings", "vision-embedding", 0, vision, **see)
        ]
        for k, path in enumerate(images):
            attention = f"{path}.self_attn"
            sites.append(self.image_site(f"vision.{k}", path, "vision", k, vision, attention_path=attention, **see))
        sites.append(
            self.text_site("text.embedding", "network.text_encoder.embeddings", "text-embedding", 0, text, **read)
        )
        for k, path in enumerate(captions):
            attention = f"{path}.crossattention.self"
            sites.append(
                self.text_site(f"text.{k}", path, "text", k, text, attention_path=attention, **read, **looks)
            )  # fmt: skip
        return sites

    @property
    def patches(self) -> slice:
        """The patches among an image's tokens."""
        return slice(1, 1 + self.cells)

    def forward(self, batch: Batch) -> HeatmapOutput:
        """Every candidate with its caption."""
        candidates, pixels = self.take(batch)
        modules = [self.get_submodule(f"{path}.crossattention.self") for path in self.layers(TEXT_LAYERS)]
        with mean_attention(modules) as attention:
            match = self.match(pixels, batch.input_ids[candidates.example], batch.text_mask[candidates.example])
        return self.maps(batch, candidates, match, attended_places(batch, candidates, attention(), self.patches))

    def match(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Log-odds ``[M]`` that captions ``[M, T]`` fit images ``[M, 3, S, S]``."""
        image = self.network.vision_model(pixel_values=pixels).last_hidden_state
        text = self.network.text_encoder(input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=image)
        logits = self.network.itm_head(text.last_hidden_state[:, 0])
        return logits[:, 1] - logits[:, 0]


TEXT_LAYERS = "network.text_encoder.encoder.layer"
