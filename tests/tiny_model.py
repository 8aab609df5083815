"""A grounding model small enough to know everything about: what extraction must find in it can be worked out.

Image tokens carry their own row and column in the first two channels, text tokens their first character, and
queries their number, through every layer (the planted channels are written back after each block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from grounding.errors import BadInput
from grounding.examples import Example, Phrase, PhrasePrediction, Prediction, ReferenceGame, Region
from grounding.images import read_image
from grounding.models.answers import answer, canvas_boxes_to_candidates
from grounding.models.attention import FusedProjectionAttention, MultiheadAttention, key_bias
from grounding.models.base import Batch, GroundingModel, ModelConfig, Output, Site, TokenLayout

CELL = 8  # pixels an image token covers
SIZE = 32  # pixels of a candidate
QUERIES = 4


@dataclass(frozen=True)
class TinyConfig(ModelConfig):
    """Width must be a multiple of the heads."""

    model: ClassVar[str] = "tiny"
    width: int = 16
    heads: int = 2
    depth: int = 2
    size: int = SIZE


@dataclass
class TinyOutput(Output):
    """boxes_xyxy: ``[B, Q, 4]`` on the real canvas; phrase_query: ``[P]``."""

    boxes_xyxy: Tensor
    phrase_query: Tensor


class Block(nn.Module):
    """Self-attention and the planted channels."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.attn = FusedProjectionAttention(config.width, config.heads)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """``[B, N, D]`` -> the same."""
        mixed = states + self.attn(states / 8, bias)
        return torch.cat([states[..., :2], mixed[..., 2:]], dim=-1)


class Decoder(nn.Module):
    """Queries attend to the joint states."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.cross = MultiheadAttention(config.width, config.heads)

    def forward(self, queries: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """``[B, Q, D]`` -> the same."""
        mixed = queries + self.cross(queries, memory / 8, memory, bias)
        return torch.cat([queries[..., :1], mixed[..., 1:]], dim=-1)


class TinyModel(GroundingModel):
    """Sites ``text.0`` (text only), ``block.k`` (image, a class token, text) and ``decoder.0`` (queries)."""

    config: TinyConfig

    def __init__(self, config: TinyConfig | None = None, seed: int = 0):
        super().__init__()
        self.config = config or TinyConfig()
        self.words = nn.Embedding(128, self.config.width)
        self.text_norm = nn.Identity()
        self.patches = nn.Conv2d(3, self.config.width, CELL, CELL)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.depth))
        self.queries = nn.Parameter(torch.zeros(QUERIES, self.config.width))
        self.decoder = Decoder(self.config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            self.queries[:, 0] = torch.arange(QUERIES)

    def preprocess(self, examples: Sequence[Example]) -> Batch:
        """One token a character (at most 40), a class token first; images at their own size."""
        return collate(examples, self.config.size)

    def forward(self, batch: Batch) -> TinyOutput:
        """Text, joint blocks, decoder."""
        text = self.words(batch.input_ids)
        begins = batch.offsets[..., :1].float()
        text = self.text_norm(torch.cat([begins, text[..., 1:]], dim=-1))
        rows, columns = batch.grid
        image = self.patches(batch.images.float() / 255).flatten(2).transpose(1, 2)
        place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
        place = place.flatten(0, 1).to(image).expand(len(image), -1, -1)
        image = torch.cat([place, image[..., 2:]], dim=-1)
        mask = torch.cat([batch.pixel_mask[:, ::CELL, ::CELL].flatten(1), batch.text_mask[:, :1], batch.text_mask], 1)
        bias = key_bias(mask, image.dtype)
        states = torch.cat([image, image.new_zeros(len(image), 1, image.shape[-1]), text], dim=1)
        for block in self.blocks:
            states = block(states, bias)
        self.decoder(self.queries.expand(len(states), -1, -1), states, bias)
        boxes = torch.tensor([[k / QUERIES, 0.0, (k + 1) / QUERIES, 1.0] for k in range(QUERIES)])
        point = states.new_tensor([[0.5, 0.5 / len(e.images)] for e in batch.examples])
        return TinyOutput(
            task_point=point,
            phrase_point=point[batch.phrase_example],
            boxes_xyxy=boxes.to(states.device).expand(len(states), -1, -1),
            phrase_query=torch.arange(len(batch.phrase_ids), device=states.device) % QUERIES,
        )

    def sites(self) -> list[Site]:
        """See the class."""
        width, last = self.config.width, f"block.{self.config.depth - 1}"
        joint = [
            Site(f"block.{k}", f"blocks.{k}", "block", k, ("text", "image"), width, joint_layout,
                 attention_path=f"blocks.{k}.attn")
            for k in range(self.config.depth)
        ]  # fmt: skip
        return [
            Site("text.0", "text_norm", "text", 0, ("text",), width, text_layout, region_partner="block.0"),
            *joint,
            Site("decoder.0", "decoder", "decoder", 0, ("query",), width, query_layout, phrase_partner=last,
                 attention_path="decoder.cross"),
        ]  # fmt: skip

    def predict(self, batch: Batch, output: TinyOutput) -> list[Prediction]:
        """Candidate 0; each phrase's best query's box."""
        boxes = output.boxes_xyxy.cpu().numpy()
        predictions = []
        for b, example in enumerate(batch.examples):
            phrases = []
            for p in np.flatnonzero(batch.phrase_example.cpu().numpy() == b):
                query = int(output.phrase_query[p])
                own, index = canvas_boxes_to_candidates(boxes[b, query : query + 1], len(example.images))
                phrases.append(PhrasePrediction(batch.phrase_ids[p], own, index, np.ones(1, dtype=np.float32)))
            x, y = output.task_point[b].tolist()
            predictions.append(answer(example, (x, y), 0.25, tuple(phrases)))
        return predictions


def joint_layout(batch: Batch) -> TokenLayout:
    """Image cells, a class token, text."""
    cells = batch.grid[0] * batch.grid[1]
    return TokenLayout(image=slice(0, cells), text=slice(cells + 1, cells + 1 + batch.input_ids.shape[1]))


def text_layout(batch: Batch) -> TokenLayout:
    """Text alone."""
    return TokenLayout(text=slice(0, batch.input_ids.shape[1]))


def query_layout(batch: Batch) -> TokenLayout:
    """Queries alone."""
    return TokenLayout(query=slice(0, QUERIES))


def collate(examples: Sequence[Example], size: int) -> Batch:
    """Examples to a batch: characters as tokens behind a class token, candidates stacked, padding in front of none."""
    game = [isinstance(example.task, ReferenceGame) for example in examples]
    canvases = [
        np.concatenate([read_image(image, size if is_game else None) for image in example.images])
        for example, is_game in zip(examples, game, strict=True)
    ]
    height, width = (max(c.shape[side] for c in canvases) for side in (0, 1))
    tokens = 1 + max(min(len(e.caption), 40) for e in examples)
    images = np.zeros((len(examples), height, width, 3), dtype=np.uint8)
    pixels = np.zeros(images.shape[:3], dtype=bool)
    ids = np.zeros((len(examples), tokens), dtype=np.int64)
    text_mask = np.zeros(ids.shape, dtype=bool)
    offsets = np.zeros((*ids.shape, 2), dtype=np.int64)
    phrases, dropped = [], []
    for b, (example, canvas) in enumerate(zip(examples, canvases, strict=True)):
        images[b, : canvas.shape[0], : canvas.shape[1]] = canvas
        pixels[b, : canvas.shape[0], : canvas.shape[1]] = True
        codes = [ord(character) % 128 for character in example.caption[:40]]
        ids[b, 1 : 1 + len(codes)] = codes
        text_mask[b, : 1 + len(codes)] = True
        begins = np.arange(len(codes))
        offsets[b, 1 : 1 + len(codes)] = np.stack([begins, begins + 1], 1)
        for phrase in example.phrases:
            mask = np.zeros(tokens, dtype=bool)
            for begin, end in phrase.spans:
                mask[1 + begin : 1 + min(end, 40)] = True
            if mask.any():
                phrases.append((b, phrase.id, mask))
            else:
                dropped.append(phrase.id)
    return Batch(
        examples=tuple(examples),
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        pixel_mask=torch.from_numpy(pixels),
        input_ids=torch.from_numpy(ids),
        text_mask=torch.from_numpy(text_mask),
        offsets=torch.from_numpy(offsets),
        caption_tokens=torch.from_numpy(text_mask),
        phrase_tokens=torch.from_numpy(np.array([p[2] for p in phrases], dtype=bool).reshape(-1, tokens)),
        phrase_example=torch.tensor([p[0] for p in phrases], dtype=torch.int64),
        phrase_ids=tuple(p[1] for p in phrases),
        grid=(-(-height // CELL), -(-width // CELL)),
        valid=torch.tensor([c.shape[:2] for c in canvases], dtype=torch.int64),
        dropped_phrases=tuple(dropped),
    )


@dataclass(frozen=True)
class BrokenImage:
    """An image that cannot be drawn."""

    name: str = "broken.png"

    def render(self, size: int | None = None) -> np.ndarray:
        """Raises BadInput."""
        raise BadInput(f"image {self.name} cannot be read")


def tiny_games(count: int = 10, images: int = 3, seed: int = 0) -> list[Example]:
    """Reference games over noise images, with two or three phrases each."""
    random = np.random.default_rng(seed)
    games = []
    for i in range(count):
        caption = "a red disc, a blue box and a dot"[: random.integers(20, 33)]
        target = int(random.integers(images))
        phrases = [Phrase("p0", "disc", ((0, 10),), (_region(random),), target)]
        phrases.append(Phrase("p1", "box", ((12, 18), (19, 20)), (_region(random), _region(random)), target))
        if i % 2:
            phrases.append(Phrase("p2", "end", ((4, len(caption)),), (_region(random),), target))
        pixels = tuple(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(images))
        groups = {"image": f"image-{i % 4}", "caption": f"caption-{i}"}
        games.append(Example(f"game-{i}", "dev", pixels, caption, tuple(phrases), ReferenceGame(target), groups))
    return games


def _region(random: np.random.Generator) -> Region:
    x, y = random.uniform(0, 0.6, 2)
    width, height = random.uniform(0.2, 0.4, 2)
    return Region((float(x), float(y), float(x + width), float(y + height)))
