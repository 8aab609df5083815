"""Answers of models that match whole captions with whole images: the caption chooses the image, its words the place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grounding.examples import PhrasePrediction, Prediction, ReferenceGame
from grounding.models.answers import answer, target_point
from grounding.models.base import Batch, Output
from grounding.models.hf.base import HfModel
from grounding.models.hf.images import Candidates


@dataclass
class HeatmapOutput(Output):
    """match: ``[B, N]`` score of each candidate image (0 where there is none); candidate_probability: its softmax.

    task_point is the peak of the caption's map within the candidate that matches best.

    log_task: ``[B, N * rows, columns]`` and log_phrases: ``[P, N * rows, columns]``, log-probabilities over the image
    tokens of the real candidates, -100 elsewhere.
    """

    match: Tensor
    candidate_probability: Tensor
    log_task: Tensor
    log_phrases: Tensor


NOTHING = -100.0  # log-probability of places that are none: finite, since outputs must be


class HeatmapModel(HfModel):
    """An adapter whose forward pass ends in ``maps``: p(place) = p(candidate | caption) p(token | candidate, words)."""

    predicts = "heatmap"

    def maps(self, batch: Batch, candidates: Candidates, match: Tensor, places: Tensor) -> HeatmapOutput:
        """match: ``[M]`` scores. places: log-probabilities ``[P + B, N, cells]`` within each candidate."""
        scores = candidates.stack(match.float())
        log_candidate = scores.masked_fill(~candidates.real, -torch.inf).log_softmax(1)
        owner = batch.asked_examples
        log_maps = log_candidate[owner][..., None] + places.float()  # [P + B, N, cells]
        log_maps = log_maps.clamp(min=NOTHING)
        canvas = candidates.spread(log_maps, owner, NOTHING).unflatten(1, batch.grid)
        log_phrases, log_task = canvas.split([len(batch.phrase_example), len(batch)])
        chosen = scores.masked_fill(~candidates.real, -torch.inf).argmax(1)
        others = torch.arange(scores.shape[1], device=match.device) != chosen[:, None]  # [B, N]
        within = log_maps[-len(batch) :].masked_fill(others[..., None], -torch.inf)
        within = candidates.spread(within, owner[-len(batch) :], -torch.inf).unflatten(1, batch.grid)
        return HeatmapOutput(
            task_point=_peaks(within, batch, owner[-len(batch) :]),
            phrase_point=_peaks(log_phrases, batch, batch.phrase_example),
            match=scores,
            candidate_probability=log_candidate.exp(),
            log_task=log_task,
            log_phrases=log_phrases,
        )

    def candidate_scores(self, batch: Batch, output: HeatmapOutput) -> Tensor:
        """The caption's match with each candidate."""
        return output.match

    def predict(self, batch: Batch, output: HeatmapOutput) -> list[Prediction]:
        """The candidate that matches best, or the peak of the caption's map; a heatmap of tokens for every phrase."""
        grids = real_grid(batch).tolist()
        owners = batch.phrase_example.tolist()
        log_task, log_phrases = output.log_task.cpu(), output.log_phrases.cpu()
        log_candidate = output.candidate_probability.log().clamp(min=NOTHING).cpu()
        predictions = []
        for row, example in enumerate(batch.examples):
            rows, columns = grids[row]
            images = len(example.images)
            phrases = tuple(
                PhrasePrediction(
                    batch.phrase_ids[p],
                    heatmap=log_phrases[p, :rows, :columns].flatten().softmax(0).view(images, -1, columns).numpy(),
                )
                for p in range(len(owners))
                if owners[p] == row
            )
            x, y = output.task_point[row].tolist()
            if isinstance(example.task, ReferenceGame):
                score = float(log_candidate[row, example.task.target_index])
            else:
                target_x, target_y = target_point(example)
                cell = min(int(target_y * rows), rows - 1), min(int(target_x * columns), columns - 1)
                score = float(log_task[row][cell])
            predictions.append(answer(example, (x, y), score, phrases))
        return predictions


def asked_tokens(batch: Batch) -> Tensor:
    """Mean over the tokens of each phrase, then of each caption's task words, as weights ``[P + B, T]``."""
    asked = torch.cat([batch.phrase_tokens, batch.caption_tokens]).float()
    return asked / asked.sum(1, keepdim=True).clamp(min=1.0)


def attended_places(batch: Batch, candidates: Candidates, attention: Tensor, image: slice) -> Tensor:
    """Where the words look: log-probabilities ``[P + B, N, cells]`` within each candidate's own pass.

    attention: ``[M, T, L]``, from the caption's tokens to the tokens of a pass, of which ``image`` are image tokens.
    """
    looks = candidates.stack(attention[..., image])  # [B, N, T, cells]
    owner = batch.asked_examples
    places = torch.einsum("at,antc->anc", asked_tokens(batch), looks[owner])
    places = places + 1e-12
    return (places / places.sum(-1, keepdim=True)).log()


def real_grid(batch: Batch) -> Tensor:
    """Rows and columns of image tokens on the real canvas of each example, int64 ``[B, 2]``."""
    grid, pixels = (torch.tensor(size, device=batch.valid.device) for size in (batch.grid, batch.images.shape[-2:]))
    return batch.valid * grid // pixels


def _peaks(log_maps: Tensor, batch: Batch, owner: Tensor) -> Tensor:
    """Centre (x, y) of the highest cell of each map, relative to its example's real canvas: ``[K, 2]``."""
    if not len(log_maps):
        return log_maps.new_zeros(0, 2)
    columns = batch.grid[1]
    peak = log_maps.flatten(1).argmax(1)
    real_rows, real_columns = real_grid(batch)[owner].unbind(1)
    return torch.stack([(peak % columns + 0.5) / real_columns, (peak // columns + 0.5) / real_rows], dim=1)
