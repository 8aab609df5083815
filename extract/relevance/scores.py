"""What is explained: a score of each phrase or of the task, as a function that gradients can be taken of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.models.answers import target_point
from grounding.models.base import Batch


def place_scores(batch: Batch, output: Any) -> Tensor:
    """How sure the model is that each phrase is in each place, ``[P, places]``: pixels of a heatmap, or boxes.

    Heatmaps: the logit of a real pixel, where the model gives it, since a probability also rises as all other places
    fall (Selvaraju et al. 2017 take the score before the softmax for that reason); else the log-probability. Boxes:
    log-probability, or logit, that a box is the phrase's. Raises BadInput for a model that offers none of them.
    """
    if hasattr(output, "phrase_normaliser"):
        return (output.image_log_phrases + output.phrase_normaliser[:, None, None]).flatten(1)
    if hasattr(output, "log_phrases"):
        return output.log_phrases.flatten(1).log_softmax(1)
    if hasattr(output, "phrase_scores"):
        return output.phrase_scores.clamp(min=1e-30).log()
    if hasattr(output, "phrase_logits"):
        return output.phrase_logits
    raise BadInput("the model has no score of phrases to take relevance of")


def phrase_scores(batch: Batch, output: Any, places: Tensor | None = None) -> Tensor:
    """The score that is explained of each phrase, ``[P]``: of the place that the model puts it in, or of ``places``.

    places: int64 ``[P]``, where another pass put them: what is asked of a changed input is the same place.
    """
    scores = place_scores(batch, output)
    if places is None:
        places = scores.argmax(1)
    chosen = scores.gather(1, places[:, None])[:, 0]
    return torch.where(chosen.isfinite(), chosen, 0.0)  # no box for the phrase: nothing to explain


def task_scores(batch: Batch, output: Any) -> Tensor:
    """The task's score as predictions have it, higher is better: ``[B]``.

    Heatmaps: log-probability at the target; points: minus the sum of both distances to it. Raises BadInput for a model
    whose answer is neither.
    """
    targets = torch.tensor([target_point(example) for example in batch.examples]).to(output.task_point)
    if hasattr(output, "image_log_task"):
        column, row = ((targets * batch.valid.flip(1)).long().minimum(batch.valid.flip(1) - 1)).unbind(1)
        return output.image_log_task[torch.arange(len(batch), device=targets.device), row, column]
    if output.task_point.requires_grad or not torch.is_grad_enabled():
        return -(output.task_point - targets).abs().sum(1)
    raise BadInput("the model has no task score that gradients can be taken of")
