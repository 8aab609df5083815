"""IDEFICS (Laurencon et al. 2023, arXiv 2306.16527), the open Flamingo (Alayrac et al. 2022, arXiv 2204.14198).

Images are not among the tokens: gated layers in front of some layers of the language model look at them. The released
checkpoints squeeze an image into latents first, which have no place in it; there, what the words look at is followed
back through the latents to the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.attention import mean_attention
from grounding.models.hf.base import crossed
from grounding.models.hf.config import HfConfig
from grounding.models.hf.generative import GenerativeModel, caption_tokens, earlier, log_likelihood
from grounding.models.hf.heatmaps import HeatmapOutput, attended_places
from grounding.models.text import CaptionTokenizer

MODEL = "network.model"


class Idefics(GenerativeModel):
    """``IdeficsForVisionText2Text``; sites ``vision.*``, then ``cross.k`` and ``text.k`` as they come, and ``norm``.

    ``cross.k`` are the gated layers; the attention of their words to patches can be read where there are no latents.
    Latents are no site, since they stand for no place. A phrase's map is the mean over heads of the gated layers'
    attention, times, with latents, the mean over heads and layers of the latents' attention to patches.
    """

    architecture = "IdeficsForVisionText2Text"
    prompt = "<s>User:<fake_token_around_image><image><fake_token_around_image>Describe this image.\nAssistant: "
    whole = True

    def __init__(self, config: HfConfig, tokenizer: CaptionTokenizer | None, network: Any = None):
        super().__init__(config, tokenizer, network)
        for module in self.gated_attention():
            if not hasattr(module, "taps"):
                self.tap(module)

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Positions of the language model, prompt included."""
        return settings.max_position_embeddings

    @property
    def patches(self) -> slice:
        """The patches among an image's tokens."""
        return slice(1, 1 + self.cells)

    def sites(self) -> list[Site]:
        """In order of computation."""
        width, latents = self.settings.hidden_size, self.settings.use_resampler
        texts, crosses = self.layers(f"{MODEL}.layers"), self.layers(f"{MODEL}.gated_cross_attn_layers")
        vision = self.settings.vision_config.num_hidden_layers
        sites = self.tower_sites(f"{MODEL}.vision_model", f"text.{len(texts) - 1}", layers=vision, skip=1)
        read: Any = {"rows": "candidates", "region_partner": f"vision.{vision - 1}"}
        looks: Any = {"to_attention": self.own_attention(self.patches), "attention_layout": crossed}
        interval = self.settings.cross_layer_interval
        for k, path in enumerate(texts):
            if k % interval == 0:
                gated = crosses[k // interval]
                seeing = {} if latents else {"attention_path": f"{gated}.cross_attn", **looks}
                sites.append(
                    self.text_site(f"cross.{k // interval}", gated, "cross", k // interval, width, **read, **seeing)
                )
            sites.append(self.text_site(f"text.{k}", path, "text", k, width, **read))
        return [*sites, self.text_site("norm", f"{MODEL}.norm", "norm", len(texts), width, **read)]

    def forward(self, batch: Batch) -> HeatmapOutput:
        """Every candidate with its caption."""
        candidates, pixels = self.take(batch)
        ids, counted = batch.input_ids[candidates.example], caption_tokens(batch)[candidates.example]
        image_id = self.preprocessor.tokenizer.image_id  # type: ignore[attr-defined]
        blocks = self.network.model.perceiver_resampler.blocks if self.settings.use_resampler else []
        with (
            mean_attention(self.gated_attention()) as attention,
            latent_attention([block[0] for block in blocks]) as resampled,
        ):
            logits = self.network(
                input_ids=ids,
                attention_mask=batch.text_mask[candidates.example].long(),
                pixel_values=pixels[:, None],
                image_attention_mask=((ids == image_id).cumsum(1) > 0).long()[..., None],
                use_cache=False,
                logits_to_keep=earlier(ids.shape[1], 1, ids.device),
            ).logits
        looks = attention()
        if blocks:
            looks = looks @ resampled()[..., : 1 + self.cells]
        match = log_likelihood(logits, ids[:, 1:], counted[:, 1:])
        return self.maps(batch, candidates, match, attended_places(batch, candidates, looks, self.patches))

    def gated_attention(self) -> list[Any]:
        """The attention to images, layer by layer."""
        return [self.get_submodule(f"{path}.cross_attn") for path in self.layers(f"{MODEL}.gated_cross_attn_layers")]


@contextmanager
def latent_attention(modules: Sequence[Any]) -> Iterator[Callable[[], Tensor]]:
    """Inside it, one forward pass; then the resampler's mean weights ``[M, latents, tokens + latents]``."""
    seen: dict[str, Tensor] = {}
    sums: list[Tensor] = []

    def keep(name: str, module: Any) -> Callable[..., None]:
        def hook(projection: Any, inputs: Any, output: Tensor) -> None:
            seen[name] = output if module.qk_layer_norms else output.unflatten(-1, (module.n_heads, -1)).transpose(1, 2)

        return hook

    def add(module: Any, inputs: Any, output: Any) -> None:
        logits = seen.pop("query").float() @ seen.pop("key").float().transpose(-1, -2)
        sums.append((module.qk_scale * logits).softmax(-1).mean(1))

    handles = []
    for module in modules:
        normed = module.qk_layer_norms
        query, key = (module.q_layer_norm, module.k_layer_norm) if normed else (module.q_proj, module.k_proj)
        handles += [query.register_forward_hook(keep("query", module)), key.register_forward_hook(keep("key", module))]
        handles.append(module.register_forward_hook(add))
    try:
        yield lambda: torch.stack(sums).mean(0)
    finally:
        for handle in handles:
            handle.remove()
