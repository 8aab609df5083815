"""For models that read images of any shape: a game's candidates are squares, a single image keeps its own shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.examples import Example, ReferenceGame
from grounding.images import read_image, resized
from grounding.models.base import Batch
from grounding.models.hf.images import Candidates
from grounding.models.inputs import Preprocessor


@dataclass(frozen=True)
class NativePreprocessor(Preprocessor):
    """Single images are resized by the rule of Qwen's processor: sides that are multiples of ``multiple``, the shape as
    it was, ``least`` to ``most`` pixels in all.
    """

    least: int = 1
    most: int = 1

    def canvas(self, example: Example) -> np.ndarray:
        """As ``Preprocessor.canvas``. Raises BadInput for an image whose sides differ by more than 200 times."""
        if isinstance(example.task, ReferenceGame):
            return super().canvas(example)
        pixels = read_image(example.images[0])
        try:
            height, width = native_size(pixels.shape[0], pixels.shape[1], self.multiple, self.least, self.most)
        except ValueError as error:
            raise BadInput(f"example {example.id!r}: {error}") from None
        return resized(pixels, height, width, self.resample)


def native_size(height: int, width: int, multiple: int, least: int, most: int) -> tuple[int, int]:
    """Height and width that Qwen's processor gives an image. Raises ValueError for one that is too narrow."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    return smart_resize(height, width, factor=multiple, min_pixels=least, max_pixels=most)


@dataclass(frozen=True)
class NativeCandidates(Candidates):
    """Images of several sizes, padded to the largest rows and columns: ``images`` ``[M, 3, H, W]``.

    seen: as there; the places of an image token are in raster order over the largest grid, R rows and C columns.
    place: int64 ``[M, L]``, where on the canvas each of them is. sizes: int64 ``[M, 2]``, rows and columns of each
    image. canvas: rows and columns of the batch's canvas.
    """

    place: Tensor
    sizes: Tensor
    canvas: tuple[int, int]

    @classmethod
    def of(cls, batch: Batch, size: int) -> NativeCandidates:
        """Take a batch's canvases apart; ``size``: pixels along the side of an image token."""
        device = batch.valid.device
        games = [isinstance(example.task, ReferenceGame) for example in batch.examples]
        numbers = [len(example.images) if game else 1 for example, game in zip(batch.examples, games, strict=True)]
        counts = torch.tensor(numbers, device=device)
        real = torch.arange(max(numbers), device=device) < counts[:, None]
        example, candidate = real.nonzero().unbind(1)
        each = batch.valid // size
        each[:, 0] //= counts
        sizes = each[example]  # [M, 2]
        rows, columns = (int(side) for side in sizes.amax(0))
        images = batch.images.new_zeros(len(example), 3, rows * size, columns * size)
        wanted = zip(example.tolist(), candidate.tolist(), (sizes * size).tolist(), strict=True)
        for m, (owner, number, (height, width)) in enumerate(wanted):
            images[m, :, :height, :width] = batch.images[owner, :, number * height : (number + 1) * height, :width]
        row, column = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
        seen = (row < sizes[:, :1, None]) & (column < sizes[:, 1:, None])  # [M, R, C]
        place = (candidate * sizes[:, 0])[:, None, None] * batch.grid[1] + row * batch.grid[1] + column
        own = torch.tensor([e.target_index for e in batch.examples], device=device)
        return cls(
            images, example, real, counts.cumsum(0) - counts + own, own, batch.input_ids.shape[1], seen.flatten(1),
            place.flatten(1), sizes, batch.grid,
        )  # fmt: skip

    def on_canvas(self, states: Tensor) -> Tensor:
        """Image tokens ``[M, L, ...]`` -> those of the canvas, zero where there is none."""
        canvas = states.new_zeros(len(self.own), self.canvas[0] * self.canvas[1], *states.shape[2:])
        owner = self.example[:, None].expand_as(self.place)
        canvas[owner[self.seen], self.place[self.seen]] = states[self.seen]
        return canvas

    def spread(self, maps: Tensor, owner: Tensor, fill: float) -> Tensor:
        """Maps ``[A, N, L]`` -> on the canvases of their examples."""
        canvas = maps.new_full((len(maps), self.canvas[0] * self.canvas[1]), fill)
        place, seen = self.stack(self.place)[owner], self.stack(self.seen)[owner]  # [A, N, L]
        row = torch.arange(len(maps), device=maps.device)[:, None, None].expand_as(place)
        canvas[row[seen], place[seen]] = maps[seen]
        return canvas

    def _own_on_canvas(self, cells: Tensor, fill: float) -> Tensor:
        batch, heads, _, width = cells.shape
        canvas = cells.new_full((batch, self.canvas[0] * self.canvas[1], heads, width), fill)
        place, seen = self.place[self.own], self.seen[self.own]
        owner = torch.arange(batch, device=cells.device)[:, None].expand_as(place)
        canvas[owner[seen], place[seen]] = cells.transpose(1, 2)[seen]
        return canvas.transpose(1, 2)
