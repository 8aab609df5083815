"""What a batch should be answered with: the task's point, each phrase's boxes, and their maps over the canvas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from grounding.examples import ReferenceGame, Span
from grounding.models.answers import candidate_box_to_canvas, target_point
from grounding.models.base import Batch

TASK_SIGMA = 3.0
TASK_CUT = 1e-5


@dataclass
class Targets:
    """Truth of a batch, relative to each example's real canvas.

    points: float ``[B, 2]`` (x, y). boxes: float ``[K, 4]`` xyxy, all phrases concatenated; box_phrase ``[K]`` is the
    phrase (row of ``Batch.phrase_tokens``) and box_example ``[K]`` the example of each. candidates: int64 ``[B]``,
    number of images of a game, 0 for a spatial description. contrasted: bool ``[P, T]``, the tokens that contrastive
    alignment pulls to each phrase's boxes; None for the phrase's own (``Batch.phrase_tokens``).
    """

    points: Tensor
    boxes: Tensor
    box_phrase: Tensor
    box_example: Tensor
    candidates: Tensor
    contrasted: Tensor | None = None

    @property
    def has_task(self) -> Tensor:
        """bool ``[B]``: whether there is something to solve, which there is not with one candidate."""
        return self.candidates != 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on ``device``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory (called by DataLoader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})


def make_targets(batch: Batch, losses: str = "corrected") -> Targets:
    """Targets of a batch, from the annotations of its examples (CPU).

    losses: ``paper`` looks the contrasted tokens up as the originals do (``originals_tokens``).
    """
    boxes, phrases, owners, contrasted = [], [], [], []
    of_example = {row: {phrase.id: phrase for phrase in e.phrases} for row, e in enumerate(batch.examples)}
    for place, (row, phrase_id) in enumerate(zip(batch.phrase_example.tolist(), batch.phrase_ids, strict=True)):
        phrase = of_example[row][phrase_id]
        if losses == "paper":
            contrasted.append(originals_tokens(batch.offsets.numpy(), row, phrase.spans))
        for region in phrase.regions:
            count = len(batch.examples[row].images)
            boxes.append(candidate_box_to_canvas(region.box, phrase.image_index, count))
            phrases.append(place)
            owners.append(row)
    return Targets(
        points=torch.tensor([target_point(example) for example in batch.examples], dtype=torch.float32),
        boxes=torch.from_numpy(np.stack(boxes)) if boxes else torch.zeros(0, 4),
        box_phrase=torch.tensor(phrases, dtype=torch.int64),
        box_example=torch.tensor(owners, dtype=torch.int64),
        candidates=torch.tensor([len(e.images) if isinstance(e.task, ReferenceGame) else 0 for e in batch.examples]),
        contrasted=torch.from_numpy(np.stack(contrasted)) if contrasted else None,
    )


def originals_tokens(offsets: np.ndarray, row: int, spans: Sequence[Span]) -> np.ndarray:
    """Tokens of a phrase as MDETR's contrastive loss looks them up: bool ``[T]``.

    offsets: ``[B, T, 2]`` of the batch; row: the phrase's example. A span reaches from the token of its first
    character to that of its last. Where one of the two has none, the next two characters inwards are tried, but in
    the *first* example of the batch; where that finds nothing either, the span is left out.
    """
    chosen = np.zeros(offsets.shape[1], dtype=bool)
    for begin, end in spans:
        ends = []
        for inwards in ((begin, begin + 1, begin + 2), (end - 1, end - 2, end - 3)):
            tries = [_token_at(offsets[row if character == inwards[0] else 0], character) for character in inwards]
            ends.append(next((token for token in tries if token is not None), None))
        if None not in ends:
            chosen[ends[0] : ends[1] + 1] = True  # type: ignore[operator]
    return chosen


def _token_at(offsets: np.ndarray, character: int) -> int | None:
    found = np.flatnonzero((offsets[:, 0] <= character) & (character < offsets[:, 1]))
    return int(found[0]) if len(found) else None


def point_maps(points: Tensor, size: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Gaussian round each point, standard deviation 3 px, densities under 1e-5 cut, sum 1: ``[B, H, W]``.

    points: ``[B, 2]`` relative (x, y); size: ``[B, 2]`` real height and width in pixels of each canvas.
    """
    height, width = canvas
    centres = points * size.flip(1)
    column = torch.arange(width, device=points.device) - centres[:, :1]
    row = torch.arange(height, device=points.device) - centres[:, 1:]
    density = torch.exp(-(row[:, :, None] ** 2 + column[:, None, :] ** 2) / (2 * TASK_SIGMA**2))
    density = density / (2 * torch.pi * TASK_SIGMA**2)
    density = density.masked_fill(density < TASK_CUT, 0.0)
    return density / density.sum((1, 2), keepdim=True)


def box_maps(targets: Targets, phrases: int, size: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Uniform distribution over the union of each phrase's boxes: ``[P, H, W]``, zero for a phrase without boxes.

    Left, top, width and height are truncated to whole pixels, as in the study; every box keeps a pixel.
    """
    height, width = canvas
    scale = size[targets.box_example].flip(1).repeat(1, 2)  # width, height, width, height
    left, top, box_width, box_height = _left_top_width_height(targets.boxes * scale).floor().long().unbind(1)
    column = torch.arange(width, device=size.device)
    row = torch.arange(height, device=size.device)
    in_column = (column >= left[:, None]) & (column < (left + box_width.clamp(min=1))[:, None])
    in_row = (row >= top[:, None]) & (row < (top + box_height.clamp(min=1))[:, None])
    filled = (in_row[:, :, None] & in_column[:, None, :]).float()  # [K, H, W]
    maps = torch.zeros(phrases, height, width, device=size.device)
    maps.index_add_(0, targets.box_phrase, filled)
    maps.clamp_(max=1.0)
    return maps / maps.sum((1, 2), keepdim=True).clamp(min=1.0)


def _left_top_width_height(boxes_xyxy: Tensor) -> Tensor:
    return torch.cat([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], dim=1) + 1e-4  # 2.99999 is 3
