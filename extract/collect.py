"""From one forward pass to rows for the store: reduces each site while the pass runs, on the model's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract import views
from extract.plan import Plan
from grounding.errors import BadInput, unknown_choice
from grounding.models.base import Batch, Site

VIEWS = ("phrase", "region", "attention", "tokens")
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def offered_views(site: Site) -> tuple[str, ...]:
    """The views that a site can give itself (its partner sites supply the others)."""
    joint = {"text", "image"} <= set(site.streams)
    offered = {
        "phrase": "text" in site.streams,
        "region": "image" in site.streams or "query" in site.streams,
        "attention": site.attention_path is not None and (joint or "query" in site.streams),
        "tokens": True,
    }
    return tuple(view for view in VIEWS if offered[view])


def choose_views(sites: Sequence[Site], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Site name -> the wanted views that it offers. Raises BadInput for a view that is unknown or no site offers."""
    for view in wanted:
        if view not in VIEWS:
            raise unknown_choice("view", view, VIEWS)
        if not any(view in offered_views(site) for site in sites):
            raise BadInput(f"view {view!r} is offered by none of the sites {', '.join(s.name for s in sites)}")
    return {site.name: tuple(v for v in offered_views(site) if v in wanted) for site in sites}


@dataclass
class Rows:
    """Rows of one batch: (site, view) -> ``[rows, channels]`` in storage dtype, possibly still on their way.

    tokens: site -> number of real tokens of each example. unfit: (site, view) and a tensor ``[n, 2]``: how many
    values the storage dtype cannot hold, and how many of them were not finite to begin with.
    """

    values: dict[tuple[str, str], Tensor]
    tokens: dict[str, list[int]]
    unfit: Tensor
    arrived: Any = None

    def arrays(self) -> dict[tuple[str, str], np.ndarray]:
        """The rows as numpy arrays, waiting for the copy from the device.

        Raises BadInput naming site and number of values where some are not finite or do not fit the dtype.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        for (site, view), (unfit, broken), rows in zip(
            self.values, self.unfit.tolist(), self.values.values(), strict=True
        ):
            if broken:
                raise BadInput(f"site {site!r}: {broken} {view} values are not finite; they are not stored")
            if unfit:
                raise BadInput(
                    f"site {site!r}: {unfit} {view} values do not fit {_name(rows.dtype)}; use --dtype float32"
                )
        return {key: rows.numpy() for key, rows in self.values.items()}


@dataclass
class Collector:
    """Sink of a Capture for one batch.

    site_views: site name -> views to keep (``choose_views``). Sites that hold tokens are reduced inside the
    forward pass, so that nothing of it stays alive; query sites wait for the model's output, which says which
    query stands for which phrase and region.
    """

    batch: Batch
    plan: Plan
    site_views: Mapping[str, tuple[str, ...]]
    dtype: torch.dtype = torch.float16
    _values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _unfit: list[Tensor] = field(default_factory=list)
    _tokens: dict[str, list[int]] = field(default_factory=dict)
    _layouts: dict[Any, tuple[Tensor, list[int]]] = field(default_factory=dict)
    _late_states: list[tuple[Site, Tensor]] = field(default_factory=list)
    _late_attention: list[tuple[Site, Tensor, Tensor, Tensor | None]] = field(default_factory=list)

    def states(self, site: Site, states: Tensor) -> None:
        """Reduce the states ``[B, N, D]`` of a site to the views that are kept of it."""
        wanted = self.site_views[site.name]
        layout, plan = site.layout(self.batch), self.plan
        with _full_precision(states):
            if "phrase" in wanted and layout.text is not None:
                pooled = views.pool(states[:, layout.text], plan.phrase_weights)
                self._keep(site, "phrase", pooled.flatten(0, 1).index_select(0, plan.phrase_rows))
            if "region" in wanted and layout.image is not None:
                pooled = views.pool(states[:, layout.image], plan.region_weights)
                self._keep(site, "region", pooled.flatten(0, 1).index_select(0, plan.region_rows))
            elif "region" in wanted and layout.query is not None:
                self._late_states.append((site, states[:, layout.query]))
            if "tokens" in wanted:
                self._keep_tokens(site, states)

    def attention(self, site: Site, query: Tensor, key: Tensor, bias: Tensor | None) -> None:
        """Attention of the phrases' text tokens to the image, or keep a query site's for the end."""
        layout, plan = site.layout(self.batch), self.plan
        if layout.text is None or layout.image is None:
            self._late_attention.append((site, query, key, bias))
            return
        with _full_precision(query):
            rows = plan.token_rows + layout.text.start
            weights = views.attention_rows(query, key, bias, rows, layout.image, plan.token_weights)
            self._keep(site, "attention", weights.flatten(0, 2).index_select(0, plan.cell_rows))

    def finish(self, output: Any) -> Rows:
        """The rows of the batch, after its forward pass; copies to the host are under way on return."""
        with _full_precision(self.plan.region_weights):
            self._finish_regions(output)
            self._finish_attention(output)
        unfit = torch.stack(self._unfit).to("cpu", non_blocking=True)
        values = {key: rows.to("cpu", non_blocking=True) for key, rows in self._values.items()}
        arrived = None
        if self.plan.region_weights.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        return Rows(values, self._tokens, unfit, arrived)

    def _finish_regions(self, output: Any) -> None:
        if not self._late_states:
            return
        plan = self.plan
        best = views.best_queries(output.boxes_xyxy, plan.region_boxes, plan.region_example)
        for site, states in self._late_states:
            self._keep(site, "region", states[plan.region_example, best].float())
        self._late_states.clear()

    def _finish_attention(self, output: Any) -> None:
        if not self._late_attention:
            return
        plan, batch = self.plan, self.batch
        slots = plan.phrase_weights.shape[1]
        best = output.phrase_query.new_zeros(len(batch) * slots)
        best = best.index_copy(0, plan.phrase_rows, output.phrase_query).view(len(batch), slots)
        keys = slice(0, batch.grid[0] * batch.grid[1])  # a decoder's keys begin with the image tokens
        for site, query, key, bias in self._late_attention:
            weights = views.attention_rows(query, key, bias, best, keys)
            self._keep(site, "attention", weights.flatten(0, 2).index_select(0, plan.cell_rows))
        self._late_attention.clear()

    def _keep_tokens(self, site: Site, states: Tensor) -> None:
        layout = site.layout(self.batch)
        key = (str(layout), states.shape[1])
        if key not in self._layouts:
            rows, lengths = self.plan.real_tokens(layout, states.shape[1])
            self._layouts[key] = rows.to(states.device), lengths
        rows, self._tokens[site.name] = self._layouts[key]
        self._keep(site, "tokens", states.flatten(0, 1).index_select(0, rows))

    def _keep(self, site: Site, view: str, rows: Tensor) -> None:
        stored = rows.to(self.dtype)
        fits, finite = (torch.isfinite(values).sum() for values in (stored, rows))
        self._values[site.name, view] = stored
        self._unfit.append(rows.numel() - torch.stack([fits, finite]))


def _full_precision(like: Tensor) -> torch.autocast:
    """Views are computed in fp32, whatever precision the model runs in."""
    return torch.autocast(like.device.type, enabled=False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
