"""Extraction on a Ray cluster: one model a worker, shards handed out one at a time, those of lost workers again."""

from __future__ import annotations

import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from extract.claims import Claims, release_lost
from extract.folder import RunFolder, Work
from extract.identity import command_line
from extract.interrupts import Interrupts
from extract.ray_pool import RayPool, capacity, connected, device_and_gpus
from extract.reader import Run
from extract.share import Share
from extract.store import MANIFEST
from grounding.errors import BadInput, RunFailed
from grounding.values import check_counts

_SEEN = 15.0  # seconds that a worker looks for the run's folder: names travel slowly over some file systems
_ARRIVED = 120.0  # seconds that a finished shard may take to be seen here
_POLL = 0.5


def run_on_ray(
    prepare: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    address: str = "auto",
    num_workers: int | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Make a run on the workers of a Ray cluster; its folder is a path that they all see.

    prepare: ``extract.from_checkpoint.prepare_checkpoint``, or ``extract.run.prepare`` for a model in memory, and its
    arguments by name; what is large goes to the workers once (``ray.put``). Its device is auto, cpu or cuda; relative
    paths count from this process's folder, where a worker has that. address: of the cluster, see
    ``ray_pool.connected``. num_workers: as many as there is room for if None. cpus_per_worker: also the threads of
    each. gpus_per_worker: may be a part of one; if None, one where the device is cuda, or auto and the cluster has any.
    progress: called with (examples of complete shards, all of them).

    A worker that dies is replaced, and its shard done again. Raises what ``extract`` does; BadInput where there is no
    cluster, no room, or a worker does not see the folder; RunFailed where a shard loses its workers again and again.
    """
    check_counts(num_workers=num_workers, cpus_per_worker=cpus_per_worker)
    Share(0, num_workers or 2, origin="num_workers").check_batch_size(arguments.get("batch_size", 1))
    out = Path(arguments["out"]).resolve()
    cpus = num_workers * cpus_per_worker if num_workers is not None else None
    with connected(address, cpus), _beacon(out) as beacon:
        import ray

        device, gpus = device_and_gpus(arguments.get("device") or "auto", gpus_per_worker)
        room = capacity(cpus_per_worker, gpus)
        told = {"command": command_line(), **arguments, "out": out, "device": device}
        make = partial(_ShardWorker, ray.put((prepare, told)), beacon, Path.cwd(), cpus_per_worker)
        with (
            Interrupts() as interrupts,
            RayPool(make, num_workers or room, cpus=cpus_per_worker, gpus=gpus, lost=partial(_clear, out)) as pool,
        ):
            facts = pool.facts()
            for warning in facts["warnings"]:
                warnings.warn(warning, stacklevel=2)
            for work in facts["works"]:
                with RunFolder(out, work):
                    _hand_out(pool, out, work, facts["sizes"], interrupts, progress)
    return Run.open(out)


def _hand_out(
    pool: RayPool,
    out: Path,
    work: Work,
    sizes: Sequence[int],
    interrupts: Interrupts,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Give the missing shards to the workers of the pool; sizes: examples of each shard of the run."""
    missing, total = work.missing(out), sum(sizes)
    done = total - sum(sizes[shard] for shard in missing)

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    count(0)
    jobs = takewhile(lambda job: not interrupts.asked, ((work.part, shard) for shard in missing))
    try:
        for (_, shard), _ in pool.results(jobs):
            count(sizes[shard])
    except BaseException:
        pool.close()  # before the folder is left: then nobody holds a claim
        raise
    if interrupts.asked and work.missing(out):
        raise KeyboardInterrupt
    until = time.monotonic() + _ARRIVED
    while not work.is_done(out):
        if time.monotonic() > until:
            raise RunFailed(f"{out}: the workers have finished all shards, but some are not seen here; extract again")
        time.sleep(_POLL)


class _ShardWorker:
    """A model and the run it is for, in a worker process; does one shard of a part of the run a call."""

    def __init__(self, told: Any, beacon: Path, folder: Path, threads: int):
        import ray
        import torch

        torch.set_num_threads(threads)
        _look_for(beacon)
        if folder.is_dir():
            os.chdir(folder)
        prepare, arguments = ray.get(told)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            self.extraction = prepare(**arguments)
        self.claims = Claims(self.extraction.out).__enter__()
        self.facts = {
            "token": self.claims.token,
            "works": self.extraction.works,
            "sizes": [len(self.extraction.examples_of(shard)) for shard in range(self.extraction.shards)],
            "warnings": [str(item.message) for item in caught if item.category is UserWarning],
        }

    def __call__(self, job: tuple[int, int]) -> None:
        part, shard = job
        work = next(work for work in self.extraction.works if work.part == part)
        try:
            self.extraction.write(work, [shard], self.claims)
        except OSError as error:
            raise RunFailed(f"{self.extraction.out}, on {socket.gethostname()}: {error}; extract again") from None


def _clear(out: Path, facts: Mapping[str, Any]) -> None:
    release_lost(out, facts["token"])


@contextmanager
def _beacon(out: Path) -> Iterator[Path]:
    """A file in the run's folder that workers look for; a folder made for it goes again if nothing was added.

    Its name is one that a run's folder may hold before the run has begun.
    """
    created = not out.exists()
    path = out / f"{MANIFEST}.tmp-{uuid.uuid4().hex}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise BadInput(f"out {str(out)!r} cannot be made: {error}") from None
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if created and not any(out.iterdir()):
            out.rmdir()


def _look_for(beacon: Path) -> None:
    until = time.monotonic() + _SEEN
    while not beacon.is_file():
        if time.monotonic() > until:
            raise BadInput(
                f"out {str(beacon.parent)!r} is not the same folder on {socket.gethostname()}; accepted: a path that "
                "all workers share"
            )
        time.sleep(_POLL)
