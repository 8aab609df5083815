"""LLaVA 1.5 (Liu et al. 2023, arXiv 2310.03744): patches of CLIP or SigLIP, projected into a language model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.models.base import Site
from grounding.models.hf.interleaved import InterleavedModel
from grounding.models.layouts import first

TOWER = "network.model.vision_tower"
CLASSES = {("clip_vision_model", "default"): 1, ("siglip_vision_model", "full"): 0}


class Llava(InterleavedModel):
    """``LlavaForConditionalGeneration``; sites ``vision.*`` up to the last layer that is used, and ``connector``.

    The connector is the projection of the patches.
    """

    architecture = "LlavaForConditionalGeneration"
    prompt = "USER: <image>\nDescribe this image. ASSISTANT: "
    adds_special = True

    def vision_sites(self) -> list[Site]:
        """Layers after the last one that is used are left out."""
        sites = self.tower_sites(TOWER, self.last_block, layers=max(self.used_layers), skip=self.classes)
        return [*sites, self.connector_site("network.model.multi_modal_projector")]

    @property
    def classes(self) -> int:
        """Class tokens before the patches. Raises BadInput for another encoder or kind of feature."""
        kind, strategy = self.settings.vision_config.model_type, self.settings.vision_feature_select_strategy
        if (kind, strategy) not in CLASSES:
            raise BadInput(
                f"LLaVA with vision_config {kind!r} and vision_feature_select_strategy {strategy!r}; accepted: "
                f"{' or '.join(map(str, CLASSES))}"
            )
        return CLASSES[kind, strategy]

    @property
    def used_layers(self) -> list[int]:
        """How many layers of the encoder there are up to each whose output the connector reads. Raises BadInput."""
        layers, chosen = self.settings.vision_config.num_hidden_layers, self.settings.vision_feature_layer
        used = [k if k >= 0 else layers + 1 + k for k in ([chosen] if isinstance(chosen, int) else chosen)]
        if not all(1 <= k <= layers for k in used):
            raise BadInput(f"LLaVA with vision_feature_layer {chosen}; accepted: outputs of its {layers} layers")
        return used

    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Any]:
        """The embeddings. transformers would take a layer's states as they were before any hook that replaces them."""
        model = self.network.model
        seen: dict[int, Tensor] = {}
        handles = [
            model.vision_tower.encoder.layers[k - 1].register_forward_hook(partial(_keep, seen, k))
            for k in self.used_layers
        ]
        try:
            model.vision_tower(pixels)
        finally:
            for handle in handles:
                handle.remove()
        patches = torch.cat([seen[k][:, self.classes :] for k in self.used_layers], dim=-1)
        embeddings = self.network.get_input_embeddings()(tokens)
        image = (tokens == self.settings.image_token_id)[..., None]
        return {"inputs_embeds": embeddings.masked_scatter(image, model.multi_modal_projector(patches))}


def _keep(seen: dict[int, Tensor], key: int, module: Any, inputs: Any, output: Any) -> None:
    seen[key] = first(output)
