"""From example numbers to batches that are ready for the model, in this process or in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import DataLoader, Dataset

from extract.plan import Plan, Regions
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.images import image_shape
from grounding.models.base import Batch, GroundingModel


@dataclass(frozen=True)
class BatchTask:
    """A batch of shard ``shard``: numbers of examples in the list; ``last`` ends the shard."""

    shard: int
    examples: tuple[int, ...]
    last: bool


@dataclass(frozen=True)
class ReadyBatch:
    """A batch, on the CPU, with what its views need."""

    batch: Batch
    regions: Regions
    plan: Plan

    def pin_memory(self) -> ReadyBatch:
        """The same in page-locked memory, from which copies to a GPU need not be waited for."""
        return ReadyBatch(self.batch.pin_memory(), self.regions, self.plan.pin_memory())


@dataclass(frozen=True)
class Prepared:
    """What became of a task.

    ready: None where every one of its examples was skipped. skipped: (id, reason). error: why there is no batch
    (raised by whoever receives it: an error of a worker process would arrive with a stack trace in its message).
    """

    task: BatchTask
    ready: ReadyBatch | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    error: str | None = None

    def pin_memory(self) -> Prepared:
        """Called by the DataLoader where the model is on a GPU."""
        return self if self.ready is None else replace(self, ready=self.ready.pin_memory())


class _Preparer(Dataset):
    def __init__(self, model: GroundingModel, examples: Sequence[Example], skip_bad: bool, extra_boxes: int, seed: int):
        self.model, self.examples, self.skip_bad = model, examples, skip_bad
        self.extra_boxes, self.seed = extra_boxes, seed

    def __getitem__(self, task: BatchTask) -> Prepared:
        chunk = [self.examples[i] for i in task.examples]
        try:
            batch, left_out = self.model.prepare_readable(chunk) if self.skip_bad else (self.model.prepare(chunk), [])
        except BadInput as error:
            return Prepared(task, error=str(error))
        skipped = tuple((item.id, item.reason) for item in left_out)
        if batch is None:
            return Prepared(task, skipped=skipped)
        regions = Regions.of(batch, self.extra_boxes, self.seed)
        return Prepared(task, ReadyBatch(batch, regions, Plan.of(batch, regions)), skipped)


def shard_range(shard: int, shard_size: int, count: int) -> range:
    """Numbers of the examples of a shard of a list of ``count``."""
    return range(shard * shard_size, min((shard + 1) * shard_size, count))


def split_shard(shard: int, shard_size: int, batch_size: int, examples: Sequence[Example]) -> list[BatchTask]:
    """The batches of a shard; no batch crosses its end.

    Images of like shape come together, so that little of a batch is padding: examples are ordered by the ratio of
    height to width of their first image, and stay as they are where that is equal or not known.
    """
    order = sorted(shard_range(shard, shard_size, len(examples)), key=lambda i: _aspect(examples[i]))
    batches = [tuple(order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]
    return [BatchTask(shard, batch, batch is batches[-1]) for batch in batches]


def _aspect(example: Example) -> float:
    shape = image_shape(example.images[0]) if example.images else None
    return shape[0] / shape[1] if shape is not None and shape[1] else 0.0


def load_batches(
    model: GroundingModel,
    examples: Sequence[Example],
    tasks: Iterable[BatchTask],
    *,
    skip_bad: bool,
    extra_boxes: int,
    seed: int,
    workers: int = 0,
) -> Iterator[Prepared]:
    """Batches in the order of ``tasks``, whose source may be lazy: it is asked as batches are needed.

    Raises BadInput at the first example that cannot be read, unless ``skip_bad``.
    """
    dataset = _Preparer(model, examples, skip_bad, extra_boxes, seed)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=model.device.type == "cuda",
        worker_init_fn=_leave_interrupts,
    )
    for prepared in loader:
        if prepared.error is not None:
            raise BadInput(prepared.error)
        yield prepared


def _as_it_is(prepared: Any) -> Any:
    return prepared


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
