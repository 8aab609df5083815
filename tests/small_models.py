"""Models of a few thousand weights, tokenizers and examples for tests; the weights are large enough to matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from extract.capture import Capture
from grounding.examples import Example, Phrase, ReferenceGame, Region, SpatialDescription
from grounding.models.attention import attention_weights
from grounding.models.base import Site
from grounding.models.mdetr import Mdetr, MdetrConfig
from grounding.models.text import CaptionTokenizer, train_tokenizer
from grounding.models.vilt_aligner import ViltAligner, ViltAlignerConfig

CAPTIONS = [
    "a red disc, a blue box and a dot",
    "the green star left of a small box",
    "we see a large disc over the dot",
]
VILT: dict[str, Any] = {
    "width": 24,
    "depth": 2,
    "heads": 2,
    "feed_forward": 32,
    "patch": 16,
    "position_grid": (3, 2),
    "candidate_size": 32,
    "max_text": 20,
    "vocabulary": 300,
    "dropout": 0.0,
    "pooler": False,
}
MDETR: dict[str, Any] = {
    "backbone": "small",
    "width": 24,
    "heads": 2,
    "feed_forward": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "queries": 7,
    "token_slots": 19,
    "contrastive_width": 8,
    "dropout": 0.0,
    "candidate_size": 32,
    "multiple": 16,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "text_feed_forward": 24,
    "max_text": 20,
    "text_positions": 24,
    "vocabulary": 300,
    "pad_id": 0,
    "text_pooler": False,
}


def wordpiece(max_length: int = 20) -> CaptionTokenizer:
    """A WordPiece tokenizer that knows the words of CAPTIONS."""
    return train_tokenizer(CAPTIONS, max_length)


def byte_level(max_length: int = 40, captions: Sequence[str] = CAPTIONS, trim_offsets: bool = True) -> CaptionTokenizer:
    """A byte-level BPE tokenizer in RoBERTa's form: ``<s>``, ``</s>``, spaces that belong to the word after them."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(captions, trainer)
    backend.add_special_tokens([AddedToken(token) for token in special])
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    return CaptionTokenizer(backend, max_length)


def small_vilt(**changes: Any) -> ViltAligner:
    """A ViLT-Aligner of 16-pixel patches, in eval mode."""
    config = ViltAlignerConfig(**{**VILT, **changes})
    return _prepared(ViltAligner(config, wordpiece(config.max_text)))


def small_mdetr(**changes: Any) -> Mdetr:
    """An MDETR of stride 16 (32 with a ResNet), in eval mode."""
    config = MdetrConfig(**{**MDETR, **changes})
    return _prepared(Mdetr(config, wordpiece(config.max_text)))


def _prepared(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))  # gains of norms are about one
    return model.eval()


class Seen:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def states(self, site: Site, states: Tensor) -> None:
        """Keep the states of a site."""
        self.state[site.name] = states.clone()

    def attention(self, site: Site, query: Tensor, key: Tensor, bias: Tensor | None) -> None:
        """Keep the weights of a site."""
        self.weights[site.name] = attention_weights(query, key, bias)


@contextmanager
def watched(model: Any, attention: Sequence[str] | None = None) -> Iterator[Seen]:
    """Inside it, one forward pass leaves the states of all sites, and the weights of those named (None: all)."""
    seen, sites = Seen(), model.sites()
    wanted = [s for s in sites if s.attention_path and (attention is None or s.name in attention)]
    with Capture(model, sites, seen, wanted):
        yield seen


@torch.no_grad()
def captured(model: Any, examples: Sequence[Example]) -> tuple[Seen, Any]:
    """Everything at the sites of a model in one pass, and its output."""
    batch = model.preprocess(examples)
    with watched(model) as seen:
        output = model(batch)
    return seen, output


def game(name: str = "game", images: int = 3, target: int = 1, size: int = 32, seed: int = 0) -> Example:
    """A reference game over noise images, with a phrase of one span and one of two."""
    random = np.random.default_rng(seed)
    pixels = tuple(random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(images))
    phrases = (
        Phrase("p0", "disc", ((0, 10),), (Region((0.1, 0.2, 0.6, 0.7)),), target),
        Phrase("p1", "box", ((14, 18), (19, 22)), (Region((0.3, 0.1, 0.9, 0.4)), Region((0, 0, 0.5, 0.5))), target),
    )
    return Example(name, "train", pixels, CAPTIONS[0], phrases, ReferenceGame(target), {"image": name})


def single_image(name: str = "sdr", height: int = 48, width: int = 80, seed: int = 0, **task: Any) -> Example:
    """A spatial description over one noise image; the phrases are those of ``game``."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    phrases = game(target=0).phrases
    task = {"target_xy": (0.7, 0.3), **task}
    return Example(name, "train", (pixels,), CAPTIONS[0], phrases, SpatialDescription(**task), {"image": name})
