"""The pairs of a batch in parts that fit the memory, for probes whose loss is a sum over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.estimators.base import Batch
from probe.estimators.site_rows import RowsInMemory

_ELEMENTS = 2**26  # numbers of rows at hand at once
_STREAMED = 2**22  # of rows on disk: few enough for memory that was used before to be used again


@dataclass(frozen=True)
class Chunk:
    """Some blocks of pairs of A problems, laid out as in Grid: e blocks of m phrases by k regions.

    rows: view -> ``[A, e, m or k, D]``. count, positive: ``[e, m, k]``.
    """

    rows: dict[str, Tensor]
    count: Tensor
    positive: Tensor


class Chunks:
    """A batch in chunks. One that is all there is is kept; others are gathered, or read, at every pass."""

    def __init__(self, batch: Batch, views: Sequence[str] = ("phrase", "region")):
        self.batch, self.views = batch, views
        grid = batch.grid
        sizes = {"phrase": grid.phrases.shape[1], "region": grid.regions.shape[1]}
        each = batch.phrase.jobs * sum(sizes[view] * getattr(batch, view).width for view in views)
        at_once = _ELEMENTS if isinstance(batch.phrase, RowsInMemory) else _STREAMED
        blocks = torch.arange(len(grid.phrases), device=batch.target.device)
        self.parts = blocks.split(max(1, at_once // each))
        self._all: Chunk | None = None
        self._some: tuple[Tensor, Chunk] | None = None

    def of(self, problems: Tensor | None = None) -> Iterator[Chunk]:
        """The chunks of some problems (int64 ``[A]``, in order), or of all."""
        if problems is not None and len(problems) == self.batch.phrase.jobs:
            problems = None
        if len(self.parts) > 1:
            yield from (self._gather(part, problems) for part in self.parts)
            return
        if self._all is None:
            self._all = self._gather(self.parts[0], None)
        if problems is None:
            yield self._all
            return
        # Problems finish rarely, so the same ones are asked for again and again.
        if self._some is None or not torch.equal(self._some[0], problems):
            rows = {view: values[problems] for view, values in self._all.rows.items()}
            self._some = problems, Chunk(rows, self._all.count, self._all.positive)
        yield self._some[1]

    def _gather(self, part: Tensor, problems: Tensor | None) -> Chunk:
        grid = self.batch.grid
        rows = {}
        for view in self.views:
            places = getattr(grid, f"{view}s")[part]  # [e, m or k]
            found = getattr(self.batch, view).take(places.ravel(), problems)
            rows[view] = found.view(len(found), *places.shape, -1)
        return Chunk(rows, grid.count[part], grid.positive[part])
