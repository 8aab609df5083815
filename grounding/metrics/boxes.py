"""How well ranked boxes ground a phrase: IoU under the protocols any, merged and all.

``any``: the best single truth box. ``merged``: the box that encloses all truth boxes. ``all``: the union of
the truth boxes, as area. The first two are those of MDETR (Kamath et al., arXiv 2104.12763, appendix on
Flickr30k), the third is of Kojima et al. (arXiv 2309.02691). Two arithmetics, never mixed (``mode``):

* ``corrected``: relative coordinates as they are, the union's area exactly (coordinate compression), no
  clipping: what a predicted box puts outside of its candidate counts against it.
* ``paper``: that of Kojima et al. in their published code: both boxes times the canvas size, clipped to it,
  rounded half to even, areas of whole pixels; ``all`` with several truth boxes in float32. Two boxes that
  round away give 0 (the original divides 0 by 0).

Candidates of a reference game are stacked along the height: candidate i of n covers canvas rows i/n to
(i+1)/n, so canvas y = (i + y)/n. Boxes here are relative to their own candidate; one in another candidate
than the phrase's image has IoU 0 (``corrected``), while ``paper`` compares boxes on the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.areas import Area

PROTOCOLS = ("all", "any", "merged")
MODES = ("corrected", "paper")
HIT_IOU = 0.5  # a phrase counts as grounded from this IoU on
_ROUNDING = 1e-9  # an IoU this close below a threshold is at it: one half is often met exactly
_CHUNK = 500_000  # numbers in the largest intermediate array: a few of them fit a processor's cache


def as_boxes(boxes: np.ndarray | Tensor) -> Tensor:
    """Boxes as float64 ``[..., 4]``, on the device they are on; BadInput for another shape."""
    boxes = torch.as_tensor(boxes)
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise BadInput(f"boxes have shape {tuple(boxes.shape)}; accepted: [..., boxes, 4]")
    return boxes.to(torch.float64)


def pad_boxes(boxes: Sequence[np.ndarray | Tensor]) -> Tensor:
    """P lists of truth boxes ``[G_p, 4]`` as one float64 ``[P, G, 4]``, the first box repeated to fill up.

    A repeated box changes none of the protocols. BadInput for an empty list.
    """
    if not boxes:
        return torch.zeros(0, 1, 4, dtype=torch.float64)
    counts = torch.tensor([len(one) for one in boxes])
    if (counts == 0).any():
        raise BadInput(f"phrase number {int(counts.argmin())} has no truth boxes; accepted: at least one")
    flat = as_boxes(torch.cat([torch.as_tensor(one) for one in boxes]))
    place = torch.arange(int(counts.max()))
    first = counts.cumsum(0) - counts
    return flat[first[:, None] + torch.where(place < counts[:, None], place, 0)]


def merged_boxes(boxes: Tensor) -> Tensor:
    """The box that encloses all of ``[..., G, 4]``, as ``[..., 1, 4]``."""
    return torch.cat([boxes[..., :2].amin(-2, keepdim=True), boxes[..., 2:].amax(-2, keepdim=True)], -1)


def to_canvas(boxes: Tensor, image_index: Tensor, n_images: Tensor) -> Tensor:
    """Candidate-relative boxes ``[..., 4]`` on the stacked canvas: y -> (image_index + y) / n_images."""
    boxes = boxes.clone()
    boxes[..., 1::2] = (boxes[..., 1::2] + image_index[..., None]) / n_images[..., None]
    return boxes


def ranked_ious(
    predicted: np.ndarray | Tensor,
    truth: np.ndarray | Tensor,
    protocol: str = "all",
    mode: str = "corrected",
    sizes: np.ndarray | Tensor | None = None,
    other_image: np.ndarray | Tensor | None = None,
) -> Tensor:
    """IoU of every ranked box with its phrase's truth, float64 ``[P, K]``.

    predicted: ``[P, K, 4]`` and truth: ``[P, G, 4]`` (see ``pad_boxes``), xyxy, relative.
    sizes: ``[P, 2]`` pixels (height, width) of the canvas that the boxes are on, for ``mode="paper"``.
    other_image: bool ``[P, K]``, True where a box is in another candidate than the truth: IoU 0.
    Raises BadInput for an unknown protocol or mode, wrong shapes, or sizes missing.
    """
    if protocol not in PROTOCOLS:
        raise unknown_choice("protocol", protocol, PROTOCOLS)
    if mode not in MODES:
        raise unknown_choice("mode", mode, MODES)
    predicted, truth = as_boxes(predicted), as_boxes(truth)
    if predicted.ndim != 3 or truth.ndim != 3 or len(predicted) != len(truth):
        raise BadInput(
            f"predicted {tuple(predicted.shape)} and truth {tuple(truth.shape)} do not fit; "
            "accepted: [P, K, 4] and [P, G, 4]"
        )
    truth = truth.to(predicted.device)
    several = (truth != truth[:, :1]).flatten(1).any(1)  # phrases with more than one truth box
    if mode == "paper":
        if sizes is None:
            raise BadInput("mode 'paper' rounds to pixels: sizes [P, 2] (height, width) are needed")
        predicted, truth = _round_to_pixels(predicted, sizes), _round_to_pixels(truth, sizes)
    edges = 2 * truth.shape[1]
    step = max(1, _CHUNK // (edges * max(predicted.shape[1], edges)))
    chunks = zip(predicted.split(step), truth.split(step), strict=True)
    ious = torch.cat([_protocol_ious(p, t, protocol) for p, t in chunks]) if len(truth) else predicted[..., 0]
    if mode == "paper" and protocol == "all":
        ious = torch.where(several[:, None], ious.float().double(), ious)
    if other_image is not None:
        ious = ious.masked_fill(torch.as_tensor(other_image, device=ious.device), 0.0)
    return ious


def area_ious(predicted: Tensor, truth: Area) -> Tensor:
    """IoU of boxes ``[..., K, 4]`` with areas of the same leading dimensions, ``[..., K]``."""
    shared = truth.within(predicted)
    own = (predicted[..., 2] - predicted[..., 0]) * (predicted[..., 3] - predicted[..., 1])
    return _defined(shared / (own + truth.total()[..., None] - shared))


def best_of(ious: Tensor, k: int | None = None) -> Tensor:
    """Highest IoU ``[P]`` among the first k ranked boxes of ``[P, K]`` (all of them for None)."""
    if k is not None and k < 1:
        raise BadInput(f"k {k} is too small; accepted: 1 or more, or None for all boxes")
    return ious[:, :k].amax(1)


def recall_at(ious: Tensor, k: int | None = None, threshold: float = HIT_IOU) -> float:
    """Share of phrases with an IoU of at least ``threshold`` among their first k boxes (Recall@k)."""
    return float(hits(best_of(ious, k), threshold).double().mean())


def hits(ious: Tensor, threshold: float = HIT_IOU) -> Tensor:
    """Whether each IoU is at least ``threshold``, up to rounding."""
    return ious >= threshold - _ROUNDING


def _protocol_ious(predicted: Tensor, truth: Tensor, protocol: str) -> Tensor:
    if protocol == "any":
        return _defined(box_iou(predicted, truth)).amax(-1)
    if protocol == "merged":
        return _defined(box_iou(predicted, merged_boxes(truth)))[..., 0]
    return area_ious(predicted, Area.of_boxes(truth))


def _defined(ious: Tensor) -> Tensor:
    return ious.nan_to_num(nan=0.0)  # 0 / 0: neither box has an area


def _round_to_pixels(boxes: Tensor, sizes: np.ndarray | Tensor) -> Tensor:
    sizes = torch.as_tensor(sizes, dtype=boxes.dtype, device=boxes.device)
    limits = sizes[:, [1, 0, 1, 0]][:, None]  # [P, 1, 4]
    return (boxes * limits).clamp(min=torch.zeros_like(limits), max=limits).round()
