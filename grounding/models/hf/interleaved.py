"""Models that read image tokens among text tokens, as LLaVA, PaliGemma and Qwen-VL do.

A pass over one image is: the prompt up to the image, the image tokens in raster order, the rest of the prompt, the
caption, padding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.attention import mean_attention
from grounding.models.hf.base import crossed, text_then_image
from grounding.models.hf.generative import GenerativeModel, caption_tokens, earlier, log_likelihood
from grounding.models.hf.heatmaps import HeatmapOutput, attended_places
from grounding.models.layouts import first


class InterleavedModel(GenerativeModel):
    """Sites of the image encoder and the connector, then ``block.k`` and ``norm`` of the language model.

    A block holds the text tokens, the prompt's among them, and the image tokens. language: path of the language model.
    """

    language: ClassVar[str] = "network.model.language_model"

    @classmethod
    def text_limit(cls, settings: Any) -> int:  # type: ignore[override]
        """Positions of the language model that the image leaves, prompt included."""
        return settings.text_config.max_position_embeddings - cls.image_size(settings, None)[1] ** 2

    @abstractmethod
    def vision_sites(self) -> list[Site]:
        """Those of the image encoder and the connector."""

    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Any]:
        """What the network takes of tokens ``[M, T + L]`` and pixel values ``[M, 3, S, S]``."""
        return {"input_ids": tokens, "pixel_values": pixels}

    def sites(self) -> list[Site]:
        """In order of computation."""
        width, layers = self.settings.text_config.hidden_size, self.layers(f"{self.language}.layers")
        sites = self.vision_sites()
        for k, path in enumerate(layers):
            sites.append(self.block_site(f"block.{k}", path, "block", k, width, attention_path=f"{path}.self_attn"))
        return [*sites, self.block_site("norm", f"{self.language}.norm", "norm", len(layers), width)]

    def connector_site(self, path: str) -> Site:
        """What the language model reads of each image token."""
        width = self.settings.text_config.hidden_size
        return self.image_site("connector", path, "connector", 0, width, phrase_partner=self.last_block)

    @property
    def last_block(self) -> str:
        """The site that supplies phrases to those of the image encoder."""
        return f"block.{len(self.layers(f'{self.language}.layers')) - 1}"

    @property
    def image_place(self) -> slice:
        """The image tokens among those of the latest pass."""
        before = self.preprocessor.tokenizer.before  # type: ignore[attr-defined]
        return slice(before, before + self.candidates.seen.shape[1])

    def weave(self, text: Tensor, image: Tensor) -> Tensor:
        """Text ``[M, T]`` and image tokens ``[M, L]`` in the order of a pass ``[M, T + L]``."""
        before = self.image_place.start
        return torch.cat([text[:, :before], image, text[:, before:]], dim=1)

    def text_rows(self, tokens: int) -> Tensor:
        """Positions ``[T]`` of the text among the ``tokens`` of a pass."""
        place = self.image_place
        positions = torch.arange(tokens, device=self.device)
        return torch.cat([positions[: place.start], positions[place.stop :]])

    def block_site(self, name: str, path: str, stage: str, layer: int, width: int, **others: Any) -> Site:
        """A site of the language model: states ``[M, T + L, D]``."""

        def to_tokens(output: Any) -> Tensor:
            states, candidates = first(output), self.candidates
            text = states[candidates.own][:, self.text_rows(states.shape[1])]
            return torch.cat([text, candidates.on_canvas(states[:, self.image_place])], dim=1)

        def to_attention(query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            rows = self.text_rows(query.shape[2])
            if bias is not None and bias.shape[2] > 1:
                bias = bias[:, :, rows]
            return self.own_attention(self.image_place)(query[:, :, rows], key, bias)

        looks: Any = {"to_attention": to_attention, "attention_layout": crossed}
        return Site(name, path, stage, layer, ("text", "image"), width, text_then_image, to_tokens, **looks, **others)

    def forward(self, batch: Batch) -> HeatmapOutput:
        """Every candidate with its caption."""
        candidates, pixels = self.take(batch)
        ids, counted = batch.input_ids[candidates.example], caption_tokens(batch)[candidates.example]
        image = torch.full_like(candidates.seen, self.settings.image_token_id, dtype=torch.long)
        tokens = self.weave(ids, image.masked_fill(~candidates.seen, self.preprocessor.tokenizer.pad_id))
        begin = self.image_place.stop
        modules = [self.get_submodule(f"{path}.self_attn") for path in self.layers(f"{self.language}.layers")]
        with mean_attention(modules, self.text_rows(tokens.shape[1])) as attention:
            logits = self.network(
                attention_mask=self.weave(batch.text_mask[candidates.example], candidates.seen).long(),
                use_cache=False,
                logits_to_keep=earlier(tokens.shape[1], begin, tokens.device),
                **self.token_types(self.weave(counted, torch.zeros_like(candidates.seen))),
                **self.inputs(tokens, pixels),
            ).logits
        asked = slice(self.image_place.start, None)
        match = log_likelihood(logits, ids[:, asked], counted[:, asked])
        return self.maps(batch, candidates, match, attended_places(batch, candidates, attention(), self.image_place))

    def token_types(self, caption: Tensor) -> dict[str, Tensor]:
        """What the network takes to tell kinds of tokens apart; ``caption``: bool ``[M, T + L]``."""
        return {}
