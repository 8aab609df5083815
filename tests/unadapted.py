"""Models that no adapter knows: tiny Hugging Face folders, a hand-written network, and the states that they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hf_models import tokenizer
from torch import Tensor, nn

from grounding.models.any_model import AnyModel, Inputs

WIDTH, SIDE, PATCH = 32, 32, 8
LAYERS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
FLAVA: dict[str, Any] = {
    "text_config": {**LAYERS, "vocab_size": 200, "max_position_embeddings": 24},
    "image_config": {**LAYERS, "image_size": SIDE, "patch_size": PATCH},
    "multimodal_config": LAYERS,
    "hidden_size": WIDTH,
    "projection_dim": 16,
}
BRIDGE_TOWER: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "text_config": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 200,
        "max_position_embeddings": 30, "pad_token_id": 0,
    },
    "vision_config": {"hidden_size": 64, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": PATCH},
}  # fmt: skip


def hugging_face(folder: Path, model_type: str, **processor: Any) -> Path:
    """A folder of a tiny FLAVA or BridgeTower with its tokenizer and image processor."""
    from transformers import AutoConfig, AutoModel

    settings = {"flava": FLAVA, "bridgetower": BRIDGE_TOWER}[model_type]
    torch.manual_seed(0)
    network = AutoModel.from_config(AutoConfig.for_model(model_type, **settings))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    tokenizer().save(folder / "tokenizer.json")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    written = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 24, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    kinds: dict[str, dict[str, Any]] = {
        "flava": {"size": {"height": SIDE, "width": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
        "bridgetower": {"size": {"shortest_edge": SIDE}, "crop_size": {"shortest_edge": SIDE}, "size_divisor": SIDE},
    }
    kind = {"flava": "FlavaImageProcessor", "bridgetower": "BridgeTowerImageProcessor"}[model_type]
    processor = {"image_processor_type": kind, **kinds[model_type], **processor}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


class Reader(nn.Module):
    """A research model: words and patches through one layer each and a joint one; tuples, a dict, a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, WIDTH)
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.joint = nn.ModuleList([Pair() for _ in range(2)])
        self.named = Named()
        self.first = TokensFirst()
        self.looped = nn.Linear(WIDTH, WIDTH)
        self.idle = nn.Linear(WIDTH, WIDTH)
        self.summary = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Scores ``[M, 5]`` of M pairs."""
        seen = self.patches(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.start.expand(len(seen), -1, -1), seen, self.words(tokens)], dim=1)
        for layer in self.joint:
            states, _ = layer(states)
        self.named(states)
        self.first(states.transpose(0, 1))
        return self.summary(self.looped(self.looped(states)).mean(1))


class Pair(nn.Module):
    """Gives its states, and half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """``[M, N, D]`` twice."""
        states = states + self.linear(states).tanh()
        return states, states[..., : WIDTH // 2]


class Named(nn.Module):
    """Gives a dict."""

    def forward(self, states: Tensor) -> dict[str, Any]:
        """States, and a count."""
        return {"count": len(states), "hidden": states, "places": torch.arange(3)}


class TokensFirst(nn.Module):
    """Sees ``[N, M, D]``."""

    def forward(self, states: Tensor) -> Tensor:
        """The same."""
        return states * 1.0


def read_pairs(images: list[Any], captions: list[str]) -> Inputs:
    """The preprocessing of ``Reader``."""
    encoded = [tokenizer().encode(caption) for caption in captions]
    longest = max(len(text.ids) for text in encoded)
    ids = torch.zeros(len(captions), longest, dtype=torch.long)
    offsets = torch.zeros(len(captions), longest, 2, dtype=torch.long)
    for row, text in enumerate(encoded):
        ids[row, : len(text.ids)] = torch.from_numpy(text.ids)
        offsets[row, : len(text.ids)] = torch.from_numpy(text.offsets)
    pixels = torch.stack([torch.from_numpy(image) for image in images]).permute(0, 3, 1, 2) / 255
    return Inputs({"tokens": ids, "pixels": pixels}, offsets, ids != 0, (SIDE // PATCH, SIDE // PATCH))


def research_model(**changes: Any) -> AnyModel:
    """``Reader`` behind the protocol."""
    torch.manual_seed(0)
    return AnyModel(Reader(), changes.pop("preprocess", read_pairs), SIDE, **changes)
