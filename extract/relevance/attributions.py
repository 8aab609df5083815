"""Attributions by captum: integrated gradients on a site's states, and occlusion of image cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from extract.plan import Plan
from extract.relevance.gradients import Key, Tape, raw, real_cells
from extract.relevance.kinds import AT_ONE_SITE, OCCLUSION, explains_task, method_of
from extract.relevance.scores import phrase_scores, place_scores, task_scores
from grounding.errors import BadInput
from grounding.models.base import Batch, GroundingModel, Site

STEPS = 32  # points of the path that gradients are integrated at (Gauss-Legendre)


def attributions(
    model: GroundingModel, batch: Batch, plan: Plan, site_views: Mapping[str, Sequence[str]]
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """Attributions of image cells by (site, view), fp32 ``[B, K, cells, 1]``, and their completeness ``[P, 2]``.

    Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365) go from the states that an image of the
    example's mean colour would give, under the same caption, to the states that there are, and are summed over
    channels; the score is that of the place where the unchanged input puts the phrase. Beside them: how much the score
    changes on the way, and by how much the attributions of all tokens fail to sum to that (completeness, their
    proposition 1). Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901): how much the score falls when a cell's pixels
    take the mean colour. Raises BadInput for integrated gradients of a model that runs once an image.
    """
    found: dict[Key, Tensor] = {}
    changes: dict[Key, Tensor] = {}
    asked = [(site, view) for site in model.all_sites() for view in site_views.get(site.name, ())]
    asked = [(site, view) for site, view in asked if method_of(view) in AT_ONE_SITE]
    if not asked:
        return found, changes
    with torch.no_grad():
        where = place_scores(batch, model(batch)).argmax(1)
    for site, view in asked:
        key, places = (site.name, view), None if explains_task(view) else where
        if method_of(view) == OCCLUSION:
            found[key] = _occlusion(model, batch, plan, places)
        else:
            found[key], changes[key] = _integrated(model, batch, plan, places, site)
    return found, changes


def score_table(batch: Batch, plan: Plan, output: Any, places: Tensor | None) -> Tensor:
    """Score of each phrase's place, or (None) the task's for all phrases: ``[B, K]``, zeros beyond an example's."""
    task = places is None
    scores = task_scores(batch, output)[plan.phrase_example] if task else phrase_scores(batch, output, places)
    return plan.by_slot(scores.float())


def mean_colour(batch: Batch) -> Tensor:
    """Images whose real pixels all have the mean colour of the example's: uint8 ``[B, 3, H, W]``."""
    real = batch.pixel_mask[:, None]
    colour = (batch.images * real).sum((2, 3), dtype=torch.float32) / real.sum((2, 3))
    return (colour.round()[..., None, None] * real).to(torch.uint8)


def _integrated(
    model: GroundingModel, batch: Batch, plan: Plan, places: Tensor | None, site: Site
) -> tuple[Tensor, Tensor]:
    from captum.attr import IntegratedGradients  # which imports matplotlib: not for every extraction

    states, blank = (_states(model, site, one) for one in (batch, replace(batch, images=mean_colour(batch))))
    if len(states) != len(batch):
        raise BadInput(
            f"site {site.name!r} has {len(states)} rows for {len(batch)} examples, and integrated gradients need one "
            "each; accepted: relevance.grad-cam, relevance.occlusion"
        )
    layout = site.layout(batch)
    slots = range(plan.phrase_weights.shape[1])
    cells = states.new_zeros(*plan.phrase_weights.shape[:2], batch.grid[0] * batch.grid[1], dtype=torch.float32)
    change = cells.new_zeros(*plan.phrase_weights.shape[:2], 2)
    for slot in slots if places is not None else slots[:1]:

        def scores(given: Tensor, slot: int = slot) -> Tensor:
            with patched(model, site, given):
                return score_table(batch, plan, model(batch), places)[:, slot]

        with torch.enable_grad():
            parts, delta = IntegratedGradients(scores).attribute(
                states, blank, n_steps=STEPS, internal_batch_size=len(states), return_convergence_delta=True
            )
        tokens = site.to_tokens(parts).float()
        place = slice(slot, slot + 1) if places is not None else slice(None)
        cells[:, place] = tokens[:, layout.image].sum(-1)[:, None]
        total = parts.float().flatten(1).sum(1)
        change[:, place] = torch.stack([total - delta, delta], -1)[:, None].float()
    return cells[..., None] * real_cells(batch, plan)[:, None, :, None], change[plan.phrase_example, plan.phrase_slots]


def _states(model: GroundingModel, site: Site, batch: Batch) -> Tensor:
    """What the module of a site gives, as it gives it."""
    with torch.no_grad(), Tape(model, (), [site]) as tape:
        model(batch)
    return raw(tape.outputs[site.name]).detach()


@contextmanager
def patched(model: GroundingModel, site: Site, states: Tensor) -> Iterator[None]:
    """Inside it, the module of a site gives ``states`` (and whatever else it gave beside its own)."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = model.get_submodule(site.module_path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _occlusion(model: GroundingModel, batch: Batch, plan: Plan, places: Tensor | None) -> Tensor:
    """A pass for each cell, all examples at once; captum occludes what is seen, and colours follow."""
    from captum.attr import Occlusion

    blank = mean_colour(batch)

    def scores(seen: Tensor) -> Tensor:
        pixels = functional.interpolate(seen[:, None], batch.images.shape[-2:], mode="nearest") > 0
        return score_table(batch, plan, model(replace(batch, images=torch.where(pixels, batch.images, blank))), places)

    with torch.inference_mode():
        seen = torch.ones(len(batch), *batch.grid, device=batch.images.device)
        falls = Occlusion(scores).attribute(seen, sliding_window_shapes=(1, 1), baselines=0)  # [B * K, rows, columns]
    return falls.float().flatten(1).unflatten(0, plan.phrase_weights.shape[:2])[..., None]
