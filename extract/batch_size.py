"""``--batch-size auto``: the batch size that this model, on this machine, goes through examples fastest with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch

from extract.extra_boxes import EXTRA_BOXES
from extract.loading import BatchTask, Prepared, load_batches
from grounding.errors import BadInput
from grounding.examples import Example

if TYPE_CHECKING:
    from extract.shards import Extractor, Forward

LARGEST = 256
_ROUNDS = 3  # timed passes a size; the median counts
_GAIN = 1.05  # a larger batch must be faster by this factor: memory is not free


def find_batch_size(extractor: Extractor, examples: Sequence[Example]) -> int:
    """The smallest batch size (a power of two) that a larger one does not beat by 5 % in time an example.

    Tried on the first examples, doubling until it no longer pays, the shard is full, or memory is. Raises BadInput
    where not even one example fits.
    """
    best, fastest = 0, float("inf")
    size = 1
    while size <= min(LARGEST, extractor.options.shard_size, len(examples)):
        try:
            seconds = time_batch(extractor, prepare(extractor, examples, range(size)))[0] / size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if best and fastest < seconds * _GAIN:
            break
        best, fastest, size = size, seconds, size * 2
    if not best:
        raise BadInput("batch_size 'auto': not even one example fits into the memory of the device")
    return best


def prepare(extractor: Extractor, examples: Sequence[Example], chosen: range) -> Prepared:
    """A batch of some examples, ready for the model."""
    options = extractor.options
    task = BatchTask(0, tuple(chosen), True)
    return next(
        load_batches(
            extractor.model, examples, [task], skip_bad=options.skip_bad, extra_boxes=EXTRA_BOXES, seed=options.seed
        )
    )


def time_batch(extractor: Extractor, prepared: Prepared) -> tuple[float, Forward]:
    """Seconds that a pass over a batch takes, with its rows on the host: the median of three, after one to warm up.

    Also what the last pass gave. Raises BadInput where no example of the batch could be read.
    """
    if prepared.ready is None:
        raise BadInput(f"example {prepared.skipped[0][0]!r}: {prepared.skipped[0][1]}")
    seconds = []
    for _ in range(_ROUNDS + 1):
        begin = time.perf_counter()
        result = extractor.forward(prepared.ready)
        result.rows.arrays()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:]), result
