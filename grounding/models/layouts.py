"""Token layouts that several models have, and the states of modules that give more than them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from grounding.models.base import Batch, TokenLayout


def first(output: Any) -> Tensor:
    """The states of a module that gives them alone or before other things."""
    return output[0] if isinstance(output, tuple) else output


def image_only(batch: Batch) -> TokenLayout:
    """The image tokens and nothing else."""
    return TokenLayout(image=slice(0, batch.grid[0] * batch.grid[1]))


def text_only(batch: Batch) -> TokenLayout:
    """The caption's tokens and nothing else."""
    return TokenLayout(text=slice(0, batch.input_ids.shape[1]))
