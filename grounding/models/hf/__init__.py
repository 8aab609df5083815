"""Adapters over Hugging Face transformers: one table from ``model_type`` to the class that adapts it."""

from __future__ import annotations

from typing import Any

from grounding.errors import unknown_choice
from grounding.models.hf.base import HfModel
from grounding.models.hf.blip import BlipMatching
from grounding.models.hf.blip2 import Blip2Matching
from grounding.models.hf.config import HfConfig, read_config
from grounding.models.hf.detr import ConditionalDetr, DeformableDetr, Detr, RtDetr
from grounding.models.hf.dual import Clip, Siglip, Siglip2
from grounding.models.hf.florence2 import Florence2
from grounding.models.hf.grounding_dino import GroundingDino, MMGroundingDino
from grounding.models.hf.idefics import Idefics
from grounding.models.hf.llava import Llava
from grounding.models.hf.owl import Owlv2
from grounding.models.hf.paligemma import PaliGemma
from grounding.models.hf.qwen import Qwen3VL, Qwen25VL
from grounding.models.hf.vilt import ViltRetrieval
from grounding.models.text import CaptionTokenizer

ADAPTERS: dict[str, type[HfModel]] = {
    "clip": Clip,
    "siglip": Siglip,
    "siglip2": Siglip2,
    "blip": BlipMatching,
    "blip-2": Blip2Matching,
    "vilt": ViltRetrieval,
    "owlv2": Owlv2,
    "grounding-dino": GroundingDino,
    "mm-grounding-dino": MMGroundingDino,
    "llava": Llava,
    "paligemma": PaliGemma,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "idefics": Idefics,
    "florence2": Florence2,
    "detr": Detr,
    "conditional_detr": ConditionalDetr,
    "deformable_detr": DeformableDetr,
    "rt_detr": RtDetr,
}


def adapter(model_type: str) -> type[HfModel]:
    """The adapter of a ``model_type``. Raises BadInput for one that has none."""
    if model_type not in ADAPTERS:
        raise unknown_choice("model_type", model_type, sorted(ADAPTERS))
    return ADAPTERS[model_type]


def build_adapted(config: HfConfig, tokenizer: CaptionTokenizer | None, network: Any = None) -> HfModel:
    """A model behind its adapter, in eval mode; ``network`` None gives fresh weights. Raises BadInput."""
    return adapter(config.model_type)(config, tokenizer, network).eval()


__all__ = ["ADAPTERS", "HfConfig", "HfModel", "adapter", "build_adapted", "read_config"]
