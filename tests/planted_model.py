"""A model whose circuit is known: a colour word finds the cell of its colour, and the candidate that holds it.

Channel 0 of a letter: 1 for ``r``, -1 for ``b``; of a cell: 1 for red, -1 for blue; 0 for all else. At ``block.0``
nothing has met. Then every letter looks at all cells, through taps, and takes the place that it finds into channels 2
and 3; every cell multiplies its colour with that of the text, into channel 1. At ``block.1`` both are there, and all
that is read afterwards: the sum of channel 1 over a candidate's cells is its score, and a phrase is put where its
letters are. Channels from 4 on hold noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny_model import CELL, collate
from torch import Tensor, nn

from grounding.examples import Example, Phrase, PhrasePrediction, Prediction, ReferenceGame, Region
from grounding.models.answers import answer, canvas_boxes_to_candidates
from grounding.models.attention import AttentionTaps
from grounding.models.base import Batch, GroundingModel, ModelConfig, Output, Site, TokenLayout

SIDE = 4 * CELL  # pixels of a candidate: 4 x 4 cells
WIDTH = 12
COLOURS = {"r": (255, 0, 0), "b": (0, 0, 255)}
GREY = 128


@dataclass
class PlantedOutput(Output):
    """scores: ``[B, N]``."""

    scores: Tensor


class Look(nn.Module):
    """Attention of letters to cells by colour; ``taps`` are its places for hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = AttentionTaps(1)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """``[B, T, D]`` and ``[B, cells, D]`` -> places ``[B, T, 2]``."""
        return self.taps(20 * text[..., :1], image[..., :1], image[..., 2:4], None)


class Planted(GroundingModel):
    """See the module."""

    predicts = "boxes"

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig()
        self.block0, self.block1, self.look = nn.Identity(), nn.Identity(), Look()
        generator = torch.Generator().manual_seed(0)
        self.letters = nn.Parameter(torch.randn(128, WIDTH, generator=generator))
        self.shades = nn.Parameter(torch.randn(3, WIDTH, generator=generator))

    def preprocess(self, examples: Sequence[Example]) -> Batch:
        """One token a letter, a class token first."""
        return collate(examples, SIDE)

    def forward(self, batch: Batch) -> PlantedOutput:
        """See the module."""
        text = self.letters[batch.input_ids].clone()
        text[..., :4] = 0
        text[..., 0] = (batch.input_ids == ord("r")).float() - (batch.input_ids == ord("b")).float()
        rows, columns = batch.grid
        pixels = batch.images.float().unflatten(3, (columns, CELL)).unflatten(2, (rows, CELL)).mean((3, 5)) / 255
        pixels = pixels.flatten(2).transpose(1, 2)  # [B, cells, 3]
        image = (pixels - 0.5) @ self.shades
        image[..., :4] = 0
        image[..., 0] = (pixels[..., 0] > 0.9).float() - (pixels[..., 2] > 0.9).float()
        place = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        image[..., 2:4] = torch.stack([place[1] / columns, place[0] / rows], -1).flatten(0, 1)
        states = self.block0(torch.cat([text, image], dim=1))
        text, image = (part.clone() for part in states.split([text.shape[1], image.shape[1]], dim=1))
        text[..., 2:4] = self.look(text, image) * text[..., :1].abs()
        image[..., 1] = image[..., 0] * text[..., 0].sum(1, keepdim=True)
        text, image = self.block1(torch.cat([text, image], dim=1)).split([text.shape[1], image.shape[1]], dim=1)
        scores = image[..., 1].unflatten(1, (len(batch.examples[0].images), -1)).sum(2)
        height = (scores.argmax(1) + 0.5) / scores.shape[1]
        words = batch.phrase_tokens.to(text.dtype)
        where = torch.einsum("pt,ptd->pd", words, text[batch.phrase_example, :, 2:4]) / words.sum(1, keepdim=True)
        return PlantedOutput(torch.stack([torch.full_like(height, 0.5), height], 1), where, scores)

    def candidate_scores(self, batch: Batch, output: PlantedOutput) -> Tensor:
        """The scores."""
        return output.scores

    def sites(self) -> list[Site]:
        """Before and after the circuit."""
        return [
            Site("block.0", "block0", "block", 0, ("text", "image"), WIDTH, layout),
            Site("block.1", "block1", "block", 1, ("text", "image"), WIDTH, layout, attention_path="look",
                 attention_layout=looking),
        ]  # fmt: skip

    def predict(self, batch: Batch, output: PlantedOutput) -> list[Prediction]:
        """The best candidate; for each phrase a box of one cell."""
        predictions = []
        for b, example in enumerate(batch.examples):
            phrases, size = [], np.array([1, 1 / len(example.images)]) / 8
            for p in np.flatnonzero(batch.phrase_example.numpy() == b):
                middle = output.phrase_point[p].numpy()
                boxes = np.concatenate([middle - size, middle + size])[None].astype(np.float32)
                own, index = canvas_boxes_to_candidates(boxes, len(example.images))
                phrases.append(PhrasePrediction(batch.phrase_ids[p], own, index, np.ones(1, dtype=np.float32)))
            x, y = output.task_point[b].tolist()
            predictions.append(answer(example, (x, y), 0.0, tuple(phrases)))
        return predictions


def layout(batch: Batch) -> TokenLayout:
    """Letters, then cells."""
    tokens = batch.input_ids.shape[1]
    return TokenLayout(text=slice(0, tokens), image=slice(tokens, tokens + batch.grid[0] * batch.grid[1]))


def looking(batch: Batch) -> TokenLayout:
    """Queries are letters, keys are cells."""
    return TokenLayout(text=slice(0, batch.input_ids.shape[1]), image=slice(0, batch.grid[0] * batch.grid[1]))


def planted_games(count: int = 40, seed: int = 0, **changes: Any) -> list[Example]:
    """Games of three candidates, of which one has a red cell and another a blue one; the caption names red."""
    random = np.random.default_rng(seed)
    games = []
    for number in range(count):
        places = random.permutation(3)
        images, regions = [], {}
        for k in range(3):
            pixels = random.integers(GREY - 40, GREY + 40, (SIDE, SIDE, 3), dtype=np.uint8)
            row, column = random.integers(4, size=2)
            if k in places[:2]:
                colour = "r" if k == places[0] else "b"
                pixels[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)] = COLOURS[colour]
                regions[colour] = (column / 4, row / 4, (column + 1) / 4, (row + 1) / 4)
            images.append(pixels)
        target = int(places[0])
        phrases = (Phrase(f"{number}/0", "thing", ((3, 4),), (Region(regions["r"]),), target),)
        names = {"image": f"image-{seed}-{number}", "caption": f"caption-{seed}-{number}"}
        games.append(
            Example(f"game-{seed}-{number}", "dev", tuple(images), "zz r zz", phrases, ReferenceGame(target), names)
        )
    return games
