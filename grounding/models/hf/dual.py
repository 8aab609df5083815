"""Dual encoders: CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP 1 and 2 (arXiv 2303.15343, 2502.14786).

Text and image meet only in one dot product. A phrase's place is where patches resemble it: each patch goes the way that
the pooled image goes, and is compared with the phrase read as a caption of its own (the only text state that these
models are trained to compare).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grounding.models.base import Batch, Site
from grounding.models.hf.captions import lower_cased
from grounding.models.hf.heatmaps import HeatmapModel, HeatmapOutput
from grounding.models.text import CaptionTokenizer


class DualEncoder(HeatmapModel):
    """Sites ``text.embedding``, ``text.k``, ``text.norm``, ``vision.embedding``, ``vision.k`` (and ``vision.norm``)."""

    classes = 0  # tokens before the patches

    def sites(self) -> list[Site]:
        """Both encoders, layer by layer; text is paired with the last image site, images with the last text site."""
        text, vision = self.settings.text_config, self.settings.vision_config
        image_paths = self._stages("vision_model", "vision", "post_layernorm" if not self.classes else None)
        text_paths = self._stages("text_model", "text", "final_layer_norm")
        last_image, last_text = image_paths[-1][0], text_paths[-1][0]
        sites = [
            self.text_site(name, path, stage, k, text.hidden_size, region_partner=last_image, attention_path=attention)
            for name, path, stage, k, attention in text_paths
        ]
        return sites + [
            self.image_site(
                name,
                path,
                stage,
                k,
                vision.hidden_size,
                skip=self.classes,
                phrase_partner=last_text,
                attention_path=attention,
            )
            for name, path, stage, k, attention in image_paths
        ]

    def _stages(self, model: str, stage: str, norm: str | None) -> list[tuple[Any, ...]]:
        """(name, path, stage, layer, attention) of an encoder's embedding, layers and final norm."""
        path = f"network.{model}"
        layers = self.layers(f"{path}.encoder.layers")
        places: list[tuple[Any, ...]] = [(f"{stage}.embedding", f"{path}.embeddings", f"{stage}-embedding", 0, None)]
        places += [(f"{stage}.{k}", layer, stage, k, f"{layer}.self_attn") for k, layer in enumerate(layers)]
        if norm is not None:
            places.append((f"{stage}.norm", f"{path}.{norm}", f"{stage}-norm", len(layers), None))
        return places

    def forward(self, batch: Batch) -> HeatmapOutput:
        """Both encoders once: captions and phrases in one pass, all candidates in another."""
        candidates, pixels = self.take(batch)
        ids, mask = with_phrases_alone(batch, self.preprocessor.tokenizer.pad_id)  # type: ignore[union-attr]
        text = functional.normalize(self.encode_text(ids, mask), dim=-1)
        image, patches = self.encode_image(pixels)
        image, patches = functional.normalize(image, dim=-1), functional.normalize(patches, dim=-1)
        scale = self.network.logit_scale.exp()
        match = scale * (text[candidates.example] * image).sum(-1) + self.bias()
        asked = torch.cat([text[len(batch) :], text[: len(batch)]])  # phrases, then captions
        owner = batch.asked_examples
        places = torch.einsum("ad,ancd->anc", asked, candidates.stack(patches)[owner])
        return self.maps(batch, candidates, match, (scale * places).log_softmax(-1))

    def bias(self) -> Any:
        """What is added to the scaled similarity."""
        return 0.0

    @abstractmethod
    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids ``[R, T]`` -> text embeddings ``[R, D]``."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel values ``[M, 3, S, S]`` -> image embeddings ``[M, D]``, and those of patches ``[M, cells, D]``."""


class Clip(DualEncoder):
    """``CLIPModel``."""

    architecture = "CLIPModel"
    classes = 1

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The state at the end-of-text token, projected."""
        return self.network.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The class token and the patches, each through the last norm and the projection."""
        vision = self.network.vision_model
        states = vision(pixel_values=pixels).last_hidden_state
        states = self.network.visual_projection(vision.post_layernorm(states))
        return states[:, 0], states[:, 1:]


class Siglip(DualEncoder):
    """``SiglipModel``: SigLIP, and the SigLIP 2 checkpoints of a fixed size. Captions are padded and never masked.

    Both were trained on captions in lower case, which the tokenizers that come with SigLIP 2 do not see to.
    """

    architecture = "SiglipModel"
    full_text = True

    def reading(self, tokenizer: CaptionTokenizer) -> CaptionTokenizer:
        """Captions in lower case."""
        return lower_cased(tokenizer)

    def bias(self) -> Tensor:
        """The learned bias; it cancels wherever candidates are compared."""
        return self.network.logit_bias

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The state at the last position, padding or not, as the model was trained."""
        return self.network.get_text_features(input_ids=ids).pooler_output

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The pooling head's output; each patch takes the way of a pooled image whose patches are all like it."""
        output = self.see(pixels)
        return output.pooler_output, self.pool_alone(output.last_hidden_state)

    def see(self, pixels: Tensor) -> Any:
        """The image encoder's output."""
        return self.network.vision_model(pixel_values=pixels)

    def pool_alone(self, patches: Tensor) -> Tensor:
        """The pooling head on every patch ``[M, cells, D]`` by itself: its attention has one place to look."""
        head = self.network.vision_model.head
        width = patches.shape[-1]
        value = functional.linear(
            patches, head.attention.in_proj_weight[2 * width :], head.attention.in_proj_bias[2 * width :]
        )
        states = head.attention.out_proj(value)
        return states + head.mlp(head.layernorm(states))


class Siglip2(Siglip):
    """``Siglip2Model`` of the NaFlex checkpoints: images come as patches, here those of one square."""

    architecture = "Siglip2Model"

    @staticmethod
    def image_size(settings: Any, size: int | None) -> tuple[int, int]:
        """The square that the position table was made for."""
        vision = settings.vision_config
        cells = int(vision.num_patches**0.5)
        return cells * vision.patch_size, cells

    def see(self, pixels: Tensor) -> Any:
        """Patches in raster order, pixels of a patch row by row and channels last."""
        patch, cells = self.settings.vision_config.patch_size, self.preprocessor.cells
        patches = pixels.unflatten(3, (cells, patch)).unflatten(2, (cells, patch))  # [M, 3, rows, p, columns, p]
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.network.vision_model(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
            spatial_shapes=torch.full((len(patches), 2), cells, device=patches.device),
        )


def with_phrases_alone(batch: Batch, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[B + P, T]``: the captions, then every phrase as a caption of its own tokens.

    A phrase keeps the special tokens around its caption (those that cover no character).
    """
    ids, mask = batch.input_ids[batch.phrase_example], batch.text_mask[batch.phrase_example]
    special = mask & (batch.offsets[batch.phrase_example, :, 0] == batch.offsets[batch.phrase_example, :, 1])
    kept = special | batch.phrase_tokens
    order = (~kept).int().argsort(dim=1, stable=True)  # kept tokens first, in their order
    alone_mask = kept.gather(1, order)
    alone = ids.gather(1, order).masked_fill(~alone_mask, pad_id)
    return torch.cat([batch.input_ids, alone]), torch.cat([batch.text_mask, alone_mask])
