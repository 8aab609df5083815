"""One objective a model: output and targets -> named losses, ready to be summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.finetune.losses import (
    box_losses,
    contrastive_alignment_loss,
    map_divergence,
    match,
    mean_over_phrases,
    soft_token_loss,
)
from grounding.finetune.targets import Targets, box_maps, point_maps
from grounding.models.base import Batch
from grounding.models.mdetr import MdetrOutput
from grounding.models.vilt_aligner import ViltAlignerOutput

Objective = Callable[[Any, Batch, Targets], dict[str, Tensor]]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the task and the grounding losses; 0 leaves one out."""

    task: float
    grounding: float

    def __post_init__(self) -> None:
        if self.task < 0 or self.grounding < 0 or self.task == self.grounding == 0:
            raise BadInput(f"loss weights {self.task} and {self.grounding}: one must be above 0, none below")


def aligner_losses(
    output: ViltAlignerOutput, batch: Batch, targets: Targets, weights: LossWeights
) -> dict[str, Tensor]:
    """KL divergence of the task's map and of every annotated phrase's map."""
    canvas = (batch.images.shape[-2], batch.images.shape[-1])
    losses = {}
    if weights.task:
        truth = point_maps(targets.points, batch.valid, canvas)
        losses["task"] = weights.task * map_divergence(truth, output.log_task).mean()
    if weights.grounding:
        truth = box_maps(targets, len(output.log_phrases), batch.valid, canvas)
        annotated = truth.new_zeros(len(truth)).index_fill(0, targets.box_phrase, 1.0)
        each = map_divergence(truth, output.log_phrases)
        losses["phrases"] = weights.grounding * mean_over_phrases(each, batch.phrase_example, annotated, len(batch))
    return losses


def mdetr_losses(output: MdetrOutput, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Distance of the task's point; set-prediction losses of every decoder layer.

    The positive map has rows that sum to one, as in MDETR; the study's was binary (docs/differences.md).
    """
    losses = {}
    if weights.task:
        losses["task"] = weights.task * (output.task_point - targets.points).abs().sum(1).mean()
    if weights.grounding:
        token_map = batch.phrase_tokens[targets.box_phrase]  # [K, T]
        positive_map = torch.zeros(len(token_map), output.token_logits.shape[-1], device=token_map.device)
        positive_map[:, : token_map.shape[1]] = token_map / token_map.sum(1, keepdim=True).clamp(min=1)
        boxes = torch.tensor(float(max(len(targets.boxes), 1)), device=token_map.device)
        for layer in range(len(output.token_logits)):
            logits, predicted = output.token_logits[layer], output.boxes_cxcywh[layer]
            matching = match(logits, predicted, targets.boxes, positive_map, targets.box_example)
            distance, overlap = box_losses(predicted, targets.boxes, matching, boxes)
            contrastive = contrastive_alignment_loss(
                output.projected_queries[layer], output.projected_tokens, token_map, matching, boxes
            )
            parts = {
                "tokens": soft_token_loss(logits, positive_map, matching, boxes),
                "boxes": 5.0 * distance,
                "giou": 2.0 * overlap,
                "contrastive": contrastive,
            }
            for name, value in parts.items():
                losses[name] = losses.get(name, 0.0) + weights.grounding * value
    return losses


def objective_for(model: str, task: bool, grounding: bool) -> Objective:
    """The losses of a model with the weights of the study (games: 3 x task + phrases); MDETR's task counts 5."""
    function: Any = {"vilt-aligner": aligner_losses, "mdetr": mdetr_losses}[model]
    weights = LossWeights({"vilt-aligner": 3.0, "mdetr": 5.0}[model] * task, 1.0 * grounding)
    return lambda output, batch, targets: function(output, batch, targets, weights)
