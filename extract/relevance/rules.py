"""How relevance is carried from one attention layer to the next: pure functions of attention maps.

Rollout: Abnar and Zuidema (2020), arXiv 2005.00928. Gradient-weighted rules for self-attention and for attention to
another modality: Chefer, Gur and Wolf (2021), arXiv 2103.15679, whose equations are numbered below.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def weighted(attention: Tensor, gradient: Tensor) -> Tensor:
    """Attention weighted by the positive part of its gradient's product, head by head (eq. 5, before the mean).

    Both ``[B, heads, N, M]``.
    """
    return (attention * gradient).clamp(min=0)


def normalised(carried: Tensor) -> Tensor:
    """Relevance ``[..., N, N]`` with what a token got from others summing to one, itself apart (eq. 8 and 9)."""
    itself = torch.eye(carried.shape[-1], dtype=carried.dtype, device=carried.device)
    others = carried - itself
    total = others.sum(-1, keepdim=True)
    return torch.where(total > 0, others / total, 0.0) + itself


@dataclass
class Rollout:
    """Attention rollout: each sub-layer mixes what it attends to with what it is added to, half and half.

    joint: ``[B, N, N]``, of the joint tokens in the input's, at first the identity. across: ``[B, Q, N]``, of a
    decoder's queries in them; None before the first layer, where they hold nothing of the input. (Abnar and Zuidema
    have no decoder; the rule is the same.)
    """

    joint: Tensor
    across: Tensor | None = None

    def attend(self, attention: Tensor) -> None:
        """Self-attention of the joint tokens, ``[B, N, N]``, mean over heads."""
        self.joint = (attention @ self.joint + self.joint) / 2

    def decode(self, among: Tensor, to_joint: Tensor) -> None:
        """A decoder layer: the queries' self-attention ``[B, Q, Q]``, then theirs to the joint tokens ``[B, Q, N]``."""
        before = torch.zeros_like(to_joint) if self.across is None else self.across
        mixed = (among @ before + before) / 2
        self.across = (to_joint @ self.joint + mixed) / 2


@dataclass
class GradientRules:
    """The rules of Chefer, Gur and Wolf; attention is ``weighted``, mean over heads (eq. 5).

    joint ``[B, N, N]`` and queries ``[B, Q, Q]`` begin as the identity, across ``[B, Q, N]`` as zeros (section 3.1);
    the latter two are None before the first decoder layer.
    """

    joint: Tensor
    queries: Tensor | None = None
    across: Tensor | None = None

    def attend(self, attention: Tensor) -> None:
        """Self-attention of the joint tokens (eq. 6)."""
        self.joint = self.joint + attention @ self.joint

    def decode(self, among: Tensor, to_joint: Tensor) -> None:
        """A decoder layer: the queries' self-attention (eq. 6, 7), then theirs to the joint tokens (eq. 10)."""
        queries = identity_like(among) if self.queries is None else self.queries
        across = torch.zeros_like(to_joint) if self.across is None else self.across
        across = across + among @ across
        queries = queries + among @ queries
        self.across = across + normalised(queries).transpose(-1, -2) @ to_joint @ normalised(self.joint)
        self.queries = queries


def identity_like(square: Tensor) -> Tensor:
    """Identity matrices of the shape of ``[B, N, N]``."""
    return torch.eye(square.shape[-1], dtype=square.dtype, device=square.device).expand_as(square)
