"""One objective a model: output and targets -> named losses, ready to be summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grounding.errors import BadInput
from grounding.finetune.data import world_size
from grounding.finetune.losses import (
    box_losses,
    contrastive_alignment_loss,
    map_divergence,
    match,
    mean_over_phrases,
    soft_token_loss,
)
from grounding.finetune.settings import FinetuneSettings
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
        losses["task"] = weights.task * mean_of_tasks(map_divergence(truth, output.log_task), targets)
    if weights.grounding:
        truth = box_maps(targets, len(output.log_phrases), batch.valid, canvas)
        annotated = truth.new_zeros(len(truth)).index_fill(0, targets.box_phrase, 1.0)
        each = map_divergence(truth, output.log_phrases)
        losses["phrases"] = weights.grounding * mean_over_phrases(each, batch.phrase_example, annotated, len(batch))
    return losses


def mean_of_tasks(each: Tensor, targets: Targets) -> Tensor:
    """Mean of the losses ``[B]`` of examples that have a task; 0, with gradients of 0, where none has."""
    known = each[targets.has_task]
    return known.mean() if len(known) else each.sum() * 0


def boxes_a_process(targets: Targets) -> float:
    """Boxes that MDETR's losses are divided by: the mean over the processes' batches, as in DETR, and 1 at least."""
    boxes, processes = float(len(targets.boxes)), world_size()
    if processes > 1:
        total = torch.tensor(boxes, device=targets.boxes.device)
        torch.distributed.all_reduce(total)
        boxes = total.item() / processes
    return max(boxes, 1.0)


def mdetr_losses(
    output: MdetrOutput,
    batch: Batch,
    targets: Targets,
    weights: LossWeights,
    losses: str = "corrected",
    auxiliary: bool = True,
) -> dict[str, Tensor]:
    """Distance of the task's point; set-prediction losses of every decoder layer, or of the last (no ``auxiliary``).

    The positive map has rows that sum to one, as in MDETR; with ``paper`` it is binary, as in the study, so that a
    phrase of k tokens weighs k times. An example without annotated phrases says nothing about its objects; with
    ``paper`` it has none, unless the whole batch is without (docs/differences.md).
    """
    parts = {}
    if weights.task:
        parts["task"] = weights.task * mean_of_tasks((output.task_point - targets.points).abs().sum(1), targets)
    if weights.grounding:
        first = 0 if auxiliary else -1
        token_logits, predicted = output.token_logits[first:], output.boxes_cxcywh[first:].flatten(0, 1)
        layers, examples = token_logits.shape[:2]
        copies = torch.arange(layers, device=targets.boxes.device).repeat_interleave(len(targets.boxes))
        truth = targets.boxes.repeat(layers, 1)  # every decoder layer answers for itself: layers become examples
        owner = targets.box_example.repeat(layers) + copies * examples
        token_map = batch.phrase_tokens[targets.box_phrase].repeat(layers, 1).float()  # [L * K, T]
        contrasted = batch.phrase_tokens if targets.contrasted is None else targets.contrasted
        if losses != "paper":
            token_map = token_map / token_map.sum(1, keepdim=True).clamp(min=1)
        slots = token_logits.shape[-1]
        positive_map = functional.pad(token_map, (0, slots - token_map.shape[1]))  # cut where captions are longer
        logits = token_logits.flatten(0, 1)
        annotated = torch.zeros(examples, dtype=torch.bool, device=logits.device)
        annotated[targets.box_example] = True
        if losses == "paper" and annotated.any():
            annotated[:] = True
        boxes = boxes_a_process(targets)
        matching = match(logits, predicted, truth, positive_map, owner)
        distance, overlap = box_losses(predicted, truth, matching, boxes)
        queries, tokens = output.projected_queries[first:].flatten(0, 1), output.projected_tokens.repeat(layers, 1, 1)
        parts["tokens"] = weights.grounding * soft_token_loss(
            logits, positive_map, matching, boxes, annotated.repeat(layers)
        )
        parts["boxes"] = weights.grounding * 5.0 * distance
        parts["giou"] = weights.grounding * 2.0 * overlap
        parts["contrastive"] = weights.grounding * contrastive_alignment_loss(
            queries, tokens, contrasted[targets.box_phrase].repeat(layers, 1), matching, boxes
        )
    return parts


def objective_for(settings: FinetuneSettings) -> Objective:
    """The losses of a run. Without a task_weight it is the study's for ViLT-Aligner's games (3), and 5 for MDETR."""
    function: Any = {
        "vilt-aligner": aligner_losses,
        "mdetr": partial(mdetr_losses, losses=settings.losses, auxiliary=settings.auxiliary),
    }[settings.model]
    task = settings.task_weight
    if task is None:
        task = {"vilt-aligner": 3.0, "mdetr": 5.0}[settings.model]
    weights = LossWeights(task * settings.task, settings.grounding_weight * settings.grounding)
    return lambda output, batch, targets: function(output, batch, targets, weights)
