"""Losses as functions of tensors: map divergence (ViLT-Aligner) and set prediction (MDETR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

CLASS_COST, BOX_COST, GIOU_COST = 1.0, 5.0, 2.0
NO_OBJECT_WEIGHT = 0.1
TEMPERATURE = 0.07


def map_divergence(target: Tensor, log_predicted: Tensor) -> Tensor:
    """KL(target || predicted) of each map: ``[M, H, W]`` twice -> ``[M]`` (arXiv 2309.02691, section 3)."""
    return torch.nn.functional.kl_div(log_predicted, target, reduction="none").sum((1, 2))


def mean_over_phrases(losses: Tensor, phrase_example: Tensor, phrase_weight: Tensor, examples: int) -> Tensor:
    """Mean over each example's phrases, then over examples; an example without phrases counts as 0.

    losses ``[P]``, phrase_example ``[P]``, phrase_weight ``[P]`` (0 leaves a phrase out) -> scalar.
    """
    total = losses.new_zeros(examples).index_add(0, phrase_example, losses * phrase_weight)
    count = losses.new_zeros(examples).index_add(0, phrase_example, phrase_weight)
    return (total / count.clamp(min=1.0)).mean()


@dataclass
class Matching:
    """Which query answers which box: rows of equal length. example, query index predictions; box indexes targets."""

    example: Tensor
    query: Tensor
    box: Tensor


@torch.no_grad()
def match(
    token_logits: Tensor, boxes_cxcywh: Tensor, target_boxes_xyxy: Tensor, positive_map: Tensor, box_example: Tensor
) -> Matching:
    """Hungarian matching (DETR, equation 1, with MDETR's soft-token cost).

    token_logits ``[B, Q, slots + 1]``, boxes_cxcywh ``[B, Q, 4]``, target boxes ``[K, 4]``, positive_map
    ``[K, slots + 1]``, box_example ``[K]``.
    """
    device = token_logits.device
    if not len(box_example):
        return Matching(*(torch.zeros(0, dtype=torch.int64, device=device) for _ in range(3)))
    owners = box_example.cpu().numpy()
    order = owners.argsort(kind="stable")
    counts = np.bincount(owners, minlength=len(boxes_cxcywh))
    place = np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)  # place of a box in its example
    slot = torch.full((len(counts), int(counts.max())), -1, device=boxes_cxcywh.device)
    slot[torch.from_numpy(owners[order]), torch.from_numpy(place)] = torch.from_numpy(order).to(slot)
    own_boxes, own_maps = target_boxes_xyxy[slot], positive_map[slot]  # [B, most boxes, ...]; -1 is never read
    probability = token_logits.softmax(-1)
    cost = -CLASS_COST * probability @ own_maps.transpose(1, 2)  # [B, Q, most boxes]
    cost += BOX_COST * torch.cdist(boxes_cxcywh, box_convert(own_boxes, "xyxy", "cxcywh"), p=1)
    cost -= GIOU_COST * _paired_giou(box_convert(boxes_cxcywh, "cxcywh", "xyxy"), own_boxes)
    table, slots = np.nan_to_num(cost.cpu().numpy()), slot.cpu().numpy()  # of NaN the losses tell, not the matching
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row, count in enumerate(counts):
        query, target = linear_sum_assignment(table[row, :, :count])
        for column, values in zip(found, ([row] * len(query), query, slots[row, target]), strict=True):
            column.extend(values)
    return Matching(*(torch.tensor(np.asarray(v, dtype=np.int64), device=device) for v in found))


def _paired_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU within each example: xyxy ``[B, Q, 4]``, ``[B, K, 4]`` -> ``[B, Q, K]``."""
    return torch.vmap(generalized_box_iou)(first, second)


def soft_token_loss(
    token_logits: Tensor, positive_map: Tensor, matching: Matching, boxes: float, annotated: Tensor | None = None
) -> Tensor:
    """Soft token prediction (MDETR, section 2.2): cross-entropy with the phrase's tokens, or with no object.

    annotated: bool ``[B]``, examples that count; by default all, so that one without annotation has no objects.
    """
    log_probability = token_logits.log_softmax(-1)
    target = torch.zeros_like(log_probability)
    target[..., -1] = 1.0
    weight = torch.full_like(log_probability[..., 0], NO_OBJECT_WEIGHT)
    target[matching.example, matching.query] = positive_map[matching.box]
    weight[matching.example, matching.query] = 1.0
    if annotated is not None:
        weight = weight * annotated[:, None]
    return (-(target * log_probability).sum(-1) * weight).sum() / boxes


def box_losses(
    boxes_cxcywh: Tensor, target_boxes_xyxy: Tensor, matching: Matching, boxes: float
) -> tuple[Tensor, Tensor]:
    """L1 and generalised IoU losses of matched boxes, each over the number of boxes."""
    predicted = boxes_cxcywh[matching.example, matching.query]
    truth = target_boxes_xyxy[matching.box]
    distance = (predicted - box_convert(truth, "xyxy", "cxcywh")).abs().sum() / boxes
    overlap = generalized_box_iou(box_convert(predicted, "cxcywh", "xyxy"), truth).diagonal()
    return distance, (1 - overlap).sum() / boxes


def contrastive_alignment_loss(
    queries: Tensor, tokens: Tensor, token_map: Tensor, matching: Matching, boxes: float
) -> Tensor:
    """Contrastive alignment of queries and text tokens (MDETR, equations 1 and 2).

    queries ``[B, Q, c]``, tokens ``[B, T, c]``, token_map: bool ``[K, T]`` tokens of each box's phrase.
    """
    logits = queries.float() @ tokens.float().transpose(1, 2) / TEMPERATURE  # [B, Q, T]
    positive = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    positive[matching.example, matching.query] = token_map[matching.box]
    attraction = -logits.masked_fill(~positive, 0.0)
    total = logits.new_zeros(())
    for axis in (2, 1):  # boxes to tokens, tokens to boxes
        own = positive.sum(axis)
        each = attraction.sum(axis) / own.clamp(min=1) + logits.logsumexp(axis)
        total = total + each.masked_fill(own == 0, 0.0).sum()
    return total / 2 / boxes
