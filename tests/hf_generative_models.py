"""Tiny Hugging Face models that write text, of random weights, with tokenizers in the form of the released ones."""

from __future__ import annotations

from typing import Any

import torch
from hf_models import randomised
from PIL import Image
from small_models import CAPTIONS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from extract.self_checks import CAPTION, LONGER
from grounding.models.hf import HfConfig, adapter, build_adapted
from grounding.models.text import CaptionTokenizer

SPECIAL = ["[PAD]", "<unk>", "<s>", "</s>", "<bos>", "<image>", "<fake_token_around_image>"]
SPECIAL += ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IDS = {token: number for number, token in enumerate(SPECIAL)}
VOCABULARY = 500
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "vocab_size": VOCABULARY,
    "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}}
QWEN_VISION = {
    "depth": 3, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 32,
}  # fmt: skip
QWEN_IDS = {
    "image_token_id": IDS["<|image_pad|>"], "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"],
}  # fmt: skip
IDEFICS = {
    **{name: value for name, value in TEXT.items() if name not in ("num_key_value_heads", "head_dim")},
    "vocab_size": VOCABULARY - 2, "additional_vocab_size": 2, "cross_layer_interval": 2, "num_hidden_layers": 4,
    "qk_layer_norms": True, "alpha_initializer": "ones",
    "vision_config": {**{k: v for k, v in VISION.items() if k != "hidden_size"}, "embed_dim": 24},
}  # fmt: skip
GEMMA = {
    "vision_config": {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
    "projection_dim": 32, "hidden_size": 32, "image_token_index": IDS["<image>"],
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": IDS["<image>"],
    },
    "paligemma": {**GEMMA, "text_config": {**TEXT, "model_type": "gemma"}},
    "qwen2_5_vl": {
        "text_config": QWEN_TEXT,
        "vision_config": {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
        **QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": QWEN_TEXT,
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **QWEN_IDS,
    },
    "idefics": IDEFICS,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in SETTINGS},
    "llava-siglip": (
        "llava",
        {
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        },
    ),
    "paligemma2": (
        "paligemma",
        {
            "text_config": {
                **TEXT, "model_type": "gemma2", "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0, "sliding_window": 4096,
            }
        },
    ),
    "idefics-resampler": (
        "idefics",
        {
            "use_resampler": True,
            "perceiver_config": {
                "use_resampler": True, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 2,
                "resampler_head_dim": 6, "qk_layer_norms_perceiver": True,
            },
        },
    ),
}  # fmt: skip


def tokenizer(model_type: str, max_length: int | None = None) -> CaptionTokenizer:
    """Byte-level BPE for Qwen, else BPE over words that begin with a ``▁``; LLaVA's puts ``<s>`` in front."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    alphabet: list[str] = []
    if model_type.startswith("qwen"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif model_type == "paligemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    prompts = [adapter(model_type).prompt]  # type: ignore[attr-defined]
    backend.train_from_iterator([*CAPTIONS, CAPTION, LONGER, *prompts], trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    if model_type == "llava":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    limit = HfConfig(model_type, {**SETTINGS[model_type], "model_type": model_type}).max_text
    return CaptionTokenizer(backend, max_length or limit)


def tiny(name: str, *, size: int = 256, longest: int = 4096, **changes: Any) -> Any:
    """A model behind its adapter; size, longest: pixels of an image for Qwen, 8 x 8 each cell."""
    model_type, others = VARIANTS[name]
    settings = {**SETTINGS[model_type], "model_type": model_type, **others, **changes}
    torch.manual_seed(0)
    config = HfConfig(model_type, settings, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), size=size, longest=longest)
    return randomised(build_adapted(config, tokenizer(model_type)))


def processor(name: str) -> Any:
    """transformers' own processor for a tiny model."""
    import transformers

    kind = VARIANTS[name][0]
    text = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(kind).backend,
        bos_token="<bos>" if kind == "paligemma" else "<s>",
        eos_token="</s>",
        pad_token="[PAD]",
        unk_token="<unk>",
    )
    norm = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    square = {"height": 32, "width": 32}
    if kind == "llava":
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, **norm)
        return transformers.LlavaProcessor(images, text, 8, "default", num_additional_image_tokens=1)
    if kind == "paligemma":
        images = transformers.SiglipImageProcessor(size=square, **norm)
        images.image_seq_length = 16
        return transformers.PaliGemmaProcessor(images, text)
    if kind == "idefics":
        return transformers.IdeficsProcessor(transformers.IdeficsImageProcessor(image_size=32, **norm), text, 32)
    limits = {"shortest_edge": 256, "longest_edge": 4096}
    images = transformers.Qwen2VLImageProcessor(size=limits, patch_size=4, merge_size=2, temporal_patch_size=2, **norm)
    if kind == "qwen2_5_vl":
        return transformers.Qwen2_5_VLProcessor(images, text, transformers.Qwen2VLVideoProcessor())
    return transformers.Qwen3VLProcessor(images, text, transformers.Qwen3VLVideoProcessor())


def stock_inputs(name: str, image: Any, caption: str) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of one image and one caption after the prompt."""
    kind, process, picture = VARIANTS[name][0], processor(name), Image.fromarray(image)
    if kind == "paligemma":
        return process(images=picture, text="<image>caption en", suffix=caption, return_tensors="pt")
    if kind == "idefics":
        return process(text=[["User:", picture, f"Describe this image.\nAssistant: {caption}"]])
    return process(images=picture, text=adapter(kind).prompt + caption, return_tensors="pt")  # type: ignore[attr-defined]


def stock_network(model: Any) -> Any:
    """An untouched transformers model of the same weights, with plain attention."""
    import transformers

    config = HfConfig(model.config.model_type, model.config.settings).transformers_config
    config._attn_implementation = "eager"
    plain = getattr(transformers, model.architecture)(config).eval()
    plain.load_state_dict(model.network.state_dict())
    return plain
