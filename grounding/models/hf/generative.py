"""What adapters of models that write text share: a fixed prompt, the likelihood of a caption, and a map of attention.

Such a model predicts the next token and nothing else. The caption is put where its answer to the prompt would be. A
game is answered by the candidate under which the caption is likeliest: the sum of the log-probabilities of its tokens,
so that the softmax over candidates is their posterior under a uniform prior. (The caption is the same for all
candidates, so that the mean would choose the same one.) A phrase's place is where its tokens look, by the mean over all
heads and all layers whose text looks at the image, within each candidate: no part of the model was trained to show it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from grounding.models.base import Batch, Site
from grounding.models.hf.config import HfConfig
from grounding.models.hf.heatmaps import HeatmapModel
from grounding.models.hf.prompts import ImagePromptTokenizer
from grounding.models.text import CaptionTokenizer


class GenerativeModel(HeatmapModel):
    """Base of them. prompt: what the caption answers, with ``image_token`` in it; others: ``ImagePromptTokenizer``."""

    prompt: ClassVar[str]
    image_token: ClassVar[str] = "<image>"
    whole: ClassVar[bool] = False
    adds_special: ClassVar[bool] = False

    def __init__(self, config: HfConfig, tokenizer: CaptionTokenizer | None, network: Any = None):
        prompted = None
        if tokenizer is not None:
            prompted = ImagePromptTokenizer(
                tokenizer, self.prompt, self.image_token, whole=self.whole, adds_special=self.adds_special
            )
        super().__init__(config, prompted, network)

    def tower_sites(self, path: str, partner: str, *, layers: int, skip: int, norm: str | None = None) -> list[Site]:
        """Sites of an image encoder in CLIP's form, ``vision.embedding`` and ``vision.k`` (and ``vision.norm``).

        partner: the site of the phrases. layers: how many of its layers are used. skip: class tokens.
        """
        width = self.settings.vision_config.hidden_size
        see: Any = {"skip": skip, "phrase_partner": partner}
        sites = [self.image_site("vision.embedding", f"{path}.embeddings", "vision-embedding", 0, width, **see)]
        for k, layer in enumerate(self.layers(f"{path}.encoder.layers")[:layers]):
            attention = f"{layer}.self_attn"
            sites.append(self.image_site(f"vision.{k}", layer, "vision", k, width, attention_path=attention, **see))
        if norm is not None:
            sites.append(self.image_site("vision.norm", f"{path}.{norm}", "vision-norm", layers, width, **see))
        return sites


def caption_tokens(batch: Batch) -> Tensor:
    """bool ``[B, T]``: the tokens that cover characters of the caption, whose likelihood counts."""
    return batch.text_mask & (batch.offsets[..., 0] < batch.offsets[..., 1])


def log_likelihood(logits: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
    """Summed log-probability ``[M]`` of tokens ``[M, K]`` where ``counted``; logits: ``[M, K, V]``, each its own."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), ids.masked_fill(~counted, 0).flatten(), reduction="none"
    )
    return -(losses.view_as(ids) * counted).sum(1)


def earlier(tokens: int, begin: int, device: torch.device) -> Tensor:
    """Positions whose logits predict the tokens from ``begin`` on."""
    return torch.arange(begin - 1, tokens - 1, device=device)
