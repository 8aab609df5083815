"""A worker's fixed share of the shards, given or read from what torchrun and Slurm tell their processes.

What counts, first to last: the arguments; ``RANK`` and ``WORLD_SIZE`` (torchrun and the like); Slurm, where the tasks
of a job array and the tasks that srun started in each are multiplied. ``SLURM_PROCID`` counts only below srun: in the
batch script itself, which Slurm starts once whatever ``--ntasks`` says, it is 0 of ``SLURM_NTASKS`` and means nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from grounding.errors import BadInput


@dataclass(frozen=True)
class Share:
    """Shards ``index``, ``index + workers``, ... of a run; (0, 1) is all of it. local_index: worker of this machine.

    origin: the words that gave it, for messages. Raises BadInput for an impossible one.
    """

    index: int = 0
    workers: int = 1
    local_index: int = 0
    origin: str = "--shard-index and --num-workers"

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= self.index < self.workers:
            raise BadInput(
                f"{self.origin}: worker {self.index} of {self.workers} is impossible; accepted: 0 to workers - 1"
            )
        if self.local_index < 0:
            raise BadInput(f"{self.origin}: local worker {self.local_index} is impossible; accepted: 0 or more")

    def of(self, shards: int) -> range:
        """This worker's shards.

        >>> list(Share(1, 3).of(8))
        [1, 4, 7]
        """
        return range(self.index, shards, self.workers)

    def check_batch_size(self, batch_size: int | str) -> None:
        """Raise BadInput for ``auto`` among several workers."""
        if self.workers > 1 and batch_size == "auto":
            raise BadInput(
                "batch_size 'auto' with several workers, who might choose differently; accepted: a number (--estimate "
                "--batch-size auto tells one)"
            )

    def device(self, name: str, devices: int) -> str:
        """``cuda`` becomes this worker's device among the ``devices`` that it sees; other names stay.

        Under ``srun --gpus-per-task`` each task sees one, under torchrun all: workers go round those there are.
        """
        return f"cuda:{self.local_index % devices}" if name == "cuda" and devices > 1 else name


def choose_share(
    shard_index: int | None = None, num_workers: int | None = None, environment: Mapping[str, str] | None = None
) -> Share:
    """The share that is given, or else that of the environment, or else everything; see the module.

    environment: ``os.environ`` if None. Raises BadInput where one of the two is given alone, for impossible values,
    and for a job array whose task numbers are not evenly spaced.
    """
    if (shard_index is None) != (num_workers is None):
        there, lacking = ("shard-index", "num-workers") if num_workers is None else ("num-workers", "shard-index")
        raise BadInput(f"--{there} needs --{lacking} too (or give neither, and start workers with torchrun or Slurm)")
    names = os.environ if environment is None else environment
    if shard_index is not None and num_workers is not None:
        return Share(shard_index, num_workers, _local_index(names))
    if "RANK" in names and "WORLD_SIZE" in names:
        rank, size = _number(names, "RANK"), _number(names, "WORLD_SIZE")
        return Share(rank, size, _local_index(names), "RANK and WORLD_SIZE of the environment")
    task, tasks = _array_task(names)
    step, steps = _step_task(names)
    return Share(task * steps + step, tasks * steps, _local_index(names), "Slurm's environment")


def _array_task(names: Mapping[str, str]) -> tuple[int, int]:
    """Place of this task in its job array, and how many tasks that has; (0, 1) without an array."""
    if "SLURM_ARRAY_TASK_ID" not in names:
        return 0, 1
    task, tasks, first, last = (_number(names, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "MAX"))
    spacing, rest = divmod(last - first, tasks - 1) if tasks > 1 else (1, 0)
    place, between = divmod(task - first, spacing) if spacing > 0 else (-1, 0)
    if rest or between or not 0 <= place < tasks:
        raise BadInput(
            f"SLURM_ARRAY_TASK_ID {task} of {tasks} tasks from {first} to {last}: not evenly spaced; accepted: an "
            "array such as 0-7 or 1-15:2 (or --shard-index and --num-workers)"
        )
    return place, tasks


def _step_task(names: Mapping[str, str]) -> tuple[int, int]:
    """Place of this process among those that srun started, and how many they are; (0, 1) where it did not."""
    if "SLURM_STEP_ID" not in names or "SLURM_PROCID" not in names:
        return 0, 1
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in names else "SLURM_NTASKS"
    return _number(names, "SLURM_PROCID"), _number(names, count)


def _local_index(names: Mapping[str, str]) -> int:
    if "LOCAL_RANK" in names:
        return _number(names, "LOCAL_RANK")
    return _number(names, "SLURM_LOCALID") if "SLURM_STEP_ID" in names and "SLURM_LOCALID" in names else 0


def _number(names: Mapping[str, str], name: str) -> int:
    text = names.get(name, "")
    try:
        return int(text)
    except ValueError:
        raise BadInput(f"{name} of the environment is {text!r}; accepted: a whole number") from None
