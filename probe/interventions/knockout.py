"""Attention knockout: phrases may not look at their regions (Geva et al. 2023, arXiv 2304.14767, section 4).

Attention of a phrase's tokens (in a decoder: of the query that the untouched model takes for the phrase) to the patches
of its own regions is set to -inf before the softmax, in one layer, or in that and all before it. Control: equally many
other patches of the same image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grounding.errors import BadInput
from grounding.models.base import Batch, GroundingModel, Site
from probe.interventions.groups import image_cells, phrase_cells, real_cells
from probe.interventions.live import Edit, Live
from probe.interventions.measure import effect_rows, mean_outcome, measure

ONE, UP_TO = "this layer", "up to this layer"


def require_taps(model: GroundingModel, site: Site) -> None:
    """Raise BadInput unless attention from phrases to patches passes through taps at a site, and follows them."""
    taps = None
    if site.attention_path is not None:
        taps = getattr(model.get_submodule(site.attention_path), "taps", None)
    joint = {"text", "image"} <= set(site.streams) or site.attention_layout is not None
    if taps is None or not (joint or "query" in site.streams):
        raise BadInput(f"site {site.name!r} has no taps on attention from phrases to patches: nothing can be cut there")
    if not taps.followed:
        raise BadInput(f"site {site.name!r}: its attention can be read and not be changed")


def attending(model: GroundingModel, sites: Sequence[Site]) -> list[Site]:
    """The sites of those whose attention from phrases to patches can be cut. Raises BadInput for none."""
    found = []
    for site in sites:
        try:
            require_taps(model, site)
        except BadInput:
            continue
        found.append(site)
    if not found:
        raise BadInput(f"{type(model).__name__} has no taps on attention from phrases to patches: nothing can be cut")
    return found


def knock_out(
    live: Live,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    threshold: float | None,
    draws: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Rows of effects (``measure.effect_rows``) of every site alone, and of every one with those before it.

    Nothing is cut from a phrase whose image has fewer other patches than its regions: no control would match it. Also
    returns how many phrases those are.
    """
    queries = {id(batch): getattr(live.run(batch), "phrase_query", None) for batch in batches}
    own = {id(batch): phrase_cells(batch) for batch in batches}
    others = [
        {id(batch): other_cells(batch, own[id(batch)], seed + draw) for batch in batches} for draw in range(draws)
    ]
    uncut = 0
    for batch in batches:
        short = others[0][id(batch)].sum(1) < own[id(batch)].sum(1)
        uncut += int(short.sum())
        for cells in (own, *others):
            cells[id(batch)][short] = False
    before = measure(live, batches, threshold)
    rows: list[dict[str, Any]] = []

    def cut(chosen: Sequence[Site], cells: Mapping[int, Tensor]) -> Callable[[Batch], list[Edit]]:
        return lambda batch: [
            edit
            for site in chosen
            for edit in edit_attention(live.model, site, batch, cells[id(batch)], queries[id(batch)])
        ]

    steps = [(k, reach) for k in range(len(sites)) for reach in (ONE, UP_TO)]
    for done, (k, reach) in enumerate(steps, start=1):
        chosen = sites[k : k + 1] if reach == ONE else sites[: k + 1]
        changed, *controls = (measure(live, batches, threshold, cut(chosen, cells)) for cells in (own, *others))
        site = sites[k]
        common = {"site": site.name, "stage": site.stage, "layer": site.layer, "target": reach}
        rows += effect_rows(common, before, changed, mean_outcome(controls), seed)
        if progress is not None:
            progress(done, len(steps))
    return rows, uncut


def other_cells(batch: Batch, own: Tensor, seed: int) -> Tensor:
    """For each phrase as many other patches of its image as ``own [P, cells]`` has (all there are, if fewer)."""
    real, owners = real_cells(batch), batch.phrase_example.tolist()
    found = torch.zeros_like(own)
    for number, (name, example) in enumerate(zip(batch.phrase_ids, owners, strict=True)):
        image = next(phrase.image_index for phrase in batch.examples[example].phrases if phrase.id == name)
        free = (image_cells(batch, example, image) & real[example] & ~own[number]).nonzero()[:, 0]
        digest = hashlib.sha256(f"{seed}\0{batch.examples[example].id}\0{name}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        order = torch.from_numpy(random.permutation(len(free))).to(free.device)
        found[number, free[order[: int(own[number].sum())]]] = True
    return found


def edit_regions(live: Live, batch: Batch, site: Site) -> list[Edit]:
    """Edits that cut attention at a site from each phrase to its regions."""
    queries = getattr(live.run(batch), "phrase_query", None)
    return edit_attention(live.model, site, batch, phrase_cells(batch), queries)


def edit_attention(
    model: GroundingModel, site: Site, batch: Batch, cells: Tensor, queries: Tensor | None
) -> list[Edit]:
    """Edits that cut attention at a site from each phrase to ``cells [P, cells]``.

    queries: int64 ``[P]``, which query stands for each phrase where the site's attention is that of queries.
    """
    cut = _Cut(model, site, batch, cells, queries)
    path = f"{site.attention_path}.taps"
    return [
        Edit(f"{path}.query", cut.see_query),
        Edit(f"{path}.key", cut.see_key),
        Edit(f"{path}.bias", cut.change_bias),
    ]


@dataclass
class _Cut:
    """The edits of one site's attention in one pass: queries and keys are only looked at, then the bias is changed."""

    model: GroundingModel
    site: Site
    batch: Batch
    cells: Tensor
    queries: Tensor | None
    _seen: dict[str, Tensor] = field(default_factory=dict)

    def see_query(self, query: Tensor) -> Tensor:
        """query: ``[M, heads, N, d]``."""
        self._seen["query"] = query
        return query

    def see_key(self, key: Tensor) -> Tensor:
        """key: ``[M, heads, L, d]``."""
        self._seen["key"] = key
        return key

    def change_bias(self, bias: Tensor | None) -> Tensor | None:
        """bias: broadcastable to ``[M, heads, N, L]``, or None. A query that would see nothing keeps what it sees."""
        query, key = self._seen.pop("query"), self._seen.pop("key")
        cut = self._cells_of_bias(query, key, bias)
        if not cut.any():
            return bias
        shape = (len(query), 1, query.shape[2], key.shape[2])
        before = query.new_zeros(shape) if bias is None else bias.expand(len(query), -1, *shape[2:])
        after = before.masked_fill(cut, -torch.inf)
        blind = after.isneginf().all(-1, keepdim=True)
        return torch.where(blind, before, after)

    def _cells_of_bias(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """Which entries of the bias are cut: bool ``[M, 1, N, L]``.

        Found, as for states, by looking at numbers in the place of queries and keys as the site looks at them.
        """
        cut = torch.zeros(len(query), 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        layout = (self.site.attention_layout or self.site.layout)(self.batch)
        for number in range(self.model.passes):
            with self.model.showing(number):
                placed = self.site.to_attention(_numbered(query), _numbered(key), bias)
            rows, columns = (part[:, 0, :, 0].long() - 1 for part in placed[:2])  # [B, queries] and [B, keys]
            images = [set((one[one >= 0] // key.shape[2]).tolist()) for one in columns]
            for phrase, example in enumerate(self.batch.phrase_example.tolist()):
                if layout.text is not None and layout.image is not None:
                    asking = rows[example, layout.text][self.batch.phrase_tokens[phrase]]
                    asked = columns[example, layout.image][self.cells[phrase]]
                else:  # a decoder's keys begin with the image tokens
                    assert self.queries is not None
                    asking = rows[example, self.queries[phrase]].reshape(1)
                    asked = columns[example, : self.cells.shape[1]][self.cells[phrase]]
                for ask in asking[asking >= 0].tolist():
                    image = ask // query.shape[2]
                    if image not in images[example]:
                        raise BadInput(
                            f"site {self.site.name!r}: its attention is shown with the keys of another pass; it can be "
                            "read and not be changed"
                        )
                    there = asked[(asked >= 0) & (asked // key.shape[2] == image)] % key.shape[2]
                    cut[image, 0, ask % query.shape[2], there] = True
        return cut


def _numbered(states: Tensor) -> Tensor:
    """Numbers from 1 on in the place of tokens ``[M, heads, N, d]``: float64 ``[M, heads, N, 1]``."""
    count = len(states) * states.shape[2]
    numbers = torch.arange(1, count + 1, dtype=torch.float64, device=states.device)
    return numbers.view(len(states), 1, states.shape[2], 1).expand(-1, states.shape[1], -1, -1)
