"""Models behind one protocol (``base.GroundingModel``), and their configurations by name and size."""

from __future__ import annotations

from grounding.errors import BadInput, unknown_choice
from grounding.models.base import Batch, GroundingModel, ModelConfig, Output, Site, TokenLayout
from grounding.models.mdetr import Mdetr, MdetrConfig
from grounding.models.text import CaptionTokenizer
from grounding.models.vilt_aligner import ViltAligner, ViltAlignerConfig

MODELS: dict[str, tuple[type[ModelConfig], type[GroundingModel]]] = {
    "vilt-aligner": (ViltAlignerConfig, ViltAligner),
    "mdetr": (MdetrConfig, Mdetr),
}

SIZES: dict[str, dict[str, ModelConfig]] = {
    "vilt-aligner": {
        "base": ViltAlignerConfig(),
        "miniature": ViltAlignerConfig(
            width=96,
            depth=8,
            heads=4,
            feed_forward=288,
            patch=16,
            position_grid=(24, 4),
            candidate_size=64,
            max_text=64,
            text_padding="longest",
            stem="convolutions",
            dropout=0.0,
            pooler=False,
        ),
    },
    "mdetr": {
        "base": MdetrConfig(),
        "miniature": MdetrConfig(
            backbone="small",
            width=96,
            heads=4,
            feed_forward=256,
            encoder_layers=4,
            decoder_layers=3,
            queries=12,
            token_slots=63,
            contrastive_width=48,
            dropout=0.0,
            candidate_size=64,
            multiple=16,
            text_width=96,
            text_layers=2,
            text_heads=4,
            text_feed_forward=192,
            max_text=64,
            text_positions=66,
            pad_id=0,
            text_pooler=False,
            task_layer=-1,
            pre_norm=True,
            position_temperature=20.0,
        ),
    },
}


def model_config(model: str, size: str) -> ModelConfig:
    """The configuration of a model at a named size. Raises BadInput for an unknown one."""
    if model not in SIZES:
        raise unknown_choice("model", model, SIZES)
    if size not in SIZES[model]:
        raise unknown_choice("size", size, SIZES[model])
    return SIZES[model][size]


def build_model(config: ModelConfig, tokenizer: CaptionTokenizer | None) -> GroundingModel:
    """A model with fresh weights, which others may replace. tokenizer: None for a model that will not read captions.

    Raises BadInput for a tokenizer with more tokens than the model has embeddings, or whose padding is not the token
    that MDETR's text encoder counts no position for.
    """
    if tokenizer is not None:
        tokens, known = tokenizer.vocabulary_size, config.vocabulary  # type: ignore[attr-defined]
        if tokens > known:
            raise BadInput(f"tokenizer has {tokens} tokens, more than the {known} that the model has embeddings for")
        if isinstance(config, MdetrConfig) and tokenizer.pad_id != config.pad_id:
            raise BadInput(
                f"tokenizer pads with token {tokenizer.pad_id}, the model with {config.pad_id} (pad_id); accepted: the "
                f"model's own tokenizer, or for a fresh model --config pad_id={tokenizer.pad_id}"
            )
    return MODELS[config.model][1](config, tokenizer)  # type: ignore[call-arg, arg-type]


def build_fresh(config: ModelConfig, tokenizer: CaptionTokenizer | None) -> GroundingModel:
    """A model whose fresh weights are used as they are, or trained: with frozen norms that fit them."""
    model = build_model(config, tokenizer)
    if isinstance(model, Mdetr):
        model.mdetr.backbone[0].measure_norms()  # type: ignore[operator]
    return model


__all__ = [
    "MODELS",
    "SIZES",
    "Batch",
    "GroundingModel",
    "ModelConfig",
    "Output",
    "Site",
    "TokenLayout",
    "build_fresh",
    "build_model",
    "model_config",
]
