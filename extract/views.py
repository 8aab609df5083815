"""What is kept of a site: pure functions from states and attention to phrase, region and attention rows.

A mean over tokens and RoIAlign's mean are both linear in the states, so each is a row of weights over the
tokens; the weights are computed once a batch, and each site costs one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from grounding.models.attention import attention_weights
from grounding.models.base import Batch

ROI_SIZE, ROI_SAMPLES = 3, 2


def candidate_grid(batch: Batch, b: int) -> tuple[float, float]:
    """Image tokens that one candidate of example b covers: (rows, columns), fractions included.

    Candidate i covers grid rows ``i * rows`` to ``(i + 1) * rows``; the rest of the grid is padding.
    """
    height, width = batch.valid[b].tolist()
    rows = batch.grid[0] * height / batch.images.shape[-2] / len(batch.examples[b].images)
    return rows, batch.grid[1] * width / batch.images.shape[-1]


def valid_grid(batch: Batch, b: int) -> tuple[int, int]:
    """Rows and columns of image tokens that hold any real pixel of example b."""
    rows, columns = candidate_grid(batch, b)
    return _cells(rows * len(batch.examples[b].images)), _cells(columns)


def region_weights(batch: Batch, example: Tensor, image_index: Tensor, boxes: Tensor) -> Tensor:
    """Weights of image tokens in the mean of RoIAlign (He et al. 2017, arXiv 1703.06870): fp32 ``[R, cells]``.

    example, image_index: int64 ``[R]``; boxes: ``[R, 4]`` xyxy relative to their own candidate; rows sum to one.
    torchvision's ``roi_align`` (aligned, 3 x 3 bins, 2 x 2 samples each) of the identity map gives them exactly.
    Each candidate is sampled on its own grid, so a region at its edge takes nothing from its neighbour; where a
    candidate is not a whole number of rows high, the example's whole grid is sampled instead.
    """
    weights = torch.zeros(len(boxes), batch.grid[0] * batch.grid[1])
    groups: dict[tuple[float, float, int], list[int]] = {}
    for b, one in enumerate(batch.examples):
        groups.setdefault((*candidate_grid(batch, b), len(one.images)), []).append(b)
    for (rows, columns, images), members in groups.items():
        chosen = torch.isin(example, torch.tensor(members)).nonzero()[:, 0]
        index = image_index[chosen]
        places = boxes[chosen].float() * torch.tensor([columns, rows, columns, rows])
        first_row, height, width = torch.zeros_like(index), _cells(rows), _cells(columns)
        if _whole(rows):
            first_row = index * height
        else:
            places[:, 1::2] += index[:, None] * rows
            height = _cells(rows * images)
        cell = torch.arange(height)[:, None] * batch.grid[1] + torch.arange(width)
        target = first_row[:, None] * batch.grid[1] + cell.flatten()
        weights[chosen[:, None], target] = _roi_means(places, height, width)
    return weights


def _roi_means(boxes: Tensor, height: int, width: int) -> Tensor:
    """RoIAlign means of boxes ``[R, 4]`` in cells, as weights ``[R, height * width]``."""
    identity = torch.eye(height * width).view(1, -1, height, width)
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    bins = roi_align(identity, rois, ROI_SIZE, spatial_scale=1.0, sampling_ratio=ROI_SAMPLES, aligned=True)
    return bins.mean((2, 3))


def pool(states: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of tokens: states ``[B, N, D]``, weights fp32 ``[B, K, N]`` -> fp32 ``[B, K, D]``."""
    return torch.bmm(weights, states.float())


def attention_rows(
    query: Tensor, key: Tensor, bias: Tensor | None, rows: Tensor, keys: slice, mean: Tensor | None = None
) -> Tensor:
    """Attention of some query rows to some keys, per head: fp32 ``[B, S, keys, heads]`` (``[B, K, ...]`` with mean).

    query ``[B, heads, N, d]``, key ``[B, heads, M, d]``, bias broadcastable to ``[B, heads, N, M]``;
    rows: int64 ``[B, S]``, the rows wanted; mean: fp32 ``[B, K, S]``, weights that average the S rows.
    The softmax runs over all M keys: rows over the kept keys sum to at most one, the rest is what the phrase
    gives to other tokens, and is not redistributed.
    """
    _, heads, _, width = query.shape
    index = rows[:, None, :, None]
    chosen = query.gather(2, index.expand(-1, heads, -1, width))
    if bias is not None and bias.shape[-2] != 1:
        bias = bias.expand(len(rows), *bias.shape[1:])
        bias = bias.gather(2, index.expand(-1, bias.shape[1], -1, bias.shape[-1]))
    weights = attention_weights(chosen, key.contiguous(), bias)[..., keys]  # a strided key costs twice the time
    if mean is not None:
        weights = mean[:, None] @ weights
    return weights.permute(0, 2, 3, 1)


def attention_back(
    query: Tensor, key: Tensor, bias: Tensor | None, cells: slice, tokens: Tensor, mean: Tensor
) -> Tensor:
    """Attention of each image cell to a phrase, per head: fp32 ``[B, K, cells, heads]``.

    query ``[B, heads, N, d]``, key ``[B, heads, M, d]``, bias broadcastable to ``[B, heads, N, M]``; cells: rows of the
    image; tokens: int64 ``[B, S]``, the keys in any phrase; mean: fp32 ``[B, K, S]``, above 0 where token s is phrase
    k's. What a cell gives to the phrase's tokens is summed: the rest up to one goes to other tokens.
    """
    if bias is not None and bias.shape[-2] != 1:
        bias = bias[..., cells, :]
    weights = attention_weights(query[:, :, cells].contiguous(), key.contiguous(), bias)  # [B, heads, cells, M]
    index = tokens[:, None, None, :].expand(-1, *weights.shape[1:3], -1)
    return torch.einsum("bhcs,bks->bkch", weights.gather(3, index), (mean > 0).float())


def best_queries(boxes: Tensor, regions: Tensor, example: Tensor) -> Tensor:
    """The query whose box overlaps each region most by IoU; the first of equals: int64 ``[R]``.

    boxes: ``[B, Q, 4]`` and regions: ``[R, 4]``, xyxy relative to the real canvas; example: int64 ``[R]``.
    """
    overlap = box_iou(regions.float(), boxes.float().flatten(0, 1)).unflatten(1, boxes.shape[:2])
    return overlap[torch.arange(len(regions), device=regions.device), example].argmax(1)


def canvas_boxes(boxes: Tensor, image_index: Tensor, images: Sequence[int]) -> Tensor:
    """Boxes ``[R, 4]`` relative to candidate ``image_index [R]`` of ``images[r]``, on the stacked canvas."""
    count = torch.tensor(images, dtype=boxes.dtype)
    placed = boxes.clone()
    placed[:, 1::2] = (boxes[:, 1::2] + image_index[:, None]) / count[:, None]
    return placed


def _whole(rows: float) -> bool:
    return abs(rows - round(rows)) < 1e-6


def _cells(length: float) -> int:
    return math.ceil(length - 1e-6)
