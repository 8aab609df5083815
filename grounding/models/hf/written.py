"""Boxes that a decoder writes as location tokens: which rows of it ask for what, and what their logits say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grounding.models.base import Batch
from grounding.models.hf.boxes import NOTHING, slots_of
from grounding.models.hf.images import Candidates

BOXES = 3  # most boxes that are written for a phrase


@dataclass(frozen=True)
class WrittenBoxes:
    """The R rows of a decoder that write boxes: every phrase, then every caption's task words, in each of its images.

    asked: int64 ``[R]``, among P + B. image: ``[R]``, among M. slot: ``[R]``, place among what is asked of an example,
    0 the task words. start: ``[R]``, the position whose logits are the first coordinate's. slots: most of an example.
    images: M.
    """

    asked: Tensor
    image: Tensor
    slot: Tensor
    start: Tensor
    slots: int
    images: int

    @classmethod
    def of(cls, batch: Batch, candidates: Candidates, lengths: Sequence[int]) -> WrittenBoxes:
        """lengths: tokens of each of the P + B prefixes, after which the locations follow."""
        device = candidates.example.device
        owner = batch.asked_examples
        asked, image = (owner[:, None] == candidates.example).nonzero().unbind(1)
        start = torch.tensor(lengths, device=device)[asked] - 1
        return cls(asked, image, slots_of(batch)[asked], start, cls.slots_of(batch), len(candidates.images))

    @staticmethod
    def slots_of(batch: Batch) -> int:
        """Most phrases of an example, and the task words."""
        return 1 + int(torch.bincount(batch.phrase_example, minlength=len(batch)).max())

    def begin(self, states: Tensor) -> Tensor:
        """States ``[rows, L, ...]`` -> those that write the first coordinate of each box: ``[R, BOXES, ...]``."""
        places = self.start[:, None] + 4 * torch.arange(BOXES, device=states.device)
        return states[torch.arange(len(places), device=states.device)[:, None], places]

    def place(self, values: Tensor) -> Tensor:
        """Values ``[R, BOXES, ...]`` -> ``[M, slots, BOXES, ...]``, zero where nothing is asked."""
        placed = values.new_zeros(self.images, self.slots, *values.shape[1:])
        placed[self.image, self.slot] = values
        return placed


def box_scores(logits: Tensor, locations: Tensor) -> tuple[Tensor, Tensor]:
    """What a decoder writes, from its logits ``[R, 4 * BOXES, V]`` over all tokens, of which ``locations`` are places.

    Gives the likeliest place of each coordinate, int64 ``[R, BOXES, 4]``, and each box's log-odds ``[R, BOXES]``. Its
    probability is the geometric mean of its coordinates' among places, times that of all boxes up to it that places
    follow at all. NOTHING from the first box on, the very first excepted, that another token is likelier than.
    """
    logs = logits.log_softmax(-1).unflatten(1, (-1, 4))  # [R, BOXES, 4, V]
    placed = logs[..., locations]
    best, bins = placed.max(-1)
    any_place = placed.logsumexp(-1)  # [R, BOXES, 4]
    sure = (best - any_place).mean(-1) + any_place[..., 0].cumsum(1)
    sure = sure.clamp(max=-1e-6)
    odds = (sure - torch.log(-torch.expm1(sure))).clamp(min=NOTHING + 1)
    stops = (logs[..., 0, :].amax(-1) > best[..., 0]).int()
    stops[:, 0] = 0
    return bins, odds.masked_fill(stops.cumsum(1) > 0, NOTHING)
