"""Training data: examples encoded once and kept in memory, seeded order, candidates shuffled every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.finetune.targets import Targets, make_targets
from grounding.models.base import Batch
from grounding.models.inputs import Encoded, Preprocessor, permute_candidates


class _Encoding(Dataset):
    """Encodes examples when asked; only used to spread the work over processes.

    Bad input is handed over as it is: raised in another process, it would come with that one's traceback.
    """

    def __init__(self, examples: Sequence[Example], preprocessor: Preprocessor):
        self.examples = examples
        self.preprocessor = preprocessor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Encoded | BadInput:
        try:
            return self.preprocessor.encode(self.examples[index])
        except BadInput as error:
            return error


def encode_all(
    examples: Sequence[Example],
    preprocessor: Preprocessor,
    workers: int = 0,
    skipped: dict[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Encoded]:
    """Every example encoded, in order; pixels stay in memory as uint8. Raises BadInput at the first broken one.

    skipped: takes the reason of each broken one by id, instead. progress: called with the number of examples done.
    """
    loader = DataLoader(_Encoding(examples, preprocessor), batch_size=64, num_workers=workers, collate_fn=list)
    encoded = []
    for done, (example, item) in enumerate(zip(examples, chain.from_iterable(loader), strict=True), start=1):
        if not isinstance(item, BadInput):
            encoded.append(item)
        elif skipped is None:
            raise item
        else:
            skipped[example.id] = str(item)
        if progress is not None:
            progress(done)
    return encoded


class EncodedGames(Dataset):
    """Encoded examples, indexed by (epoch, position); with ``shuffle_candidates`` each epoch has its own order."""

    def __init__(self, items: Sequence[Encoded], seed: int, shuffle_candidates: bool):
        self.items = items
        self.seed = seed
        self.shuffle_candidates = shuffle_candidates

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Encoded:
        epoch, position = key
        item = self.items[position]
        if not self.shuffle_candidates:
            return item
        order = np.random.default_rng((self.seed, epoch, position)).permutation(len(item.example.images))
        return permute_candidates(item, order.tolist())


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, position), shuffled by seed and epoch alone; each process of several takes its share.

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
        return self.length // _world() // self.step_size * self.step_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        if (world := _world()) > 1:
            order = order[: self.length // world * world][torch.distributed.get_rank() :: world]
        order = order[: len(self)]
        if self.steps_done:
            order = order[self.steps_done * self.step_size % len(self) :]
            self.steps_done = 0
        return iter([(self.epoch, int(position)) for position in order])


def _world() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _collate(items: Sequence[Encoded], preprocessor: Preprocessor, losses: str) -> tuple[Batch, Targets]:
    batch = preprocessor.collate(items)
    targets = make_targets(batch, losses)
    names = tuple(replace(item.example, images=(), phrases=()) for item in items)  # cheap to send between processes
    return replace(batch, examples=names), targets


def make_loader(
    items: Sequence[Encoded],
    preprocessor: Preprocessor,
    batch_size: int,
    *,
    seed: int,
    train: bool,
    workers: int,
    steps_done: int = 0,
    accumulate: int = 1,
    losses: str = "corrected",
) -> DataLoader:
    """Loader of (Batch, Targets); in training shuffled, with shuffled candidates and no incomplete batch.

    steps_done: of an interrupted run, whose epoch goes on where it stopped; accumulate: batches a step. losses: as
    ``make_targets`` has it. Raises BadInput for more batches a step than there are.
    """
    if train and accumulate > 1 and batch_size * accumulate > len(items):
        raise BadInput(
            f"accumulate {accumulate} batches of {batch_size} are more than the {len(items)} examples; accepted: fewer"
        )
    size = min(batch_size, len(items))
    step = size * accumulate if train else 1
    return DataLoader(
        EncodedGames(items, seed, shuffle_candidates=train),
        batch_size=size,
        sampler=EpochSampler(len(items), seed, train, step, steps_done if train else 0),
        num_workers=workers,
        collate_fn=partial(_collate, preprocessor=preprocessor, losses=losses),
        drop_last=train,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
