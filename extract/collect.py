"""From one forward pass to rows for the store: reduces each site while the pass runs, on the model's device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from extract import views
from extract.plan import Plan, Pooling
from extract.relevance.kinds import (
    AT_ONE_SITE,
    ATTENTION,
    BACK,
    RELEVANCE,
    expand,
    first_site,
    is_relevance,
    method_of,
    offers,
)
from extract.store import BFLOAT16
from extract.transfer import Arriving, Transfer
from grounding.errors import BadInput, unknown_choice
from grounding.models.base import Batch, Site, TokenLayout

_PEAKS = "peaks"
DEFAULT_VIEWS = ("phrase", "region", ATTENTION)
TOKENS = "tokens"
VIEWS = (*DEFAULT_VIEWS, TOKENS, BACK, *RELEVANCE)
DTYPES = {"float16": torch.float16, "float32": torch.float32, BFLOAT16: torch.bfloat16}


def offered_views(site: Site) -> tuple[str, ...]:
    """The views that a site can give itself (its partner sites supply the others)."""
    joint = {"text", "image"} <= set(site.streams)
    offered = {
        "phrase": "text" in site.streams,
        "region": "image" in site.streams or ("query" in site.streams and site.query_boxes),
        ATTENTION: site.attention_path is not None
        and (joint or "query" in site.streams or site.attention_layout is not None),
        BACK: site.attention_path is not None and joint and site.attention_layout is None,
        "tokens": True,
    }
    return tuple(view for view in VIEWS if (offers(site, view) if is_relevance(view) else offered[view]))


def choose_views(sites: Sequence[Site], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Site name -> the wanted views that it offers, ``relevance`` being several (``expand``).

    What belongs to the whole model is kept at ``first_site``. Raises BadInput for a view that is unknown or no site
    offers.
    """
    wanted, first = expand(wanted), first_site(sites)
    for view in wanted:
        if view not in VIEWS:
            raise unknown_choice("view", view, VIEWS)
        if not any(view in offered_views(site) for site in sites):
            raise BadInput(f"view {view!r} is offered by none of the sites {', '.join(s.name for s in sites)}")
    return {
        site.name: tuple(
            view
            for view in offered_views(site)
            if view in wanted and (site.name == first or method_of(view) not in AT_ONE_SITE)
        )
        for site in sites
    }


@dataclass
class Rows:
    """Rows of one batch: (site, view) -> ``[rows, channels]`` in storage dtype, still on their way to the host.

    tokens: site -> number of real tokens of each example. changes: (site, view) -> what stands beside it, fp32
    ``[P, 2]``. Beside the rows, under ``_PEAKS``, comes for each of them a bound of its magnitudes before they were
    stored; NaN or infinite where a value is.
    """

    values: Arriving
    tokens: dict[str, list[int]]
    changes: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def arrays(self) -> dict[tuple[str, str], np.ndarray]:
        """The rows as numpy arrays (of bfloat16 the bits, as uint16), waiting for the copy.

        Raises BadInput naming site and number of values where some are not finite or do not fit the dtype.
        """
        arrived, arrays = self.values.wait(), {}
        for key, peak in self.peaks().items():
            rows = arrived[key]
            if not peak <= torch.finfo(rows.dtype).max:
                _refuse(key, rows, peak)
            arrays[key] = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
        return arrays

    def peaks(self) -> dict[tuple[str, str], float]:
        """The bounds of the rows' magnitudes, waiting for the copy."""
        arrived = self.values.wait()
        return dict(zip((key for key in arrived if key != _PEAKS), arrived[_PEAKS].tolist(), strict=True))


def _refuse(key: tuple[str, str], rows: Tensor, peak: float) -> None:
    site, view = key
    lost = int((~rows.isfinite()).sum())
    if lost and not math.isfinite(peak):
        raise BadInput(f"site {site!r}: {lost} {view} values are not finite; they are not stored")
    if lost:  # a peak just above the largest value may still be rounded down to it
        raise BadInput(f"site {site!r}: {lost} {view} values do not fit {_name(rows.dtype)}; use --dtype float32")


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
    transfer: Transfer = field(default_factory=lambda: Transfer(torch.device("cpu")))
    _values: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _peaks: list[Tensor] = field(default_factory=list)
    _tokens: dict[str, list[int]] = field(default_factory=dict)
    _changes: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _layouts: dict[Any, Any] = field(default_factory=dict)
    _late_states: list[tuple[Site, Tensor]] = field(default_factory=list)
    _late_attention: list[tuple[Site, Tensor, Tensor, Tensor | None]] = field(default_factory=list)

    def states(self, site: Site, states: Tensor) -> None:
        """Reduce the states ``[B, N, D]`` of a site to the views that are kept of it."""
        wanted, layout = self.site_views[site.name], site.layout(self.batch)
        with _full_precision(states):
            pooling = self._pooling(layout, states.shape[1], wanted)
            if pooling.views:
                rows = views.pool(states, pooling.weights).flatten(0, 1).index_select(0, pooling.rows)
                self._keep(site.name, pooling.views, rows)
            if "region" in wanted and layout.query is not None:
                self._late_states.append((site, states[:, layout.query]))
            if "tokens" in wanted:
                rows, self._tokens[site.name] = self._real_tokens(layout, states.shape[1])
                self._keep(site.name, {"tokens": len(rows)}, states.flatten(0, 1).index_select(0, rows))

    def attention(self, site: Site, query: Tensor, key: Tensor, bias: Tensor | None) -> None:
        """Attention of the phrases' text tokens to the image and back, or keep a query site's for the end."""
        layout, plan = (site.attention_layout or site.layout)(self.batch), self.plan
        if layout.text is None or layout.image is None:
            self._late_attention.append((site, query, key, bias))
            return
        with _full_precision(query):
            rows = plan.token_rows + layout.text.start
            if ATTENTION in self.site_views[site.name]:
                weights = views.attention_rows(query, key, bias, rows, layout.image, plan.token_weights)
                self._keep_cells(site, ATTENTION, weights)
            if BACK in self.site_views[site.name]:
                weights = views.attention_back(query, key, bias, layout.image, rows, plan.token_weights)
                self._keep_cells(site, BACK, weights)

    def relevance(self, values: Mapping[tuple[str, str], Tensor], changes: Mapping[tuple[str, str], Tensor]) -> None:
        """Keep relevance, as ``extract.relevance.compute.relevance`` gives it."""
        for (site, view), cells in values.items():
            rows = cells.flatten(0, 2).index_select(0, self.plan.cell_rows)
            self._keep(site, {view: len(rows)}, rows, torch.float32)
        self._changes |= {key: change.cpu() for key, change in changes.items()}

    def finish(self, output: Any = None) -> Rows:
        """The rows of the batch, after its forward pass, if any; copies to the host are under way on return."""
        with _full_precision(self.plan.region_weights):
            self._finish_regions(output)
            self._finish_attention(output)
        values: dict[Any, Tensor] = {
            _PEAKS: torch.stack(self._peaks) if self._peaks else torch.zeros(0),
            **self._values,
        }
        return Rows(self.transfer.to_host(values), self._tokens, self._changes)

    def _finish_regions(self, output: Any) -> None:
        if not self._late_states:
            return
        plan = self.plan
        best = views.best_queries(output.boxes_xyxy, plan.region_boxes, plan.region_example)
        for site, states in self._late_states:
            self._keep(site.name, {"region": len(best)}, states[plan.region_example, best].float())
        self._late_states.clear()

    def _finish_attention(self, output: Any) -> None:
        if not self._late_attention:
            return
        plan, batch = self.plan, self.batch
        best = plan.by_slot(output.phrase_query)
        keys = slice(0, batch.grid[0] * batch.grid[1])  # a decoder's keys begin with the image tokens
        for site, query, key, bias in self._late_attention:
            weights = views.attention_rows(query, key, bias, best, keys)
            self._keep_cells(site, ATTENTION, weights)
        self._late_attention.clear()

    def _pooling(self, layout: TokenLayout, tokens: int, wanted: tuple[str, ...]) -> Pooling:
        key = ("pooling", str(layout), tokens, wanted)
        if key not in self._layouts:
            self._layouts[key] = self.plan.pooling(layout, tokens, wanted)
        return self._layouts[key]

    def _real_tokens(self, layout: TokenLayout, tokens: int) -> tuple[Tensor, list[int]]:
        key = ("tokens", str(layout), tokens)
        if key not in self._layouts:
            self._layouts[key] = self.plan.real_tokens(layout, tokens)
        return self._layouts[key]

    def _keep_cells(self, site: Site, view: str, weights: Tensor) -> None:
        rows = weights.flatten(0, 2).index_select(0, self.plan.cell_rows)
        self._keep(site.name, {view: len(rows)}, rows)

    def _keep(self, site: str, lengths: Mapping[str, int], rows: Tensor, dtype: torch.dtype | None = None) -> None:
        """Keep rows ``[sum of lengths, channels]`` of some views, in their order, in storage dtype or another."""
        peak = rows.abs().amax().float() if rows.numel() else rows.new_zeros((), dtype=torch.float32)
        for view, part in zip(lengths, rows.to(dtype or self.dtype).split(list(lengths.values())), strict=True):
            self._values[site, view] = part
            self._peaks.append(peak)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def _full_precision(like: Tensor) -> torch.autocast:
    """Views are computed in fp32, whatever precision the model runs in."""
    return torch.autocast(like.device.type, enabled=False)
