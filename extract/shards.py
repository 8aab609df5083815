"""The loop over shards: claim, load, run the model, reduce, and hand over to the writer thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from extract.background import Background
from extract.capture import Capture
from extract.claims import Claims
from extract.collect import DTYPES, Collector, Rows
from extract.extra_boxes import EXTRA_BOXES
from extract.loading import BatchTask, Prepared, ReadyBatch, load_batches, shard_range, split_shard
from extract.metadata import ShardTables
from extract.relevance.compute import relevance
from extract.relevance.kinds import ATTENDED, has_heads, is_relevance
from extract.store import COMPRESSIONS, TABLES, ShardWriter, check_counts, discard, is_complete
from extract.tables import Columns
from extract.transfer import Transfer
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Prediction
from grounding.metrics.heatmaps import check_threshold
from grounding.models.base import GroundingModel, Site

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Settings(TypedDict, total=False):
    """Settings of an extraction, as keyword arguments.

    batch_size: examples a batch, or "auto". dtype: of storage, float16, bfloat16 or float32. precision: of computing,
    fp32, bf16 or fp16 (autocast); views are reduced in fp32 whatever it is. shard_size: examples a file, the unit of
    resuming. workers: processes that open images. threshold: of heatmaps, for the model's own boxes and IoU (without
    one, those of heatmap models are NaN). skip_bad: leave out examples whose images cannot be read, and list them in
    the manifest. seed: of the extra boxes. compression: of the views on disk, none, lzf or gzip.
    """

    batch_size: int | Literal["auto"]
    dtype: str
    precision: str
    shard_size: int
    workers: int
    threshold: float | None
    skip_bad: bool
    seed: int
    compression: str


@dataclass(frozen=True)
class Options:
    """The values of ``Settings``, with their defaults. Raises BadInput for those that make no sense."""

    batch_size: int = 16
    dtype: str = "float16"
    precision: str = "fp32"
    shard_size: int = 256
    workers: int = 0
    threshold: float | None = None
    skip_bad: bool = False
    seed: int = 0
    compression: str = "none"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("shard_size", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} {getattr(self, name)} is too small; accepted: {least} or more")
        if self.dtype not in DTYPES:
            raise unknown_choice("dtype", self.dtype, DTYPES)
        if self.precision not in PRECISIONS:
            raise unknown_choice("precision", self.precision, PRECISIONS)
        if self.compression not in COMPRESSIONS:
            raise unknown_choice("compression", self.compression, COMPRESSIONS)
        if self.threshold is not None:
            check_threshold(self.threshold)

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """The options that settings give; a batch size still to be found counts as 1."""
        size = {"batch_size": 1} if settings.get("batch_size") == "auto" else {}
        return cls(**{**settings, **size})  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """The options that the content of a run depends on."""
        names = ("dtype", "precision", "shard_size", "threshold")
        boxes = {"an_image": EXTRA_BOXES, "seed": self.seed}
        return {name: getattr(self, name) for name in names} | {"extra_boxes": boxes}


@dataclass(frozen=True)
class Forward:
    """What one batch leaves behind: rows of its views, and what the model answered.

    points: ``[B, 2]``, the answers on the real canvas. Predictions and points are empty for a later part of a run.
    """

    rows: Rows
    predictions: list[Prediction] = field(default_factory=list)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))


@dataclass(frozen=True)
class Extractor:
    """A model and the views to keep of its sites, as a function of a batch and as the author of shards.

    site_views: site name -> views (``collect.choose_views``). made_with: for the record of each shard. part: 0, or the
    number of a later addition to a run whose shards have their tables already.
    """

    model: GroundingModel
    site_views: Mapping[str, tuple[str, ...]]
    options: Options
    made_with: Mapping[str, Any] = field(default_factory=dict)
    part: int = 0

    @cached_property
    def sites(self) -> list[Site]:
        """The sites that are read, in the model's order."""
        return [site for site in self.model.all_sites() if site.name in self.site_views]

    @cached_property
    def transfer(self) -> Transfer:
        """How its rows come to the host."""
        return Transfer(self.model.device)

    def forward(self, ready: ReadyBatch) -> Forward:
        """One pass of the model over a batch, every site reduced on the model's device; more of them for relevance."""
        device = self.model.device
        batch, plan = ready.batch.to(device, non_blocking=True), ready.plan.to(device)
        collector = Collector(batch, plan, self.site_views, DTYPES[self.options.dtype], self.transfer)
        kept = {site: {view for view in views if not is_relevance(view)} for site, views in self.site_views.items()}
        if any(set(self.site_views[site]) - kept[site] for site in kept):
            with self._autocast(device):
                collector.relevance(*relevance(self.model, batch, plan, self.site_views))
        if self.part and not any(kept.values()):
            return Forward(collector.finish())
        read = [site for site in self.sites if kept[site.name] - set(ATTENDED)]
        attended = [site for site in self.sites if kept[site.name] & set(ATTENDED)]
        with torch.inference_mode():
            with self._autocast(device), Capture(self.model, read, collector, attended):
                output = self.model(batch)
            rows = collector.finish(output)
            if self.part:
                return Forward(rows)
            predictions = self.model.predict(batch, output)
            return Forward(rows, predictions, output.task_point.float().cpu().numpy())

    def columns(self) -> dict[tuple[str, str], int]:
        """(site, view) -> channels of its rows."""
        return {
            (site.name, view): view_width(self.model, site, view)
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
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))

    def add(self, prepared: Prepared, result: Forward | None) -> None:
        """Append a batch."""
        self.skipped += [list(skip) for skip in prepared.skipped]
        if prepared.ready is None or result is None:
            return
        ready = prepared.ready
        peaks = result.rows.peaks()
        for (site, view), rows in result.rows.arrays().items():
            self.writer.append(site, view, rows, peaks[site, view])
        for (site, view), change in result.rows.changes.items():
            self.writer.append_change(site, view, change.numpy())
        for site, lengths in result.rows.tokens.items():
            self.writer.append_lengths(site, np.array(lengths))
        sizes = (len(ready.batch), len(ready.batch.phrase_ids), len(ready.regions.example))
        for name, size in zip(TABLES, sizes, strict=True):
            self.counts[name] += size
        if self.writer.part == 0:
            heatmaps = self.tables.add(ready.batch, ready.plan.grids, ready.regions, result.predictions, result.points)
            self.writer.append_meta("heatmaps", heatmaps)

    def close(self, examples: range, made_with: Mapping[str, Any]) -> None:
        """Write the tables and give the shard's files their names.

        Raises BadInput where a later part finds other rows than the shard has.
        """
        tables: dict[str, Columns] = {}
        if self.writer.part == 0:
            self.writer.append_meta("text_offsets", self.tables.all_text_offsets())
            tables = self.tables.tables()
        else:
            check_counts(self.writer.folder, self.number, self.counts)
        self.writer.commit(
            examples.start, examples.stop, self.counts, tables, skipped=self.skipped,
            dropped_phrases=self.tables.dropped_phrases, made_with=dict(made_with),
        )  # fmt: skip


def extract_shards(
    extractor: Extractor,
    examples: Sequence[Example],
    out: Path,
    claims: Claims,
    shards: Iterable[int],
    progress: Callable[[int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Write those of ``shards`` that are neither complete in ``out`` nor claimed by another worker.

    progress: called with the number of examples that a batch had. stopping: True to begin no further shard. On an
    error nothing unfinished stays behind.
    """
    options = extractor.options
    batches = load_batches(
        extractor.model, examples, _claimed_tasks(extractor, examples, out, claims, shards, stopping),
        skip_bad=options.skip_bad, extra_boxes=EXTRA_BOXES, seed=options.seed, workers=options.workers,
    )  # fmt: skip
    opened: list[OpenShard] = []
    try:
        with Background() as writer:
            for prepared in batches:
                task = prepared.task
                if not opened or opened[-1].number != task.shard:
                    if stopping():  # workers that open images had claimed it already
                        break
                    opened = [*opened[-1:], _open_shard(extractor, out, claims, task.shard)]
                shard = opened[-1]
                result = extractor.forward(prepared.ready) if prepared.ready is not None else None
                writer.submit(shard.add, prepared, result)
                if task.last:
                    whole = shard_range(task.shard, options.shard_size, len(examples))
                    writer.submit(shard.close, whole, extractor.made_with)
                    writer.submit(claims.release, task.shard)
                if progress is not None:
                    progress(len(task.examples))
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


def view_width(model: GroundingModel, site: Site, view: str) -> int:
    """Channels of a row of a view: heads of attention, one of other maps, else those of the states."""
    if has_heads(view):
        return attention_heads(model, site) or 0
    return 1 if is_relevance(view) else site.width


def _claimed_tasks(
    extractor: Extractor,
    examples: Sequence[Example],
    out: Path,
    claims: Claims,
    shards: Iterable[int],
    stopping: Callable[[], bool],
) -> Iterator[BatchTask]:
    """Batches of the shards that this worker could claim, each shard claimed when it is asked for."""
    options = extractor.options
    for shard in shards:
        if stopping():
            return
        if is_complete(out, shard, extractor.part) or not claims.acquire(shard):
            continue
        if is_complete(out, shard, extractor.part):  # finished by another worker between the two looks
            claims.release(shard)
            continue
        yield from split_shard(shard, options.shard_size, options.batch_size, examples)


def _open_shard(extractor: Extractor, out: Path, claims: Claims, number: int) -> OpenShard:
    options = extractor.options
    discard(out, number, extractor.part)
    writer = ShardWriter(
        out, number, claims.token, extractor.columns(), options.dtype, extractor.part, options.compression
    )
    return OpenShard(number, writer, ShardTables(options.threshold))
