"""Training data: examples checked first, encoded when they are drawn; seeded order, candidates shuffled every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.finetune.targets import Targets, make_targets
from grounding.images import image_shape, read_image
from grounding.models.base import Batch
from grounding.models.inputs import Encoded, Preprocessor, permute_candidates

KEPT_BYTES = 4 * 2**30  # of pixels, for later epochs
_NO_PIXELS = np.zeros((0, 0, 3), dtype=np.uint8)


class _Checking(Dataset):
    """The phrases that an example's tokens do not hold, or why it cannot be encoded.

    Bad input is handed over as it is: raised in another process, it would come with that one's traceback. Images are
    only looked at unless ``decode``: to read all of them takes as long as an epoch.
    """

    def __init__(self, examples: Sequence[Example], preprocessor: Preprocessor, decode: bool):
        self.examples = examples
        self.preprocessor = preprocessor
        self.decode = decode
        self.seen: set[str | Path] = set()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[str, ...] | BadInput:
        example = self.examples[index]
        try:
            if self.decode:
                return self.preprocessor.encode(example).dropped_phrases
            files = {source for source in example.images if isinstance(source, (str, Path))} - self.seen
            for source in files:
                if image_shape(source) is None:
                    read_image(source)  # raises, and says why
            self.seen |= files
            text = self.preprocessor.tokenizer.encode(example.caption)
            return self.preprocessor.align(example, text, _NO_PIXELS).dropped_phrases
        except BadInput as error:
            return error


def check_all(
    examples: Sequence[Example],
    preprocessor: Preprocessor,
    workers: int = 0,
    skipped: dict[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Example], list[tuple[str, str]]]:
    """The examples that can be encoded, in order, and (example id, phrase id) of phrases whose tokens are cut off.

    Raises BadInput at the first broken one; of images, what their headers tell. skipped: takes the reason of each by
    id instead, every image decoded. progress: called with the number of examples done.
    """
    checking = _Checking(examples, preprocessor, decode=skipped is not None)
    loader = DataLoader(checking, batch_size=64, num_workers=workers, collate_fn=list)
    usable, dropped = [], []
    for done, (example, found) in enumerate(zip(examples, chain.from_iterable(loader), strict=True), start=1):
        if not isinstance(found, BadInput):
            usable.append(example)
            dropped += [(example.id, phrase) for phrase in found]
        elif skipped is None:
            raise found
        else:
            skipped[example.id] = str(found)
        if progress is not None:
            progress(done)
    return usable, dropped


class EncodedGames(Dataset):
    """Examples, encoded when asked for by (epoch, position); with ``shuffle_candidates`` each epoch has its own order.

    keep: bytes of pixels that stay in memory for later epochs. Gives BadInput for what cannot be encoded.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocessor: Preprocessor,
        seed: int,
        shuffle_candidates: bool,
        keep: int = KEPT_BYTES,
    ):
        self.examples = examples
        self.preprocessor = preprocessor
        self.seed = seed
        self.shuffle_candidates = shuffle_candidates
        self.room = keep
        self.kept: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> Encoded | BadInput:
        epoch, position = key
        try:
            item = self._encoded(position)
        except BadInput as error:
            return error
        if not self.shuffle_candidates:
            return item
        order = np.random.default_rng((self.seed, epoch, position)).permutation(len(item.example.images))
        return permute_candidates(item, order.tolist())

    def _encoded(self, position: int) -> Encoded:
        if position in self.kept:
            return self.kept[position]
        item = self.preprocessor.encode(self.examples[position])
        if item.canvas.nbytes <= self.room:
            self.kept[position] = item
            self.room -= item.canvas.nbytes
        return item


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, position), shuffled by seed and epoch alone; each process of several takes its share.

    Shares are equal: up to one example fewer than there are processes is left out at the end, of dev too, whose figures
    so depend a little on the number of processes.
    Lightning calls ``set_epoch``. step_size: examples that a process reads a step; what is left over at the end of an
    epoch is left out. steps_done: of an interrupted run: the first iteration begins after those of its epoch.
    """

    def __init__(self, length: int, seed: int, shuffle: bool, step_size: int = 1, steps_done: int = 0):
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.step_size = step_size
        self.steps_done = steps_done
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // world_size() // self.step_size * self.step_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        if (world := world_size()) > 1:
            order = order[: self.length // world * world][torch.distributed.get_rank() :: world]
        order = order[: len(self)]
        if self.steps_done:
            order = order[self.steps_done * self.step_size % len(self) :]
            self.steps_done = 0
        return iter([(self.epoch, int(position)) for position in order])


def world_size() -> int:
    """Processes that train together, now."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


class _Loader(DataLoader):
    """Raises the BadInput that a batch came out as; raised in a worker, it would come with that one's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, BadInput):
                raise batch
            yield batch


def _collate(
    items: Sequence[Encoded | BadInput], preprocessor: Preprocessor, losses: str
) -> tuple[Batch, Targets] | BadInput:
    whole = []
    for item in items:
        if isinstance(item, BadInput):
            return item
        whole.append(item)
    batch = preprocessor.collate(whole)
    targets = make_targets(batch, losses)
    names = tuple(replace(item.example, images=(), phrases=()) for item in whole)  # cheap to send between processes
    return replace(batch, examples=names), targets


def make_loader(
    examples: Sequence[Example],
    preprocessor: Preprocessor,
    batch_size: int,
    *,
    seed: int,
    train: bool,
    workers: int,
    steps_done: int = 0,
    accumulate: int = 1,
    losses: str = "corrected",
    processes: int = 1,
) -> DataLoader:
    """Loader of (Batch, Targets); in training shuffled, with shuffled candidates and no incomplete batch.

    steps_done: of an interrupted run, whose epoch goes on where it stopped; accumulate: batches a step. losses: as
    ``make_targets`` has it. processes: how many share the examples. Raises BadInput where a process's share is
    empty, or less than a step, and when it comes to an image that cannot be read.
    """
    share = len(examples) // processes
    if share == 0:
        raise BadInput(
            f"split {examples[0].split!r} has too few examples for {processes} processes (devices x nodes): "
            f"{len(examples)}; accepted: fewer processes"
        )
    if train and accumulate > 1 and batch_size * accumulate > share:
        shared = f" that each of {processes} processes has of {len(examples)}" if processes > 1 else ""
        told = f"accumulate {accumulate} batches of {batch_size} are more than the {share} examples{shared}"
        raise BadInput(f"{told}; accepted: fewer")
    size = min(batch_size, share)
    step = size * accumulate if train else 1
    return _Loader(
        EncodedGames(examples, preprocessor, seed, train, KEPT_BYTES // max(1, workers)),
        batch_size=size,
        sampler=EpochSampler(len(examples), seed, train, step, steps_done if train else 0),
        num_workers=workers,
        collate_fn=partial(_collate, preprocessor=preprocessor, losses=losses),
        drop_last=train,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
