"""Precision and recall of ranked boxes, as detections: each truth box may be found once.

A ranked box is right if it overlaps (IoU of at least one half) a truth box of its phrase that no better-ranked box
found; it finds the one of those that it overlaps most. That is the matching of COCO (Lin et al. 2014; ``COCOeval``);
PASCAL VOC calls a box wrong whose truth box of the largest overlap was found before, though it overlaps another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from grounding.errors import BadInput
from grounding.metrics.boxes import HIT_IOU, as_boxes, hits
from grounding.metrics.measure import PhraseItem
from grounding.metrics.phrase_ious import stacked_boxes, truth_boxes


def right_boxes(
    predicted: np.ndarray | Tensor,
    truth: np.ndarray | Tensor,
    counts: np.ndarray | Tensor,
    other_image: np.ndarray | Tensor | None = None,
    threshold: float = HIT_IOU,
) -> Tensor:
    """Which ranked boxes are right, bool ``[P, K]``, best first in each row.

    predicted: ``[P, K, 4]`` and truth: ``[P, G, 4]`` (``pad_boxes``), xyxy, relative; counts: ``[P]``, how many truth
    boxes are no padding. other_image: bool ``[P, K]``, True where a box is in another candidate than the truth.
    """
    predicted, truth = as_boxes(predicted), as_boxes(truth)
    truth, counts = truth.to(predicted.device), torch.as_tensor(counts, device=predicted.device)
    ious = box_iou(predicted, truth).nan_to_num(nan=0.0)  # [P, K, G]
    if other_image is not None:
        ious = ious.masked_fill(torch.as_tensor(other_image, device=ious.device)[..., None], 0.0)
    free = torch.arange(truth.shape[1], device=ious.device) < counts[:, None]  # [P, G]
    right = torch.zeros(ious.shape[:2], dtype=torch.bool, device=ious.device)
    for rank in range(ious.shape[1]):
        best, found = ious[:, rank].masked_fill(~free, -1.0).max(1)
        right[:, rank] = hits(best, threshold)
        free &= ~(right[:, rank, None] & torch.nn.functional.one_hot(found, free.shape[1]).bool())
    return right


def average_precision(right: Tensor, counts: np.ndarray | Tensor) -> Tensor:
    """Average precision of each phrase's ranking, float64 ``[P]``: precision at each truth box found, 0 for the others.

    right: ``[P, K]``, best first (``right_boxes``). counts: ``[P]`` truth boxes.
    """
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1, device=right.device)
    return (precision * right).to(torch.float64).sum(1) / torch.as_tensor(counts, device=right.device)


def precision_recall(
    right: np.ndarray | Tensor, scores: np.ndarray | Tensor, counts: np.ndarray | Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and score ``[T]`` at every distinct score, best first, over the boxes of all phrases.

    right, scores: ``[P, K]``; NaN scores are no boxes. counts: ``[P]`` truth boxes. Raises BadInput for shapes that
    differ, and where there is no truth box.
    """
    right, scores = np.asarray(right), np.asarray(scores, dtype=np.float64)
    total = int(np.asarray(counts).sum())
    if right.shape != scores.shape or not total:
        raise BadInput(f"right {right.shape} and scores {scores.shape} of {total} truth boxes; accepted: [P, K], 1 up")
    kept = ~np.isnan(scores)
    order = np.argsort(-scores[kept], kind="stable")
    ranked, found = scores[kept][order], right[kept][order].cumsum()
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]  # ties enter together
    return (found / np.arange(1, len(found) + 1))[last], (found / total)[last], ranked[last]


def average_precisions(items: Sequence[PhraseItem]) -> np.ndarray:
    """``average_precision`` of each phrase with ranked boxes, float64 ``[P]``; NaN for those with heatmaps."""
    found = np.full(len(items), np.nan)
    boxed = [number for number, item in enumerate(items) if item.prediction.heatmap is None]
    for begin in range(0, len(boxed), 1000):
        numbers = boxed[begin : begin + 1000]
        block = [items[number] for number in numbers]
        boxes, index = stacked_boxes(block)
        counts = torch.tensor([len(item.phrase.regions) for item in block])
        own = torch.tensor([item.phrase.image_index for item in block])
        right = right_boxes(boxes, truth_boxes(block), counts, index != own[:, None])
        found[numbers] = average_precision(right, counts).numpy()
    return found
