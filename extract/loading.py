"""From example numbers to batches that are ready for the model, in this process or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from extract.plan import Plan, Regions
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.models.base import Batch, GroundingModel


@dataclass(frozen=True)
class BatchTask:
    """Examples ``begin`` to ``end`` of the list, a batch of shard ``shard``; ``last`` ends the shard."""

    shard: int
    begin: int
    end: int
    last: bool


@dataclass(frozen=True)
class ReadyBatch:
    """A batch, on the CPU, with what its views need."""

    batch: Batch
    regions: Regions
    plan: Plan


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


class _Preparer(Dataset):
    def __init__(self, model: GroundingModel, examples: Sequence[Example], skip_bad: bool, extra_boxes: int, seed: int):
        self.model, self.examples, self.skip_bad = model, examples, skip_bad
        self.extra_boxes, self.seed = extra_boxes, seed

    def __getitem__(self, task: BatchTask) -> Prepared:
        chunk = [self.examples[i] for i in range(task.begin, task.end)]
        try:
            batch, left_out = self.model.prepare_readable(chunk) if self.skip_bad else (self.model.prepare(chunk), [])
        except BadInput as error:
            return Prepared(task, error=str(error))
        skipped = tuple((item.id, item.reason) for item in left_out)
        if batch is None:
            return Prepared(task, skipped=skipped)
        regions = Regions.of(batch, self.extra_boxes, self.seed)
        return Prepared(task, ReadyBatch(batch, regions, Plan.of(batch, regions)), skipped)


def split_shard(shard: int, shard_size: int, batch_size: int, count: int) -> list[BatchTask]:
    """The batches of a shard of ``count`` examples; no batch crosses a shard's end."""
    end = min((shard + 1) * shard_size, count)
    begins = range(shard * shard_size, end, batch_size)
    return [BatchTask(shard, b, min(b + batch_size, end), b + batch_size >= end) for b in begins]


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
    loader = DataLoader(dataset, batch_size=None, sampler=tasks, num_workers=workers, collate_fn=_as_it_is)
    for prepared in loader:
        if prepared.error is not None:
            raise BadInput(prepared.error)
        yield prepared


def _as_it_is(prepared: Any) -> Any:
    return prepared
