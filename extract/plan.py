"""What the views of a batch need besides the states, computed once for all sites on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from extract.extra_boxes import extra_boxes
from extract.views import canvas_boxes, region_weights, valid_grid
from grounding.models.base import Batch, TokenLayout


@dataclass(frozen=True)
class Regions:
    """Candidate regions of a batch, ordered by example: the annotated ones by phrase, then the extra boxes.

    example: row in the batch. image_index: candidate. boxes: float32 ``[R, 4]`` xyxy relative to it.
    phrase: row among the batch's phrases, -1 for an extra box. All int64 ``[R]`` but boxes.
    """

    example: np.ndarray
    image_index: np.ndarray
    boxes: np.ndarray
    phrase: np.ndarray

    @classmethod
    def of(cls, batch: Batch, extra: int, seed: int) -> Regions:
        """The regions of the batch's phrases, and ``extra`` seeded boxes for each annotated image."""
        rows: list[tuple[int, int, tuple[float, ...], int]] = []
        phrases = list(zip(batch.phrase_example.tolist(), batch.phrase_ids, strict=True))
        by_example: dict[int, list[tuple[int, str]]] = {}
        for p, (b, phrase_id) in enumerate(phrases):
            by_example.setdefault(b, []).append((p, phrase_id))
        for b, example in enumerate(batch.examples):
            known = {phrase.id: phrase for phrase in example.phrases}
            for p, phrase_id in by_example.get(b, []):
                phrase = known[phrase_id]
                rows += [(b, phrase.image_index, region.box, p) for region in phrase.regions]
            rows += [(b, image, box, -1) for image, box in extra_boxes(example, extra, seed)]
        return cls(
            example=np.array([row[0] for row in rows], dtype=np.int64),
            image_index=np.array([row[1] for row in rows], dtype=np.int64),
            boxes=np.array([row[2] for row in rows], dtype=np.float32).reshape(-1, 4),
            phrase=np.array([row[3] for row in rows], dtype=np.int64),
        )


@dataclass(frozen=True)
class Pooling:
    """Phrase and region means of a site at once.

    weights: ``[B, K, N]`` over all its tokens. rows: where the rows wanted are in the flattened ``B * K`` results,
    those of one view after the other. views: view -> how many rows are its.
    """

    weights: Tensor
    rows: Tensor
    views: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """Weights and row numbers for a batch of B examples, P phrases and R regions.

    Per-example tables are padded to the most phrases (K), regions (M) or phrase tokens (S) of an example; a
    phrase's or region's slot is its place in the padded table of its example.

    phrase_weights: ``[B, K, T]`` over text tokens. phrase_example, phrase_slots: ``[P]``.
    region_weights: ``[B, M, cells]`` over image tokens. region_example, region_slots: ``[R]``.
    region_boxes: ``[R, 4]`` on the real canvas.
    token_rows: ``[B, S]``, the text tokens in any phrase. token_weights: ``[B, K, S]``.
    cell_rows: ``[sum of phrases' cells]`` in ``B * K * cells``, the real cells of every phrase in turn.
    grids: per example (rows, columns) of its real cells. text_positions: per example the real text tokens.
    """

    phrase_weights: Tensor
    phrase_example: Tensor
    phrase_slots: Tensor
    region_weights: Tensor
    region_example: Tensor
    region_slots: Tensor
    region_boxes: Tensor
    token_rows: Tensor
    token_weights: Tensor
    cell_rows: Tensor
    grids: tuple[tuple[int, int], ...]
    text_positions: tuple[Tensor, ...]
    columns: int

    @classmethod
    def of(cls, batch: Batch, regions: Regions) -> Plan:
        """Plan of a batch that is on the CPU."""
        phrase_slot, most_phrases = _slots(batch.phrase_example, len(batch))
        example = torch.from_numpy(regions.example)
        region_slot, most_regions = _slots(example, len(batch))
        image_index, boxes = torch.from_numpy(regions.image_index), torch.from_numpy(regions.boxes)
        weights = batch.phrase_tokens.float()
        weights = weights / weights.sum(1, keepdim=True)
        region = region_weights(batch, example, image_index, boxes)
        images = [len(batch.examples[b].images) for b in regions.example]
        token_rows, token_weights = _phrase_tokens(batch, weights, phrase_slot, most_phrases)
        grids = tuple(valid_grid(batch, b) for b in range(len(batch)))
        return cls(
            phrase_weights=_pad(weights, batch.phrase_example, phrase_slot, len(batch), most_phrases),
            phrase_example=batch.phrase_example,
            phrase_slots=phrase_slot,
            region_weights=_pad(region, example, region_slot, len(batch), most_regions),
            region_example=example,
            region_slots=region_slot,
            region_boxes=canvas_boxes(boxes, image_index, images),
            token_rows=token_rows,
            token_weights=token_weights,
            cell_rows=_cell_rows(batch, grids, batch.phrase_example * most_phrases + phrase_slot),
            grids=grids,
            text_positions=batch.text_mask.nonzero()[:, 1].split(batch.text_mask.sum(1).tolist()),
            columns=batch.grid[1],
        )

    def to(self, device: torch.device | str) -> Plan:
        """The same plan with its tensors on ``device`` (the per-example tuples stay)."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Plan:
        """The same plan with its tensors in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Plan:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {name: function(value) for name, value in values if isinstance(value, Tensor)}
        return replace(self, **moved)

    def by_slot(self, values: Tensor) -> Tensor:
        """Values of the phrases ``[P]`` as a table ``[B, K]``, zeros where an example has fewer phrases."""
        table = values.new_zeros(self.phrase_weights.shape[:2])
        return table.index_put((self.phrase_example, self.phrase_slots), values)

    def pooling(self, layout: TokenLayout, tokens: int, wanted: Sequence[str]) -> Pooling:
        """Phrase and region means of sites with that layout over ``tokens`` tokens, as one matrix product."""
        weights, rows, views = [], [], {}
        parts = (
            ("phrase", layout.text, self.phrase_weights, self.phrase_slots, self.phrase_example),
            ("region", layout.image, self.region_weights, self.region_slots, self.region_example),
        )
        height = sum(own.shape[1] for view, place, own, _, _ in parts if view in wanted and place is not None)
        begin = 0
        for view, place, own, slots, example in parts:
            if view in wanted and place is not None:
                weights.append(functional.pad(own, (place.start, tokens - place.stop)))
                rows.append(example * height + begin + slots)
                views[view] = len(slots)
                begin += own.shape[1]
        if not views:
            return Pooling(self.phrase_weights, self.phrase_slots, views)
        return Pooling(torch.cat(weights, dim=1), torch.cat(rows), views)

    def real_tokens(self, layout: TokenLayout, tokens: int) -> tuple[Tensor, list[int]]:
        """Real tokens of each example as positions in ``B * tokens``, and how many each has.

        In the order text, image (raster), query, whatever the order in the model; padding and class tokens go.
        """
        positions = []
        for text, (rows, columns) in zip(self.text_positions, self.grids, strict=True):
            parts = []
            if layout.text is not None:
                parts.append(text + layout.text.start)
            if layout.image is not None:
                parts.append(_raster(rows, columns, self.columns) + layout.image.start)
            if layout.query is not None:
                parts.append(torch.arange(layout.query.start, layout.query.stop))
            positions.append(torch.cat(parts))
        flat = torch.cat([p + b * tokens for b, p in enumerate(positions)])
        return flat.to(self.phrase_weights.device), [len(p) for p in positions]


def _slots(example: Tensor, count: int) -> tuple[Tensor, int]:
    """Place of each row among those of its example (rows are sorted by example), and the most of one example."""
    counts = torch.bincount(example, minlength=count)
    first = counts.cumsum(0) - counts
    return torch.arange(len(example)) - first[example], int(counts.max())


def _pad(rows: Tensor, example: Tensor, slot: Tensor, count: int, most: int) -> Tensor:
    padded = rows.new_zeros(count, most, rows.shape[1])
    padded[example, slot] = rows
    return padded


def _phrase_tokens(batch: Batch, weights: Tensor, slot: Tensor, most: int) -> tuple[Tensor, Tensor]:
    uses = torch.zeros(batch.text_mask.shape, dtype=torch.int32)
    used = uses.index_add_(0, batch.phrase_example, batch.phrase_tokens.int()) > 0
    widest = int(used.sum(1).max())
    rows = used.int().argsort(dim=1, descending=True, stable=True)[:, :widest]  # used tokens first, in order
    padded = _pad(weights, batch.phrase_example, slot, len(batch), most)
    return rows, padded.gather(2, rows[:, None].expand(-1, most, -1))


def _cell_rows(batch: Batch, grids: tuple[tuple[int, int], ...], phrase_rows: Tensor) -> Tensor:
    rows, columns = batch.grid
    sizes = torch.tensor(grids)[batch.phrase_example]  # [P, 2]
    inside_y = torch.arange(rows) < sizes[:, :1]
    inside_x = torch.arange(columns) < sizes[:, 1:]
    real = (inside_y[:, :, None] & inside_x[:, None, :]).flatten(1)  # [P, cells]
    return (phrase_rows[:, None] * (rows * columns) + torch.arange(rows * columns))[real]


def _raster(rows: int, columns: int, stride: int) -> Tensor:
    """Positions of the first ``rows`` x ``columns`` cells of a grid ``stride`` cells wide."""
    return (torch.arange(rows)[:, None] * stride + torch.arange(columns)).flatten()
