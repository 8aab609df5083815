"""Tiny Hugging Face models of random weights, and what every adapter must hold to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import CAPTIONS, captured, game, single_image
from torch import Tensor

from extract.run import extract
from extract.self_checks import CAPTION, LONGER, run_self_checks
from grounding.benchmarks import open_benchmark
from grounding.examples import Prediction
from grounding.models.hf import HfConfig, HfModel, build_adapted
from grounding.models.hf.captions import word_tokenizer
from grounding.models.text import CaptionTokenizer, train_tokenizer

MAX_TEXT = 24
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": MAX_TEXT, "vocab_size": 200, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
DUAL = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 20}
DINO = {
    "text_config": {**TEXT, "model_type": "bert"},
    "backbone_config": {
        "model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2], "window_size": 2, "out_features": ["stage2", "stage3", "stage4"],
        "drop_path_rate": 0.0,
    },
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 12, "max_text_len": 24,
    "dropout": 0.0, "fusion_droppath": 0.0,
}  # fmt: skip
DETR = {
    "backbone_config": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
        "layer_type": "basic", "out_features": ["stage4"],
    },
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 9, "dropout": 0.0,
    "id2label": {0: "N/A", 1: "disc", 2: "blue box"},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "clip": DUAL,
    "siglip": {"text_config": {**TEXT, "projection_size": 24}, "vision_config": VISION},
    "siglip2": {
        "text_config": {**TEXT, "projection_size": 24},
        "vision_config": {**{k: v for k, v in VISION.items() if k != "image_size"}, "num_patches": 16},
    },
    "blip": {
        "text_config": {**TEXT, "encoder_hidden_size": 24, "hidden_dropout_prob": 0.0},
        "vision_config": VISION,
        "image_text_hidden_size": 16,
    },
    "blip-2": {
        "qformer_config": {
            **TEXT,
            "num_hidden_layers": 4,
            "use_qformer_text_input": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "vision_config": VISION,
        "num_query_tokens": 5,
        "image_text_hidden_size": 16,
    },
    "owlv2": {
        "text_config": {**TEXT, "projection_dim": 32},
        "vision_config": VISION,
        "projection_dim": 32,
    },
    "grounding-dino": DINO,
    "mm-grounding-dino": DINO,
    "florence2": {
        "text_config": {
            "model_type": "bart",
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 700,
            "vocab_size": 1400,
            "dropout": 0.0,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "decoder_start_token_id": 3,
        },
        "vision_config": {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [8, 16],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 4,
            "drop_path_rate": 0.0,
            "projection_dim": 32,
        },
    },
    "detr": DETR,
    "conditional_detr": DETR,
    "deformable_detr": {
        **DETR,
        "backbone_config": {**DETR["backbone_config"], "out_features": ["stage2", "stage3", "stage4"]},
        "decoder_n_points": 2,
        "encoder_n_points": 2,
        "num_feature_levels": 3,
    },
    "rt_detr": {
        **DETR,
        "backbone_config": {
            **DETR["backbone_config"],
            "model_type": "rt_detr_resnet",
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [8, 16, 16],
        "decoder_in_channels": [32, 32, 32],
        "encoder_layers": 1,
        "num_denoising": 0,
    },
    "vilt": {**TEXT, "image_size": 32, "patch_size": 8, "hidden_dropout_prob": 0.0},
}

# pixels a side, of models that take any
SIZES = {"detr": 160, "conditional_detr": 160, "deformable_detr": 64, "rt_detr": 64, "florence2": 64}


def tokenizer() -> CaptionTokenizer:
    """A WordPiece tokenizer that knows the words of the tests."""
    return train_tokenizer([*CAPTIONS, CAPTION, LONGER, "."], MAX_TEXT)


def tiny(model_type: str, **changes: Any) -> Any:
    """A model behind its adapter, its weights large enough to matter."""
    settings = {**SETTINGS[model_type], "model_type": model_type, **changes}
    torch.manual_seed(0)
    config = HfConfig(model_type, settings, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), SIZES.get(model_type))
    captions = tokenizer() if config.reads_text else word_tokenizer(config.max_text)
    if model_type == "florence2":
        captions = CaptionTokenizer(captions.backend, 60)  # the prompt comes in unknown words
        captions.backend.add_special_tokens([f"<loc_{k}>" for k in range(1000)])
    model = build_adapted(config, captions)
    stop = model.preprocessor.tokenizer.backend.token_to_id(".")
    if model_type in ("grounding-dino", "mm-grounding-dino"):
        model.network.model.special_tokens = torch.tensor([2, 3, stop, stop])  # instead of those of BERT
    return randomised(model)


def randomised(model: Any) -> Any:
    """The same model with weights large enough to matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return model


def three_answers(model: HfModel) -> tuple[Any, list[Prediction]]:
    """Output and predictions for a game of three squares, one of two, and a single image, in one batch."""
    examples = [square_game(model, images=3, target=1), game(images=2, target=0, seed=4), single_image()]
    with torch.no_grad():
        batch = model.preprocess(examples)
        output = model(batch)
    return output, model.predict(batch, output)


def certificate(model: HfModel) -> dict[str, int]:
    """How many self-checks ended in which way; the details of those that failed are printed."""
    checks = run_self_checks(model)
    print(*(check for check in checks if check.status == "failed"), sep="\n")
    return dict(Counter(check.status for check in checks))


def pixels_of(model: Any, example: Any) -> Tensor:
    """Pixel values ``[N, 3, S, S]`` of an example's images, by another way than the adapter's."""
    size = model.preprocessor.candidate_size
    mean, std = (np.array(getattr(model.config, name)) for name in ("mean", "std"))
    images = [(np.asarray(image) / 255.0 - mean) / std for image in example.images]
    assert all(image.shape[:2] == (size, size) for image in images)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def square_game(model: Any, **changes: Any) -> Any:
    """A game whose candidates have the model's own size already."""
    return game(size=model.preprocessor.candidate_size, **changes)


def changed_cells(model: Any, site: str, slot: int, row: int, column: int, text: int = 0) -> list[tuple[int, int]]:
    """(row on the canvas, column) of the image tokens of ``site`` that change with the pixels of one cell.

    text: tokens before them.
    """
    example = square_game(model)
    size, cells = model.preprocessor.candidate_size, model.preprocessor.cells
    patch = size // cells
    images = [np.array(image) for image in example.images]
    images[slot][row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] ^= 255
    seen = [captured(model, [one])[0].state[site] for one in (example, replace(example, images=tuple(images)))]
    grid = (len(images) * cells, cells)
    moved = (seen[0] != seen[1]).any(-1)[0][text : text + grid[0] * grid[1]].view(grid)
    return [(int(r), int(c)) for r, c in moved.nonzero()]


def check_extraction(model: HfModel, out: Path, views: tuple[str, ...]) -> Any:
    """A run over generated games and one over a wide image, end to end; returns the games' run."""
    games = open_benchmark("mini-game", None, 0).load("dev", 3, False)
    wide = [*open_benchmark("mini-sdr", None, 0).load("dev", 1, False), single_image()]
    run = extract(model, games, out / "games", identity={"test": 1}, views=views, batch_size=2)
    other = extract(model, wide, out / "wide", identity={"test": 2}, views=views, batch_size=2)
    for done, examples in ((run, games), (other, wide)):
        assert list(done.examples["id"]) == [example.id for example in examples]
        assert len(done.phrases) + len(done.manifest["dropped_phrases"]) == sum(len(e.phrases) for e in examples)
        for site in done.sites:
            if "phrase" in site.views:
                assert np.isfinite(done.read(site.name, "phrase")).all()
    return run


def write_folder(model: Any, folder: Path, sharded: bool = False, **images: Any) -> Path:
    """A Hugging Face folder of a model: weights, settings, image processor (with fields ``images``) and tokenizer."""
    model.network.save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    processor = {"image_mean": model.config.mean, "image_std": model.config.std, "do_normalize": True, "resample": 2}
    processor |= images
    if model.config.size is not None and not images:
        processor["size"] = {"shortest_edge": model.config.size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if not model.reads_text:
        return folder
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    model.preprocessor.tokenizer.save(folder / "tokenizer.json")
    return folder
