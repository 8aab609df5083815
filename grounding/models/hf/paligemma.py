"""PaliGemma (Beyer et al. 2024, arXiv 2407.07726) and PaliGemma 2 (Steiner et al. 2024, arXiv 2412.03555)."""

from __future__ import annotations

from torch import Tensor

from grounding.models.base import Site
from grounding.models.hf.interleaved import InterleavedModel


class PaliGemma(InterleavedModel):
    """``PaliGemmaForConditionalGeneration``; sites ``vision.*`` with ``vision.norm``, and ``connector``.

    Image and prompt see each other in both directions; the caption is the suffix, whose words see what is before them.
    """

    architecture = "PaliGemmaForConditionalGeneration"
    prompt = "<image><bos>caption en\n"

    def vision_sites(self) -> list[Site]:
        """All layers of SigLIP, and the projection of the patches."""
        layers = self.settings.vision_config.num_hidden_layers
        sites = self.tower_sites(
            "network.model.vision_tower", self.last_block, layers=layers, skip=0, norm="post_layernorm"
        )
        return [*sites, self.connector_site("network.model.multi_modal_projector")]

    def token_types(self, caption: Tensor) -> dict[str, Tensor]:
        """0 up to the caption, 1 from there on."""
        return {"token_type_ids": (caption.cumsum(1) > 0).long()}
