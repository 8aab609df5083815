"""How the tokens of a module's output can lie: like those of a known site, in named parts, or with no meaning.

A reading that an output does not fit raises Unfit, in the search for one and in every later pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extract.collect import TOKENS
from grounding.errors import BadInput
from grounding.models.base import Batch, GroundingModel, Site, TokenLayout
from grounding.models.hf.base import text_then_image
from grounding.models.layouts import image_only, text_only

GUESSES = ("1+image", "text+image", "image+text", "text+1+image", "1+image+text", "2+image+text")


class Unfit(BadInput):
    """An output whose shape is not the one that a reading is for."""


@dataclass(frozen=True)
class Reading:
    """One way to take an output. name: what ``=`` would say. to_tokens: of the tensor that was picked."""

    name: str
    streams: tuple[str, ...]
    layout: Callable[[Batch], TokenLayout]
    to_tokens: Callable[[Tensor], Tensor]
    like: Site | None = None


def like_site(site: Site) -> Reading:
    """Laid out like a site, where the outputs of both modules have the same shape but for channels."""
    return Reading(site.name, site.streams, site.layout, site.to_tokens, site)


def without_channels(shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
    """A shape with -1 for its channels: the second axis of a map ``[R, C, H, W]``, else the last."""
    axis = 1 if len(shape) == 4 else len(shape) - 1
    return tuple(-1 if place == axis else size for place, size in enumerate(shape))


def parse_parts(text: str) -> tuple[str | int, ...] | None:
    """``2+image+text`` as parts in order: streams, and numbers of tokens that mean nothing; None if it is not that."""
    parts: list[str | int] = []
    for part in text.replace(" ", "").split("+"):
        if part not in ("text", "image") and not re.fullmatch(r"[1-9]\d*", part):
            return None
        parts.append(part if part in ("text", "image") else int(part))
    streams = [part for part in parts if isinstance(part, str)]
    return tuple(parts) if streams and len(set(streams)) == len(streams) else None


class Rows:
    """Rows of a tensor ``[R, N, D]`` as those of the examples: one each, or one an image where the model runs so.

    tokens_first: the tensor is ``[N, R, D]``.
    """

    def __init__(self, model: GroundingModel, tokens_first: bool = False):
        self.model, self.tokens_first = model, tokens_first

    @property
    def one_image_each(self) -> bool:
        """Whether the model takes a game's candidates one by one."""
        return hasattr(type(self.model), "candidates")

    @property
    def images(self) -> Any:
        """The images of the present pass of such a model."""
        return self.model.candidates

    @property
    def cells(self) -> int | None:
        """Tokens of an image of such a model; None where images have their own numbers, or nobody knows."""
        return getattr(self.model, "cells", None)

    def states(self, output: Tensor) -> Tensor:
        """As ``[R, N, D]``; maps ``[R, C, H, W]`` in raster order."""
        if output.ndim == 4 and not self.tokens_first:
            return output.flatten(2).transpose(1, 2)
        if output.ndim != 3:
            raise Unfit(f"an output {list(output.shape)} has no axis of tokens")
        return output.transpose(0, 1) if self.tokens_first else output


def in_parts(model: GroundingModel, parts: tuple[str | int, ...], tokens_first: bool = False) -> Reading:
    """Text and image tokens one after the other, among tokens that mean nothing."""
    name, streams = "+".join(map(str, parts)), tuple(s for s in ("text", "image") if s in parts)
    rows = Rows(model, tokens_first)
    if not rows.one_image_each:
        canvas = _OnCanvas(rows, parts)
        return Reading(name, streams, canvas.layout, canvas.to_tokens)
    layouts: dict[tuple[str, ...], Any] = {("text",): text_only, ("image",): image_only}

    def to_tokens(output: Tensor) -> Tensor:
        return _one_image_a_row(rows.states(output), rows.images, parts, rows.cells)

    return Reading(name, streams, layouts.get(streams, text_then_image), to_tokens)


def all_tokens(model: GroundingModel, tokens_first: bool = False) -> Reading:
    """Every token of an example in order, meaning nothing; one where an output ``[R, D]`` has no axis of tokens."""
    kept = _Everything(Rows(model, tokens_first))
    return Reading(TOKENS, (), kept.layout, kept.to_tokens)


def slices_of(parts: tuple[str | int, ...], text: int, cells: int) -> tuple[dict[str, slice], int]:
    """Where the streams are among all tokens, and how many those are.

    >>> slices_of((1, "image", "text"), text=5, cells=16)
    ({'image': slice(1, 17, None), 'text': slice(17, 22, None)}, 22)
    """
    found, begin = {}, 0
    for part in parts:
        size = part if isinstance(part, int) else {"text": text, "image": cells}[part]
        if isinstance(part, str):
            found[part] = slice(begin, begin + size)
        begin += size
    return found, begin


def _one_image_a_row(states: Tensor, images: Any, parts: tuple[str | int, ...], cells: int | None) -> Tensor:
    """States of M images ``[M, N, D]``, or of B captions, as text of the example's own pass, then all its images."""
    if "image" in parts and cells is None:
        raise Unfit("it is not known where the tokens of an image lie")
    places, total = slices_of(parts, images.text_tokens, cells or 0)
    own, every = images.own, len(images.example)
    if states.shape[1] != total:
        raise Unfit(f"{states.shape[1]} tokens are not {total}")
    if len(states) != every and (len(states) != len(own) or "image" in parts):
        raise Unfit(f"{len(states)} rows are neither {len(own)} examples nor {every} images")
    kept = []
    if "text" in places:
        kept.append((states[own] if len(states) == every else states)[:, places["text"]])
    if "image" in places:
        kept.append(images.stack(states[:, places["image"]]).flatten(1, 2))
    return torch.cat(kept, dim=1)


class _OnCanvas:
    """Parts of the states of models that see an example in one row."""

    def __init__(self, rows: Rows, parts: tuple[str | int, ...]):
        self.rows, self.parts = rows, parts
        self._shape = (0, 0)

    def to_tokens(self, output: Tensor) -> Tensor:
        states = self.rows.states(output)
        self._shape = (states.shape[0], states.shape[1])
        return states

    def layout(self, batch: Batch) -> TokenLayout:
        """Of the states that ``to_tokens`` gave last."""
        places, total = slices_of(self.parts, batch.input_ids.shape[1], batch.grid[0] * batch.grid[1])
        if self._shape != (len(batch), total):
            raise Unfit(f"{list(self._shape)} rows and tokens are not {[len(batch), total]}")
        return TokenLayout(**places)


class _Everything:
    """All tokens, candidate after candidate where a row is an image."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self._shape = (0, 0)

    def to_tokens(self, output: Tensor) -> Tensor:
        states = output[:, None] if output.ndim == 2 else self.rows.states(output)
        if self.rows.one_image_each and len(states) == len(self.rows.images.example):
            images = self.rows.images
            if not images.real.all():
                raise BadInput(
                    "games of a batch have unequal numbers of candidates; accepted: equal, or --batch-size 1"
                )
            states = images.stack(states).flatten(1, 2)
        self._shape = (states.shape[0], states.shape[1])
        return states

    def layout(self, batch: Batch) -> TokenLayout:
        """Of the states that ``to_tokens`` gave last: as queries are, all of them."""
        if self._shape[0] != len(batch):
            raise Unfit(f"{self._shape[0]} rows are not {len(batch)} examples")
        return TokenLayout(query=slice(0, self._shape[1]))
