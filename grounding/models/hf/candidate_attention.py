"""Attention of queries to images, of a pass over each candidate, as that of one example over its whole canvas."""

from __future__ import annotations

import torch
from torch import Tensor

from grounding.models.hf.images import Candidates


def stacked_attention(
    candidates: Candidates, query: Tensor, key: Tensor, bias: Tensor | None, image: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of M images as those of B examples; a query sees the keys of its own candidate alone.

    query: ``[M, heads, Q, d]``. key: ``[M, heads, L, d]``, of which ``image`` are image tokens. bias: additive,
    broadcastable to ``[M, heads, Q, L]``, or None. Gives ``[B, heads, N * Q, d]``, ``[B, heads, N * L, d]`` with the
    image tokens of all candidates first, and a bias for them that is -inf between candidates.
    """
    batch, most = candidates.real.shape
    places = torch.arange(key.shape[2], device=key.device)
    tokens = places[image]
    order = torch.cat([tokens, places[~torch.isin(places, tokens)]])
    bias = key.new_zeros(1, 1, 1, 1) if bias is None else bias
    bias = bias.expand(len(key), -1, query.shape[2], key.shape[2])[..., order]
    blocks = key.new_full((batch, bias.shape[1], most, query.shape[2], most, key.shape[2]), -torch.inf)
    for n, block in enumerate(candidates.stack(bias).unbind(1)):
        blocks[:, :, n, :, n] = block
    keys = candidates.stack(key[:, :, order]).transpose(1, 2)  # [B, heads, N, L, d]
    sizes = [len(tokens), len(order) - len(tokens)]
    return (
        candidates.stack(query).transpose(1, 2).flatten(2, 3),
        torch.cat([part.flatten(2, 3) for part in keys.split(sizes, dim=3)], dim=2),
        torch.cat([part.flatten(3, 4) for part in blocks.flatten(2, 3).split(sizes, dim=4)], dim=3),
    )
