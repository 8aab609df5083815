"""The loop over shards: claim, load, run the model, reduce, and hand over to the writer thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.background import Background
from extract.capture import Capture
from extract.claims import Claims
from extract.collect import DTYPES, Collector, Rows
from extract.extra_boxes import EXTRA_BOXES
from extract.loading import BatchTask, Prepared, ReadyBatch, load_batches, split_shard
from extract.metadata import ShardTables
from extract.store import ShardWriter, discard, is_complete
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Prediction
from grounding.metrics.heatmaps import check_threshold
from grounding.models.base import GroundingModel, Site

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """How to extract; see ``extract.run.extract``. Raises BadInput for values that make no sense."""

    batch_size: int = 16
    dtype: str = "float16"
    precision: str = "fp32"
    shard_size: int = 256
    workers: int = 0
    threshold: float | None = None
    skip_bad: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("shard_size", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} {getattr(self, name)} is too small; accepted: {least} or more")
        if self.dtype not in DTYPES:
            raise unknown_choice("dtype", self.dtype, DTYPES)
        if self.precision not in PRECISIONS:
            raise unknown_choice("precision", self.precision, PRECISIONS)
        if self.threshold is not None:
            check_threshold(self.threshold)

    def identity(self) -> dict[str, Any]:
        """The options that the content of a run depends on."""
        names = ("dtype", "precision", "shard_size", "threshold")
        boxes = {"an_image": EXTRA_BOXES, "seed": self.seed}
        return {name: getattr(self, name) for name in names} | {"extra_boxes": boxes}


@dataclass(frozen=True)
class Forward:
    """What one batch leaves behind: rows of its views, predictions, answer points ``[B, 2]`` on the real canvas."""

    rows: Rows
    predictions: list[Prediction]
    points: np.ndarray


@dataclass(frozen=True)
class Extractor:
    """A model and the views to keep of its sites, as a function of a batch and as the author of shards.

    site_views: site name -> views (``collect.choose_views``). made_with: for the record of each shard.
    """

    model: GroundingModel
    sites: Sequence[Site]
    site_views: Mapping[str, tuple[str, ...]]
    options: Options
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def forward(self, ready: ReadyBatch) -> Forward:
        """One pass of the model over a batch, every site reduced on the model's device."""
        device = self.model.device
        batch = ready.batch.to(device, non_blocking=True)
        collector = Collector(batch, ready.plan.to(device), self.site_views, DTYPES[self.options.dtype])
        read = [site for site in self.sites if set(self.site_views[site.name]) - {"attention"}]
        attended = [site for site in self.sites if "attention" in self.site_views[site.name]]
        with torch.inference_mode():
            with self._autocast(device), Capture(self.model, read, collector, attended):
                output = self.model(batch)
            rows = collector.finish(output)
            predictions = self.model.predict(batch, output)
            return Forward(rows, predictions, output.task_point.float().cpu().numpy())

    def columns(self) -> dict[tuple[str, str], int]:
        """(site, view) -> channels of its rows."""
        heads = {site.name: attention_heads(self.model, site) for site in self.sites}
        return {
            (site.name, view): (heads[site.name] or 0) if view == "attention" else site.width
            for site in self.sites
            for view in self.site_views[site.name]
        }

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.options.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@dataclass
class OpenShard:
    """A shard being written; its methods run in the writer thread."""

    number: int
    writer: ShardWriter
    tables: ShardTables
    skipped: list[list[str]] = field(default_factory=list)

    def add(self, prepared: Prepared, result: Forward | None) -> None:
        """Append a batch."""
        self.skipped += [list(skip) for skip in prepared.skipped]
        if prepared.ready is None or result is None:
            return
        ready = prepared.ready
        for (site, view), rows in result.rows.arrays().items():
            self.writer.append(site, view, rows)
        heatmaps = self.tables.add(
            ready.batch, ready.plan.grids, ready.regions, result.predictions, result.points, result.rows.tokens
        )
        self.writer.append_meta("heatmaps", heatmaps)

    def close(self, task: BatchTask, begin: int, made_with: Mapping[str, Any]) -> None:
        """Write the tables and give the shard's files their names."""
        self.writer.append_meta("text_offsets", self.tables.all_text_offsets())
        notes = {"skipped": self.skipped, "dropped_phrases": self.tables.dropped_phrases}
        self.writer.commit(begin, task.end, self.tables.tables(), **notes, made_with=dict(made_with))


def extract_shards(
    extractor: Extractor,
    examples: Sequence[Example],
    out: Path,
    claims: Claims,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write every shard of ``out`` that is neither complete nor claimed by another worker.

    progress: called with the number of examples that a batch had. On an error nothing unfinished stays behind.
    """
    options = extractor.options
    tasks = _claimed_tasks(len(examples), options, out, claims)
    batches = load_batches(
        extractor.model, examples, tasks, skip_bad=options.skip_bad, extra_boxes=EXTRA_BOXES, seed=options.seed,
        workers=options.workers,
    )  # fmt: skip
    opened: list[OpenShard] = []
    try:
        with Background() as writer:
            for prepared in batches:
                task = prepared.task
                if not opened or opened[-1].number != task.shard:
                    opened = [*opened[-1:], _open_shard(extractor, out, claims, task.shard)]
                shard = opened[-1]
                result = extractor.forward(prepared.ready) if prepared.ready is not None else None
                writer.submit(shard.add, prepared, result)
                if task.last:
                    writer.submit(shard.close, task, task.shard * options.shard_size, extractor.made_with)
                    writer.submit(claims.release, task.shard)
                if progress is not None:
                    progress(task.end - task.begin)
            writer.drain()
    finally:
        for shard in opened:
            shard.writer.abort()


def attention_heads(model: GroundingModel, site: Site) -> int | None:
    """Heads of a site's attention module; None where it has none."""
    if site.attention_path is None:
        return None
    try:
        return int(model.get_submodule(site.attention_path).taps.heads)  # type: ignore[union-attr, arg-type]
    except AttributeError:
        raise BadInput(f"site {site.name!r}: {site.attention_path!r} is no attention module with taps") from None


def _claimed_tasks(count: int, options: Options, out: Path, claims: Claims) -> Iterator[BatchTask]:
    """Batches of the shards that this worker could claim, each shard claimed when it is asked for."""
    for shard in range(-(-count // options.shard_size)):
        if is_complete(out, shard) or not claims.acquire(shard):
            continue
        if is_complete(out, shard):  # finished by another worker between the two looks
            claims.release(shard)
            continue
        yield from split_shard(shard, options.shard_size, options.batch_size, count)


def _open_shard(extractor: Extractor, out: Path, claims: Claims, number: int) -> OpenShard:
    options = extractor.options
    discard(out, number)
    writer = ShardWriter(out, number, claims.token, extractor.columns(), options.dtype)
    token_sites = [site for site, view in extractor.columns() if view == "tokens"]
    return OpenShard(number, writer, ShardTables(options.threshold, token_sites))
