"""Sizes of a model, read off the shapes of its weights.

Shapes tell every size but the number of attention heads. Heads come from the file where it says (``args.nheads`` of
MDETR, ``num_attention_heads`` of Hugging Face), else 64 channels a head (ViLT and RoBERTa) and 8 heads (MDETR), the
released models' rule; ``--config heads=...`` has the last word, as for every other field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from grounding.errors import BadInput

HEAD_WIDTH = 64
BASIC_BLOCKS = {"2,2,2,2": "resnet18", "3,4,6,3": "resnet34"}  # blocks of the four stages
BOTTLENECKS = {"3,4,6,3": "resnet50", "3,4,23,3": "resnet101", "3,8,36,3": "resnet152"}
EFFICIENTNETS = {40: "timm_tf_efficientnet_b3_ns", 48: "timm_tf_efficientnet_b5_ns"}  # by channels of the stem


def sizes_of(model: str, tensors: Mapping[str, Tensor], given: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """Fields of the model's configuration. given: fields that are known, which need no guess.

    Raises BadInput naming a weight that tells a size and is not there, or a field that shapes cannot tell.
    """
    shapes = _Shapes(tensors, path)
    return {**(_mdetr if model == "mdetr" else _vilt)(shapes, given), **given}


@dataclass(frozen=True)
class _Shapes:
    tensors: Mapping[str, Tensor]
    path: Path | str

    def of(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors:
            raise BadInput(f"{self.path} has no {name}, which tells the model's size")
        return tuple(self.tensors[name].shape)

    def count(self, prefix: str) -> int:
        """Number of layers under a prefix."""
        return layers(self.tensors, prefix)

    def heads(self, width: int, given: Mapping[str, Any], field: str) -> int:
        if field in given:
            return given[field]
        if width % HEAD_WIDTH:
            raise BadInput(
                f"{self.path}: shapes do not tell {field} of width {width}, which is no multiple of {HEAD_WIDTH}; give "
                f"--config {field}=NUMBER"
            )
        return width // HEAD_WIDTH


def layers(names: Iterable[str], prefix: str) -> int:
    """How many numbered modules follow a prefix.

    >>> layers(["a.blocks.0.x", "a.blocks.1.x", "b.blocks.7.x"], "a.blocks.")
    2
    """
    number = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = map(number.match, names)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _vilt(shapes: _Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary, width = shapes.of("text_embeddings.word_embeddings.weight")
    convolutions = shapes.count("transformer.patch_embed.convolutions.")
    patch = 2**convolutions if convolutions else shapes.of("transformer.patch_embed.proj.weight")[-1]
    return {
        "width": width,
        "depth": shapes.count("transformer.blocks."),
        "heads": shapes.heads(width, given, "heads"),
        "feed_forward": shapes.of("transformer.blocks.0.mlp.fc1.weight")[0],
        "patch": patch,
        "stem": "convolutions" if convolutions else "linear",
        "position_grid": given.get("position_grid") or _square(shapes),
        "vocabulary": vocabulary,
        "max_text": shapes.of("text_embeddings.position_embeddings.weight")[0],
        "pooler": "pooler.dense.weight" in shapes.tensors,
    }


def _square(shapes: _Shapes) -> tuple[int, int]:
    cells = shapes.of("transformer.pos_embed")[1] - 1
    side = math.isqrt(cells)
    if side * side != cells:
        raise BadInput(
            f"{shapes.path}: a position table of {cells} cells is no square; give --config position_grid=[ROWS,COLUMNS]"
        )
    return side, side


def _mdetr(shapes: _Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    first, text = "mdetr.transformer.", "mdetr.transformer.text_encoder."
    vocabulary, text_width = shapes.of(f"{text}embeddings.word_embeddings.weight")
    text_positions = shapes.of(f"{text}embeddings.position_embeddings.weight")[0]
    pad_id = given.get("pad_id", 1)  # RoBERTa's; its positions begin after it
    return {
        "backbone": given.get("backbone") or _backbone(shapes),
        "width": shapes.of(f"{first}encoder.layers.0.self_attn.in_proj_weight")[1],
        "heads": 8,
        "feed_forward": shapes.of(f"{first}encoder.layers.0.linear1.weight")[0],
        "encoder_layers": shapes.count(f"{first}encoder.layers."),
        "decoder_layers": shapes.count(f"{first}decoder.layers."),
        "queries": shapes.of("mdetr.query_embed.weight")[0],
        "token_slots": shapes.of("mdetr.class_embed.weight")[0] - 1,
        "contrastive_width": shapes.of("mdetr.contrastive_align_projection_image.weight")[0],
        "text_width": text_width,
        "text_layers": shapes.count(f"{text}encoder.layer."),
        "text_heads": shapes.heads(text_width, given, "text_heads"),
        "text_feed_forward": shapes.of(f"{text}encoder.layer.0.intermediate.dense.weight")[0],
        "vocabulary": vocabulary,
        "text_positions": text_positions,
        "max_text": text_positions - pad_id - 1,
        "text_pooler": f"{text}pooler.dense.weight" in shapes.tensors,
        "pre_norm": f"{first}encoder.norm.weight" in shapes.tensors,
        "task_query": "sdr_embed.weight" in shapes.tensors,
    }


def _backbone(shapes: _Shapes) -> str:
    body = "mdetr.backbone.0.body."
    if f"{body}conv_stem.weight" in shapes.tensors:
        found = EFFICIENTNETS.get(shapes.of(f"{body}conv_stem.weight")[0])
    elif shapes.count(f"{body}stem."):
        found = "small"
    else:
        blocks = ",".join(str(shapes.count(f"{body}layer{stage}.")) for stage in range(1, 5))
        found = (BOTTLENECKS if f"{body}layer1.0.conv3.weight" in shapes.tensors else BASIC_BLOCKS).get(blocks)
    if found is None:
        raise BadInput(f"{shapes.path}: shapes do not tell the backbone; give --config backbone=NAME")
    return found
