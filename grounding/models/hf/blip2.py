"""BLIP-2 with its image-text matching head (Li et al. 2023, arXiv 2301.12597): queries look at the image for the text.

Text and queries share the Q-Former's self-attention, and the queries alone look at the image. The head's log-odds of a
match answer a game. A phrase's place is where the queries look that its tokens look at: self-attention from its tokens
to the queries, times the queries' cross-attention in the layer before, by the mean over all heads and those layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grounding.models.base import Batch, Site, TokenLayout
from grounding.models.hf.attention import head_means
from grounding.models.hf.candidate_attention import stacked_attention
from grounding.models.hf.config import HfConfig
from grounding.models.hf.heatmaps import HeatmapModel, HeatmapOutput, asked_tokens, attended_places
from grounding.models.layouts import first
from grounding.models.text import CaptionTokenizer

LAYERS = "network.qformer.encoder.layer"
SELF, CROSS = ".attention.attention", ".crossattention.attention"


@dataclass
class Blip2Output(HeatmapOutput):
    """phrase_query: int64 ``[P]``, the query that a phrase's tokens look at most, of the image it is annotated in."""

    phrase_query: Tensor


class Blip2Matching(HeatmapModel):
    """``Blip2ForImageTextRetrieval``; sites ``vision.embedding``, ``vision.k``, ``qformer.embedding``, ``qformer.k``.

    The Q-Former's sites hold text and each candidate's queries, which have no boxes. The attention of ``qformer.k`` is
    its cross-attention where it has one, and a phrase's is that of its query. The image encoder's final norm is no
    site: the model runs it twice.
    """

    architecture = "Blip2ForImageTextRetrieval"

    def __init__(self, config: HfConfig, tokenizer: CaptionTokenizer | None, network: Any = None):
        super().__init__(config, tokenizer, network)
        for path in self.layers(LAYERS):
            self.tap(self.get_submodule(path + SELF))

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Length of the table of text positions."""
        return settings.qformer_config.max_position_embeddings

    @staticmethod
    def vocabulary(settings: Any) -> int:
        """The Q-Former's; the mark that stands for the image in newer tokenizers is never read."""
        return settings.qformer_config.vocab_size + (settings.image_token_index is not None)

    def sites(self) -> list[Site]:
        """The image encoder, then the Q-Former."""
        vision, width = self.settings.vision_config.hidden_size, self.settings.qformer_config.hidden_size
        images, layers = self.layers("network.vision_model.encoder.layers"), self.layers(LAYERS)
        see: Any = {"skip": 1, "phrase_partner": f"qformer.{len(layers) - 1}"}
        embedding = "network.vision_model.embeddings"
        sites = [self.image_site("vision.embedding", embedding, "vision-embedding", 0, vision, **see)]
        for k, path in enumerate(images):
            attention = f"{path}.self_attn"
            sites.append(self.image_site(f"vision.{k}", path, "vision", k, vision, attention_path=attention, **see))
        places = [("qformer.embedding", "network.qformer.layernorm", "qformer-embedding", 0)]
        places += [(f"qformer.{k}", path, "qformer", k) for k, path in enumerate(layers)]
        for name, path, stage, k in places:
            looks: dict[str, Any] = {}
            if path in self.crossed:
                looks = {"attention_path": path + CROSS, "to_attention": self._stacked_attention}
            sites.append(
                Site(
                    name, path, stage, k, ("text", "query"), width, self._text_then_queries, self._to_tokens,
                    region_partner=f"vision.{len(images) - 1}", query_boxes=False, **looks,
                )
            )  # fmt: skip
        return sites

    @property
    def crossed(self) -> list[str]:
        """Paths of the Q-Former's layers with cross-attention."""
        return [path for path in self.layers(LAYERS) if self.get_submodule(path).has_cross_attention]

    def forward(self, batch: Batch) -> Blip2Output:
        """Every candidate with its caption."""
        candidates, pixels = self.take(batch)
        paths = self.layers(LAYERS)
        looking = [k for k, path in enumerate(paths[:-1]) if path in self.crossed]  # a layer later, text sees them
        modules = [self.get_submodule(paths[k] + CROSS) for k in looking]
        modules += [self.get_submodule(paths[k + 1] + SELF) for k in looking]
        with head_means(modules) as attention:
            match = self.match(pixels, batch.input_ids[candidates.example], batch.text_mask[candidates.example])
        count, weights = self.settings.num_query_tokens, attention()
        read = [reading[:, count:, :count] for reading in weights[len(looking) :]]  # [M, T, queries]
        looks = sum(text @ look for text, look in zip(read, weights, strict=False))
        places = attended_places(batch, candidates, looks, slice(1, None))  # type: ignore[arg-type]
        own = candidates.own[batch.phrase_example]
        words = asked_tokens(batch)[: len(own), None]
        query = (words @ sum(read)[own])[:, 0].argmax(-1)  # type: ignore[index]
        query = query + count * candidates.own_place[batch.phrase_example]
        return Blip2Output(**vars(self.maps(batch, candidates, match, places)), phrase_query=query)

    def match(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Log-odds ``[M]`` that captions ``[M, T]`` fit images ``[M, 3, S, S]``."""
        image = self.network.vision_model(pixel_values=pixels).last_hidden_state
        queries = self.network.query_tokens.expand(len(image), -1, -1)
        count = queries.shape[1]
        states = self.network.qformer(
            query_embeds=self.network.embeddings(input_ids=ids, query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1).long(),
            encoder_hidden_states=image,
        ).last_hidden_state
        logits = self.network.itm_head(states[:, :count]).mean(1)
        return logits[:, 1] - logits[:, 0]

    def _to_tokens(self, output: Any) -> Tensor:
        states, count = first(output), self.settings.num_query_tokens
        queries = self.candidates.stack(states[:, :count]).flatten(1, 2)
        return torch.cat([states[self.candidates.own, count:], queries], dim=1)

    def _text_then_queries(self, batch: Batch) -> TokenLayout:
        tokens, images = batch.input_ids.shape[1], batch.images.shape[-2] // self.preprocessor.candidate_size
        end = tokens + images * self.settings.num_query_tokens
        return TokenLayout(text=slice(0, tokens), query=slice(tokens, end))

    def _stacked_attention(self, query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return stacked_attention(self.candidates, query, key, bias, slice(1, 1 + self.cells))
