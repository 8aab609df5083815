"""Images for models that see one square at a time: canvases of squares, and the squares as pixel values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from grounding.examples import Example
from grounding.images import read_image
from grounding.models.base import Batch
from grounding.models.inputs import Preprocessor


@dataclass(frozen=True)
class SquarePreprocessor(Preprocessor):
    """Every image, a game's candidate or not, becomes a square of ``candidate_size``; see ``Preprocessor``.

    cells: image tokens along a side. Where the side is no whole number of patches (384 pixels, patches of 14) the model
    sees nothing of the last pixels; tokens are then taken to share the side equally, at most one patch off.
    """

    cells: int = 1
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def canvas(self, example: Example) -> np.ndarray:
        """Squares stacked along the height, uint8 ``[N * size, size, 3]``."""
        return np.concatenate(
            [read_image(source, self.candidate_size, resample=self.resample) for source in example.images]
        )

    def collate(self, items: list) -> Batch:  # type: ignore[override]
        """As ``Preprocessor.collate``, with the model's own grid."""
        batch = super().collate(items)
        return replace(batch, grid=(batch.images.shape[-2] // self.candidate_size * self.cells, self.cells))


@dataclass(frozen=True)
class Candidates:
    """The M images of a batch, one after the other, and where they belong.

    images: uint8 ``[M, 3, S, S]``. example: int64 ``[M]``. real: bool ``[B, N]``, the candidates that there are. own:
    int64 ``[B]``, among the M the image that an example's phrases are annotated in: a game's target.
    own_place: int64 ``[B]``, its place among the candidates. text_tokens: T of the batch. seen: bool ``[M, L]``, which
    of the L places for image tokens an image fills: squares fill them all.
    """

    images: Tensor
    example: Tensor
    real: Tensor
    own: Tensor
    own_place: Tensor
    text_tokens: int
    seen: Tensor

    @classmethod
    def of(cls, batch: Batch, size: int) -> Candidates:
        """Take a batch's canvases apart into squares of ``size`` pixels."""
        most = batch.images.shape[-2] // size
        counts = batch.valid[:, 0] // size
        real = torch.arange(most, device=counts.device) < counts[:, None]
        squares = batch.images.unflatten(2, (most, size)).transpose(1, 2)  # [B, N, 3, S, S]
        place = torch.tensor([example.target_index for example in batch.examples], device=counts.device)
        first = counts.cumsum(0) - counts
        images, example = squares[real], real.nonzero()[:, 0]
        seen = torch.ones(len(images), batch.grid[1] ** 2, dtype=torch.bool, device=images.device)
        return cls(images, example, real, first + place, place, batch.input_ids.shape[1], seen)

    def showing(self, place: int) -> Candidates:
        """The same with candidate ``place`` (the last of a game that has fewer) for every example's own."""
        places = (self.real.sum(1) - 1).clamp(max=place)
        return replace(self, own=self.own - self.own_place + places, own_place=places)

    def stack(self, states: Tensor) -> Tensor:
        """Per image ``[M, ...]`` -> per example and candidate ``[B, N, ...]``, zero where there is none."""
        stacked = states.new_zeros(*self.real.shape, *states.shape[1:])
        stacked[self.real] = states
        return stacked

    def on_canvas(self, states: Tensor) -> Tensor:
        """Image tokens ``[M, L, ...]`` -> those of the canvas in raster order ``[B, rows * columns, ...]``."""
        return self.stack(states).flatten(1, 2)

    def spread(self, maps: Tensor, owner: Tensor, fill: float) -> Tensor:
        """Maps ``[A, N, L]`` of the examples ``owner`` -> on their canvases ``[A, rows * columns]``, else ``fill``."""
        return maps.masked_fill(~self.real[owner][..., None], fill).flatten(1)

    def own_keys(self, keys: Tensor, image: slice, fill: float = 0.0) -> Tensor:
        """Keys of the pass over an example's own image, their image tokens where they are on the canvas.

        keys: ``[M, heads, tokens, d]`` of which ``image`` are the image tokens -> ``[B, heads, canvas + others, d]``;
        the other candidates' places hold ``fill``.
        """
        keys = keys[self.own]
        begin, end, _ = image.indices(keys.shape[2])
        before, after = keys[:, :, :begin], keys[:, :, end:]
        return torch.cat([self._own_on_canvas(keys[:, :, begin:end], fill), before, after], dim=2)

    def _own_on_canvas(self, cells: Tensor, fill: float) -> Tensor:
        """Image tokens ``[B, heads, L, d]`` of the own images -> ``[B, heads, rows * columns, d]``."""
        batch, heads, count, width = cells.shape
        canvas = cells.new_full((batch, self.real.shape[1], heads, count, width), fill)
        canvas[torch.arange(batch, device=cells.device), self.own_place] = cells
        return canvas.transpose(1, 2).flatten(2, 3)
