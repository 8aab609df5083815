"""Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631): images of any shape.

An image token is a cell of 2 x 2 patches, merged by the connector. In the image encoder a site's token is a cell too:
the states of its patches one after the other, row by row, which is what the connector reads.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from grounding.models.base import Batch, Site
from grounding.models.hf.interleaved import InterleavedModel
from grounding.models.hf.native import NativeCandidates, NativePreprocessor, native_size
from grounding.models.layouts import first, image_only
from grounding.models.text import CaptionTokenizer

SIDE = 16  # cells along a candidate's side where the processor does not say otherwise: ten of them are 2560 tokens
LEAST, MOST = 4, 1280  # cells of a single image where the processor tells no pixels, as transformers has it
VISUAL = "network.model.visual"


class Qwen25VL(InterleavedModel):
    """``Qwen2_5_VLForConditionalGeneration``; sites ``vision.embedding``, ``vision.k`` and ``connector``.

    Most layers of the image encoder attend within windows, whose cells come one window after the other: they are put
    back in raster order. These layers' attention runs once a window and is not read.
    """

    architecture = "Qwen2_5_VLForConditionalGeneration"
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|>Describe this image.<|im_end|>\n<|im_start|>assistant\n"
    )
    image_token = "<|image_pad|>"
    windows: ClassVar[bool] = True
    preprocessor: NativePreprocessor  # type: ignore[assignment]

    @staticmethod
    def image_size(settings: Any, size: int | None) -> tuple[int, int]:
        """Of a candidate, before the processor's limits."""
        vision = settings.vision_config
        return SIDE * vision.patch_size * vision.spatial_merge_size, SIDE

    def fitting_preprocessor(self, tokenizer: CaptionTokenizer | None) -> NativePreprocessor:
        """Limits of the checkpoint's processor, which are numbers of pixels in all, hold for candidates too."""
        side, cells = self.image_size(self.settings, None)
        cell = side // cells
        least = self.config.size or LEAST * cell**2
        most = self.config.longest or MOST * cell**2
        return NativePreprocessor(
            tokenizer,  # type: ignore[arg-type]
            candidate_size=native_size(side, side, cell, least, most)[0],
            multiple=cell,
            stride=cell,
            resample=Image.Resampling(self.config.resample),
            least=least,
            most=most,
        )

    def images_of(self, batch: Batch) -> NativeCandidates:
        """The images of a batch at their own sizes."""
        return NativeCandidates.of(batch, self.preprocessor.stride)

    def vision_sites(self) -> list[Site]:
        """Patches as they are embedded, each layer, and the merged patches."""
        vision = self.settings.vision_config
        each = vision.hidden_size * vision.spatial_merge_size**2
        sites = [self.packed_site("vision.embedding", f"{VISUAL}.patch_embed", "vision-embedding", 0, each)]
        for k, path in enumerate(self.layers(f"{VISUAL}.blocks")):
            sites.append(self.packed_site(f"vision.{k}", path, "vision", k, each, windowed=self.windows))
        width = vision.out_hidden_size
        merged = self.packed_site("connector", f"{VISUAL}.merger", "connector", 0, width, windowed=self.windows)
        return [*sites, merged]

    def packed_site(self, name: str, path: str, stage: str, layer: int, width: int, *, windowed: bool = False) -> Site:
        """A site whose module gives the patches of all images one after the other, or their cells.

        windowed: cells are in the order of windows.
        """

        def to_tokens(output: Any) -> Tensor:
            candidates: Any = self.candidates
            cells = first(output).reshape(-1, width)
            if windowed:
                cells = cells[self.raster_order(candidates)]
            padded = cells.new_zeros(*candidates.seen.shape, width)
            padded[candidates.seen] = cells
            return candidates.on_canvas(padded)

        return Site(name, path, stage, layer, ("image",), width, image_only, to_tokens, phrase_partner=self.last_block)

    def raster_order(self, candidates: NativeCandidates) -> Tensor:
        """Where among the cells in the order of windows each cell is."""
        from transformers.vision_utils import get_vision_window_index

        vision = self.settings.vision_config
        index, _ = get_vision_window_index(
            self.patch_grids(candidates), vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
        return index.argsort().to(self.device)

    def patch_grids(self, candidates: NativeCandidates) -> Tensor:
        """Frames, rows and columns of patches of each image ``[M, 3]``."""
        patches = candidates.sizes * self.settings.vision_config.spatial_merge_size
        return torch.cat([torch.ones_like(patches[:, :1]), patches], dim=1)

    def inputs(self, tokens: Tensor, pixels: Tensor) -> dict[str, Any]:
        """Patches cell by cell, channels first, each frame twice, as Qwen's processor packs them."""
        candidates: Any = self.candidates
        vision = self.settings.vision_config
        patch, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        cells = pixels.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
        cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 2)[candidates.seen]  # [cells, m, m, 3, p, p]
        packed = cells[:, :, :, :, None].expand(*cells.shape[:4], frames, patch, patch)
        return {
            "input_ids": tokens,
            "pixel_values": packed.flatten(0, 2).flatten(1),
            "image_grid_thw": self.patch_grids(candidates),
            "mm_token_type_ids": (tokens == self.settings.image_token_id).long(),
        }


class Qwen3VL(Qwen25VL):
    """``Qwen3VLForConditionalGeneration``: no windows, and sites ``deepstack.k``, merged cells of early layers.

    They are added to the image tokens after the first layers of the language model: the states of ``block.k`` are those
    before that.
    """

    architecture = "Qwen3VLForConditionalGeneration"
    prompt = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe this image.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    windows = False

    def vision_sites(self) -> list[Site]:
        """Those of Qwen2.5-VL, and the cells of early layers."""
        width = self.settings.vision_config.out_hidden_size
        paths = self.layers(f"{VISUAL}.deepstack_merger_list")
        early = [self.packed_site(f"deepstack.{k}", path, "deepstack", k, width) for k, path in enumerate(paths)]
        return [*super().vision_sites(), *early]
