"""Files as the study, MDETR, ViLT and Hugging Face publish them, written from small models."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from small_models import byte_level, small_mdetr, small_vilt, wordpiece
from torch import Tensor

AVERAGED = 0.75
RELEASED_VILT = {"width": 128, "heads": 2, "patch": 32, "pooler": True, "text_padding": "max", "position_grid": (3, 3)}
RELEASED_MDETR = {  # 8 heads, and 64 channels a head in the text encoder, as the released ones have
    "backbone": "resnet18", "width": 32, "heads": 8, "text_width": 64, "text_heads": 1, "pad_id": 1,
    "vocabulary": 400, "text_pooler": True, "multiple": 32, "max_text": 22, "token_slots": 19,
}  # fmt: skip


def released_vilt() -> Any:
    """A ViLT-Aligner whose sizes follow the released ones' rules."""
    return small_vilt(**RELEASED_VILT)


def released_mdetr(**changes: Any) -> Any:
    """An MDETR whose sizes follow the released ones' rules."""
    return small_mdetr(**{**RELEASED_MDETR, **changes})


def state(model: Any, factor: float = 1.0) -> dict[str, Tensor]:
    """A model's state dict, its values times ``factor``, as the study stores it: with position numbers."""
    tensors = OrderedDict((name, tensor * factor) for name, tensor in model.state_dict().items())
    if model.config.model == "mdetr":
        numbers = torch.arange(model.config.text_positions)[None]
        tensors["mdetr.transformer.text_encoder.embeddings.position_ids"] = numbers
    else:
        tensors["text_embeddings.position_ids"] = torch.arange(model.config.max_text)[None]
    return tensors


def plain_mdetr(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The study's wrapper without what it adds to MDETR."""
    return OrderedDict((n.removeprefix("mdetr."), t) for n, t in tensors.items() if n.startswith("mdetr."))


def write_study(path: Path, model: Any, ema: bool = True) -> Path:
    """Lightning's file with the callback's averaged weights, AVERAGED times the raw ones."""
    raw = state(model)
    extra = {"criterion.empty_weight": torch.ones(20)} if model.config.model == "mdetr" else {}
    callbacks: dict[str, Any] = {
        "ModelCheckpoint{'monitor': 'val'}": {
            "best_model_score": torch.tensor(0.5),
            "dirpath": PosixPath("/runs/x"),
            "best": np.float64(0.25),
        }
    }
    if ema:
        callbacks["EMA"] = {"ema_state_dict": {**state(model, AVERAGED), **extra}}
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.7.7",
        "state_dict": OrderedDict({**raw, **extra}),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": callbacks,
        "optimizer_states": [{"state": defaultdict(dict), "param_groups": [{"lr": np.float32(1e-4)}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"cfg": argparse.Namespace(lr=1e-4), "sizes": defaultdict(list, {"a": [1]})},
    }
    torch.save(content, path)
    return path


def write_mdetr(path: Path, model: Any, ema: bool = True, **arguments: Any) -> Path:
    """MDETR's file: ``model``, ``model_ema`` (AVERAGED times it), ``optimizer``, ``epoch``, ``args``."""
    args = {
        "nheads": model.config.heads,
        "backbone": model.config.backbone,
        "dropout": 0.1,
        "position_embedding": "sine",
        "pass_pos_and_query": True,
        "dilation": False,
        "text_encoder_type": "roberta-base",
        "output_dir": PosixPath("/checkpoint/run"),
    }
    content = {
        "model": plain_mdetr(state(model)),
        "model_ema": plain_mdetr(state(model, AVERAGED)) if ema else None,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 39,
        "args": argparse.Namespace(**{**args, **arguments}),
    }
    torch.save(content, path)
    return path


def write_vilt(path: Path, model: Any) -> Path:
    """ViLT's own file: heads of pre-training, no aligner head."""
    width = model.config.width
    tensors = {name: tensor for name, tensor in state(model).items() if not name.startswith("sdr_head.")}
    tensors |= {
        "mlm_score.bias": torch.zeros(300),
        "mlm_score.decoder.weight": tensors["text_embeddings.word_embeddings.weight"],
        "mlm_score.transform.dense.weight": torch.zeros(width, width),
        "itm_score.fc.weight": torch.zeros(2, width),
        "itm_score.fc.bias": torch.zeros(2),
    }
    torch.save({"epoch": 1, "pytorch-lightning_version": "1.1.4", "state_dict": tensors, "callbacks": {}}, path)
    return path


def write_hugging_face(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: str) -> Path:
    """A Hugging Face folder with its tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vilt", **config}))
    held = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if file.endswith(".safetensors"):
        save_file(held, folder / file)
    else:
        torch.save(held, folder / file)
    wordpiece().save(folder / "tokenizer.json")
    return folder


def write_tokenizers(folder: Path) -> dict[str, Path]:
    """A tokenizer file for each of the two models."""
    paths = {"vilt-aligner": folder / "wordpiece.json", "mdetr": folder / "bytes.json"}
    wordpiece().save(paths["vilt-aligner"])
    byte_level().save(paths["mdetr"])
    return paths
