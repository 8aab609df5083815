"""Answers of detectors: every query is a box in one candidate, scored for the caption and for each phrase."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from grounding.examples import PhrasePrediction, Prediction, ReferenceGame
from grounding.models.answers import answer, point_score
from grounding.models.base import Batch, Output, Site, TokenLayout
from grounding.models.hf.base import HfModel
from grounding.models.hf.images import Candidates
from grounding.models.layouts import first

RANKED = 100  # boxes kept for a phrase: detectors have thousands
NOTHING = -100.0  # logit of queries of a candidate that there is not: finite, since outputs must be


@dataclass
class BoxOutput(Output):
    """boxes_xyxy: ``[B, N * Q, 4]`` on the real canvas, the Q queries of one candidate after those of another.

    match: ``[B, N]``, the caption's best logit or score in each candidate (0 where there is none). phrase_logits:
    ``[P, N * Q]``. phrase_query: int64 ``[P]``, the best of them (the first of all where a phrase has no box).
    task_point is the centre of the caption's best box.
    """

    boxes_xyxy: Tensor
    match: Tensor
    phrase_logits: Tensor
    phrase_query: Tensor


class BoxModel(HfModel):
    """An adapter whose forward pass ends in ``answers``.

    A query whose logit for a phrase is NOTHING is no box of it; where all are, for its task words, of every candidate,
    an example has no answer.
    """

    predicts = "boxes"

    def query_site(self, name: str, path: str, stage: str, layer: int, width: int, count: int, **others: Any) -> Site:
        """A site with the ``count`` queries of each image ``[M, count, D]``."""

        def to_tokens(output: Any) -> Tensor:
            return self.candidates.stack(first(output)).flatten(1, 2)

        def queries(batch: Batch) -> TokenLayout:
            return TokenLayout(query=slice(0, batch.images.shape[-2] // self.preprocessor.candidate_size * count))

        return Site(name, path, stage, layer, ("query",), width, queries, to_tokens, **others)

    def best_of(self, batch: Batch, candidates: Candidates, logits: Tensor, asked: Tensor) -> Tensor:
        """The best logit of each query over what is asked for: ``[P + B, N, Q]``.

        logits: ``[M, Q, C]`` for C tokens or labels. asked: bool ``[P + B, C]``, of phrases, then of captions.
        """
        owner = batch.asked_examples
        stacked = candidates.stack(logits)[owner]  # [P + B, N, Q, C]
        return stacked.masked_fill(~asked[:, None, None], NOTHING).amax(-1).clamp(min=NOTHING)

    def answers(
        self,
        batch: Batch,
        candidates: Candidates,
        boxes_cxcywh: Tensor,
        logits: Tensor,
        scores: Tensor | None = None,
    ) -> BoxOutput:
        """boxes_cxcywh: ``[M, Q, 4]`` relative to their image. logits: ``[P + B, N, Q]``, phrases before captions.

        scores: ``[M]`` of images for their captions, where it is these that choose the candidate and not the best box.
        """
        owner = batch.asked_examples
        logits = logits.float().masked_fill(~candidates.real[owner][..., None], NOTHING)
        log_phrases, log_task = logits.flatten(1).split([len(batch.phrase_example), len(batch)])
        match = logits[len(batch.phrase_example) :].amax(-1).masked_fill(~candidates.real, 0.0)
        if scores is not None:
            match = candidates.stack(scores)
            chosen = match.masked_fill(~candidates.real, -torch.inf).argmax(1)
            place = torch.arange(log_task.shape[1], device=logits.device) // logits.shape[-1]
            log_task = log_task.masked_fill(place != chosen[:, None], -torch.inf)
        boxes = candidates.stack(box_convert(boxes_cxcywh.float(), "cxcywh", "xyxy"))  # [B, N, Q, 4]
        counts = candidates.real.sum(1)[:, None, None]
        place_of = torch.arange(candidates.real.shape[1], device=logits.device)[:, None]
        rows = (boxes[..., 1::2] + place_of[..., None]) / counts[..., None]
        boxes = torch.stack([boxes[..., 0], rows[..., 0], boxes[..., 2], rows[..., 1]], dim=-1).flatten(1, 2)
        boxes = boxes * candidates.real.repeat_interleave(logits.shape[-1], 1)[..., None]
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        everyone = torch.arange(len(batch), device=logits.device)
        phrase_query = log_phrases.argmax(1)
        return BoxOutput(
            task_point=centres[everyone, log_task.argmax(1)],
            phrase_point=centres[batch.phrase_example, phrase_query],
            boxes_xyxy=boxes,
            match=match,
            phrase_logits=log_phrases,
            phrase_query=phrase_query,
        )

    def candidate_scores(self, batch: Batch, output: BoxOutput) -> Tensor:
        """The caption's match with each candidate."""
        return output.match

    def predict(self, batch: Batch, output: BoxOutput) -> list[Prediction]:
        """The candidate with the caption's best box, or that box's centre; the RANKED best boxes for each phrase."""
        size, owners = self.preprocessor.candidate_size, batch.phrase_example.tolist()
        counts = (batch.valid[:, 0] // size).tolist()
        queries = output.boxes_xyxy.shape[1] // (batch.images.shape[-2] // size)
        boxes, logits = output.boxes_xyxy.cpu(), output.phrase_logits.cpu()
        predictions = []
        for row, example in enumerate(batch.examples):
            real, phrases = counts[row] * queries, []
            for p in (p for p, owner in enumerate(owners) if owner == row):
                order = logits[p, :real].argsort(descending=True, stable=True)[:RANKED]
                order = order[logits[p, order] > NOTHING]
                index = (order // queries).numpy()
                own = boxes[row, order].numpy()
                own[:, 1::2] = own[:, 1::2] * counts[row] - index[:, None]
                phrases.append(
                    PhrasePrediction(
                        batch.phrase_ids[p], boxes=own, image_index=index, scores=logits[p, order].sigmoid().numpy()
                    )
                )
            if not self.answers_all and (output.match[row, : counts[row]] <= NOTHING).all():
                predictions.append(Prediction(example.id, None, math.nan, False, tuple(phrases)))
                continue
            x, y = output.task_point[row].tolist()
            score = point_score(example, (x, y))
            if isinstance(example.task, ReferenceGame):
                score = float(output.match[row, : counts[row]].log_softmax(0)[example.task.target_index])
            predictions.append(answer(example, (x, y), score, tuple(phrases)))
        return predictions


def slots_of(batch: Batch) -> Tensor:
    """Place of each phrase, then of each caption, among what is asked of its example: int64 ``[P + B]``, captions 0."""
    counts = torch.bincount(batch.phrase_example, minlength=len(batch))
    first_phrase = (counts.cumsum(0) - counts)[batch.phrase_example]
    slot = 1 + torch.arange(len(batch.phrase_example), device=counts.device) - first_phrase
    return torch.cat([slot, slot.new_zeros(len(batch))])
