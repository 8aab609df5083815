"""What an extraction will take, told from a few batches of it before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Unpack

import h5py
import numpy as np
import torch

from extract.batch_size import find_batch_size, prepare, time_batch
from extract.metadata import ShardTables
from extract.modules import add_modules
from extract.run import choose
from extract.shards import Extractor, Options, Settings
from extract.store import META, rows_a_chunk
from extract.tables import write_table
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.models.base import GroundingModel

_BATCHES = 4  # looked at, spread over the examples


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    examples, shards, batch_size: of the run. bytes: view -> on disk, without compression (``meta``: the tables).
    seconds: from opening images to rows on the host, one after the other. sampled: examples it was told from.
    """

    examples: int
    shards: int
    batch_size: int
    bytes: dict[str, int]
    seconds: float
    sampled: int

    @property
    def total_bytes(self) -> int:
        """Size of the whole run."""
        return sum(self.bytes.values())


@dataclass
class _Sample:
    """What some batches gave. rows: (site, view) -> rows; widths and sizes: of a row, in channels and bytes."""

    examples: int = 0
    seconds: float = 0.0
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    row_bytes: dict[tuple[str, str], int] = field(default_factory=dict)
    tables: ShardTables = field(default_factory=ShardTables)
    heatmap_bytes: int = 0


def estimate(
    model: GroundingModel,
    examples: Sequence[Example],
    *,
    sites: Sequence[str] | None = None,
    modules: Sequence[str] = (),
    views: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    **settings: Unpack[Settings],
) -> Estimate:
    """Bytes and seconds that ``extract`` would take with the same arguments; writes nothing.

    A few batches, spread over the examples, are run as they would be. Raises BadInput as ``extract`` does.
    """
    if not len(examples):
        raise BadInput("there are no examples to extract")
    automatic = settings.get("batch_size") == "auto"
    options = Options.of(settings)
    model.to(device if device is not None else model.device).eval()
    sites = add_modules(model, modules, examples, sites)
    extractor = Extractor(model, choose(model, sites, views), options)
    size = find_batch_size(extractor, examples) if automatic else options.batch_size
    sample = _sample(extractor, examples, min(size, len(examples)))
    count, shards = len(examples), -(-len(examples) // options.shard_size)
    sizes = {META: _table_bytes(sample) * count // sample.examples}
    for (site, view), rows in sample.rows.items():
        width = sample.row_bytes[site, view]
        a_shard = rows / sample.examples * min(options.shard_size, count)
        chunks = math.ceil(a_shard / rows_a_chunk(width)) * (count / min(options.shard_size, count))
        sizes[view] = sizes.get(view, 0) + round(chunks * rows_a_chunk(width) * width)
    return Estimate(count, shards, size, sizes, sample.seconds * count / sample.examples, sample.examples)


def _sample(extractor: Extractor, examples: Sequence[Example], size: int) -> _Sample:
    sample = _Sample(tables=ShardTables(extractor.options.threshold))
    begins = np.linspace(0, len(examples) - size, min(_BATCHES, len(examples) // size)).astype(int).tolist()
    for begin in begins:
        started = time.perf_counter()
        prepared = prepare(extractor, examples, range(begin, begin + size))
        opening = time.perf_counter() - started
        sample.examples += size
        if prepared.ready is None:
            continue
        passing, result = time_batch(extractor, prepared)
        sample.seconds += opening + passing
        ready = prepared.ready
        for key, rows in result.rows.arrays().items():
            sample.rows[key] = sample.rows.get(key, 0) + len(rows)
            sample.row_bytes[key] = rows.shape[1] * rows.itemsize
        heatmaps = sample.tables.add(ready.batch, ready.plan.grids, ready.regions, result.predictions, result.points)
        sample.heatmap_bytes += heatmaps.nbytes
    return sample


def _table_bytes(sample: _Sample) -> int:
    """Bytes of the tables of the sample, as HDF5 stores them."""
    with h5py.File("tables", "w", driver="core", backing_store=False) as file:
        for name, table in sample.tables.tables().items():
            write_table(file, name, table)
        file.flush()
        return int(file.id.get_filesize()) + sample.heatmap_bytes + sample.tables.all_text_offsets().nbytes
