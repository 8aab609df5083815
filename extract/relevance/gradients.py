"""Relevance from one pass with gradients: rollout, gradient-weighted attention and its rules, Grad-CAM.

Examples of a batch do not see each other, so one backward pass serves the n-th phrase of every example at once, and
each example's rows are what they would be alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from extract.hooks import Hooks
from extract.plan import Plan
from extract.relevance.kinds import (
    CARRIED,
    GRAD_CAM,
    GRADIENT,
    GRADIENT_ATTENTION,
    PREFIX,
    ROLLOUT,
    TASK,
    carries,
    method_of,
)
from extract.relevance.rules import GradientRules, Rollout, identity_like, weighted
from extract.relevance.scores import phrase_scores, task_scores
from grounding.errors import BadInput
from grounding.models.attention import attention_weights
from grounding.models.base import Batch, GroundingModel, Site, TokenLayout

Key = tuple[str, str]  # site, view


@dataclass
class Attended:
    """What an attention module computed in a pass, with its graph.

    query ``[B, heads, N, d]``, key and value ``[B, heads, M, d]``, output ``[B, N, heads * d]``.
    """

    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Tensor:
        return self.seen["output"]

    def weights(self) -> Tensor:
        """fp32 ``[B, heads, N, M]``."""
        return attention_weights(*(self.seen[name] for name in ("query", "key", "bias")))

    def gradient(self, of_output: Tensor) -> Tensor:
        """Gradient of the weights, from that of the output: output = weights @ value, so it is that times value^T."""
        heads = self.seen["value"].shape[1]
        split = of_output.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        return split @ self.seen["value"].float().transpose(-1, -2)


class Tape(Hooks):
    """Context manager: one pass of ``model`` inside it leaves what attention modules and sites gave, with the graph.

    paths: of attention modules with taps. sites: whose raw outputs are kept. The fused kernel stays in use.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], sites: Sequence[Site] = ()):
        super().__init__()
        self.model, self.paths, self.sites = model, tuple(paths), tuple(sites)
        self.attended = {path: Attended() for path in paths}
        self.outputs: dict[str, Any] = {}

    def _attach(self) -> None:
        for path in self.paths:
            taps = self.model.get_submodule(path).taps
            for name in ("query", "key", "value", "bias", "output"):
                self._keep(getattr(taps, name), self.attended[path].seen, name, name == "output")
        for site in self.sites:
            self._keep(self.model.get_submodule(site.module_path), self.outputs, site.name, True)

    def _keep(self, module: Any, store: dict[str, Any], name: str, differentiated: bool) -> None:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if differentiated and not raw(output).requires_grad:
                raw(output).requires_grad_()  # of a model whose weights are frozen
            store[name] = output

        self._add(module, hook)


def raw(output: Any) -> Any:
    """The tensor of a module's output, alone or before other things."""
    return output[0] if isinstance(output, tuple) else output


def gradient_relevance(
    model: GroundingModel, batch: Batch, plan: Plan, site_views: Mapping[str, Sequence[str]]
) -> dict[Key, Tensor]:
    """Relevance of image cells to phrases by (site, view), fp32 ``[B, K, cells, C]``, K phrases an example at most.

    site_views: site -> relevance views. C is 1, or the heads of ``gradient-attention``. Padding has zeros. Raises
    BadInput where the model offers no score, or none with a gradient.
    """
    asked = {(site, view) for site, views in site_views.items() for view in views}
    sites = [site for site in model.all_sites() if site.name in site_views]
    carried = [s.name for s in sites if any(method_of(view) in CARRIED for view in site_views[s.name])]
    chain = _up_to_last([site for site in model.all_sites() if carries(site)], carried)
    mapped = [s for s in sites if any(method_of(view) == GRAD_CAM for view in site_views[s.name])]
    paths = [path for site in chain for path in (site.self_attention_path, site.attention_path) if path]
    suffixes = {TASK if view.endswith(TASK) else "" for _, view in asked if view != PREFIX + ROLLOUT}
    with torch.set_grad_enabled(bool(suffixes)), Tape(model, paths, mapped) as tape:
        output = model(batch)
        scores = {s: (task_scores if s else phrase_scores)(batch, output) for s in suffixes}
    with torch.autocast(batch.images.device.type, enabled=False):
        best = plan.by_slot(output.phrase_query) if hasattr(output, "phrase_query") else None
        work = _Work(batch, plan, chain, mapped, tape, best, asked)
        work.rollout()
        for slot in range(plan.phrase_weights.shape[1] if "" in scores else 0):
            work.explain(scores[""][plan.phrase_slots == slot].sum(), "", slice(slot, slot + 1))
        if TASK in scores:
            work.explain(scores[TASK].sum(), TASK, slice(None))
    return work.rows


@dataclass
class _Work:
    """Reads the rows of phrases out of the taped pass.

    best: int64 ``[B, K]``, the query that stands for each phrase, in a model with queries. rows: the result so far.
    """

    batch: Batch
    plan: Plan
    chain: Sequence[Site]
    mapped: Sequence[Site]
    tape: Tape
    best: Tensor | None
    asked: set[Key]
    rows: dict[Key, Tensor] = field(default_factory=dict)

    def rollout(self) -> None:
        """Rows of attention rollout, which knows no score."""
        if not any(view == PREFIX + ROLLOUT for _, view in self.asked):
            return
        flow: Rollout | None = None
        with torch.no_grad():
            for site in self.chain:
                means = [self.tape.attended[path].weights().mean(1) for path in _paths(site)]
                flow = flow or Rollout(identity_like(means[0]))
                self._carry(flow, site, means)
                if (site.name, PREFIX + ROLLOUT) in self.asked:
                    self._put((site.name, PREFIX + ROLLOUT), slice(None), self._read(site, flow)[..., None])

    def explain(self, score: Tensor, suffix: str, slots: slice) -> None:
        """Rows of the phrases in ``slots`` for a score, the sum over examples of one each."""
        if not score.requires_grad:
            raise BadInput(
                "the model's score has no gradient (its answer is read off without one); accepted: relevance.rollout, "
                "relevance.occlusion"
            )
        paths = list(self.tape.attended)
        tensors = [self.tape.attended[path].output for path in paths]
        tensors += [raw(self.tape.outputs[site.name]) for site in self.mapped]
        found = torch.autograd.grad(score, tensors, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
        with torch.no_grad():
            self._carried(dict(zip(paths, gradients[: len(paths)], strict=True)), suffix, slots)
            for site, gradient in zip(self.mapped, gradients[len(paths) :], strict=True):
                if (key := (site.name, PREFIX + GRAD_CAM + suffix)) in self.asked:
                    self._put(key, slots, self._grad_cam(site, gradient)[:, None, :, None])

    def _carried(self, gradients: Mapping[str, Tensor], suffix: str, slots: slice) -> None:
        """Gradient-weighted attention head by head, and what the rules make of it from layer to layer."""
        flow: GradientRules | None = None
        for site in self.chain:
            heads = []
            for path in _paths(site):
                attended = self.tape.attended[path]
                heads.append(weighted(attended.weights(), attended.gradient(gradients[path])))
            means = [each.mean(1) for each in heads]
            flow = flow or GradientRules(identity_like(means[0]))
            self._carry(flow, site, means)
            if (key := (site.name, PREFIX + GRADIENT + suffix)) in self.asked:
                self._put(key, slots, self._read(site, flow)[:, slots, :, None])
            if (key := (site.name, PREFIX + GRADIENT_ATTENTION + suffix)) in self.asked:
                own = torch.stack([self._rows_of(site, head) for head in heads[-1].unbind(1)], -1)
                self._put(key, slots, own[:, slots])

    def _carry(self, flow: Rollout | GradientRules, site: Site, means: Sequence[Tensor]) -> None:
        if site.self_attention_path is None:
            flow.attend(means[0])
        else:
            flow.decode(*means)

    def _read(self, site: Site, flow: Rollout | GradientRules) -> Tensor:
        carried = flow.joint if site.self_attention_path is None else flow.across
        assert carried is not None  # a layer of the decoder has been carried
        return self._rows_of(site, carried)

    def _rows_of(self, site: Site, matrix: Tensor) -> Tensor:
        """Rows of the phrases, columns of the image: ``[B, N or Q, M]`` -> ``[B, K, cells]``."""
        cells = self.batch.grid[0] * self.batch.grid[1]
        if site.self_attention_path is not None:
            assert self.best is not None
            examples = torch.arange(len(self.batch), device=matrix.device)[:, None]
            return matrix[examples, self.best][..., :cells]
        layout = site.layout(self.batch)
        return self.plan.phrase_weights @ matrix[:, layout.text, layout.image]

    def _grad_cam(self, site: Site, gradient: Tensor) -> Tensor:
        """Positive part of the states weighted by their channels' mean gradients over the real image, ``[B, cells]``.

        Selvaraju et al. (2017), arXiv 1610.02391, eq. 1 and 2.
        """
        layout: TokenLayout = site.layout(self.batch)
        states, slopes = (
            site.to_tokens(part)[:, layout.image].float() for part in (self.tape.outputs[site.name], gradient)
        )
        real = real_cells(self.batch, self.plan)[..., None].to(states)
        weights = (slopes * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return (states * weights * real).sum(-1).clamp(min=0)

    def _put(self, key: Key, slots: slice, values: Tensor) -> None:
        """values: ``[B, slots or 1, cells, C]``."""
        if key not in self.rows:
            shape = (len(self.batch), self.plan.phrase_weights.shape[1], *values.shape[2:])
            self.rows[key] = values.new_zeros(shape)
        self.rows[key][:, slots] = values


def real_cells(batch: Batch, plan: Plan) -> Tensor:
    """Which image tokens of each example hold real pixels: bool ``[B, cells]``."""
    rows, columns = (torch.arange(size) for size in batch.grid)
    sizes = torch.tensor(plan.grids)[:, :, None, None]  # [B, 2, 1, 1]
    inside = (rows[:, None] < sizes[:, 0]) & (columns < sizes[:, 1])
    return inside.flatten(1).to(batch.images.device)


def _paths(site: Site) -> list[str]:
    """The attention modules of a site, in the order that they run."""
    return [path for path in (site.self_attention_path, site.attention_path) if path is not None]


def _up_to_last(chain: list[Site], wanted: Sequence[str]) -> list[Site]:
    """The sites that relevance goes through until the last that is wanted."""
    return chain[: max((place + 1 for place, site in enumerate(chain) if site.name in wanted), default=0)]
