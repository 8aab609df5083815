"""The units of a sweep on the workers of a Ray cluster; what they find is stored by the process that asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from extract.ray_pool import RayPool, capacity, connected
from grounding.errors import BadInput
from grounding.values import check_counts
from probe.units import Answered, Asker, Unit


@dataclass(frozen=True)
class RayEngine:
    """Spreads units over a cluster: give it to ``probe.sweep.sweep`` as ``engine``.

    address: of the cluster, see ``extract.ray_pool.connected``. num_workers: as many as there is room for if None.
    cpus_per_worker: also the threads of each. A worker has a GPU of its own where the sweep's device is cuda. Workers
    must see the runs' folders under the same paths. A unit whose worker is lost is done again by another. Calling it
    raises BadInput where there is no cluster, no room, or a worker does not see a run.
    """

    address: str = "auto"
    num_workers: int | None = None
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_counts(num_workers=self.num_workers, cpus_per_worker=self.cpus_per_worker)

    def __call__(self, asker: Asker, units: Sequence[Unit]) -> Iterator[tuple[Unit, Answered]]:
        """(unit, what was found) as they are done."""
        if not units:
            return
        cpus, gpus = self.cpus_per_worker, 1.0 if asker.settings.device.startswith("cuda") else 0.0
        with connected(self.address, None if self.num_workers is None else self.num_workers * cpus):
            import ray

            room = capacity(cpus, gpus)
            workers = min(self.num_workers or room, len(units))
            make = partial(
                _UnitWorker, ray.put(replace(asker, _questions={}, _read=None, _baselines=None)), Path.cwd(), cpus
            )
            with RayPool(make, workers, cpus=cpus, gpus=gpus) as pool:
                yield from pool.results(units)


class _UnitWorker:
    """An asker in a worker process."""

    facts: Any = None

    def __init__(self, told: Any, folder: Path, threads: int):
        import ray
        import torch

        torch.set_num_threads(threads)
        if folder.is_dir():
            os.chdir(folder)
        self.asker: Asker = ray.get(told)
        for run in self.asker.runs.values():
            if not Path(run.path).is_dir():
                raise BadInput(
                    f"run {str(run.path)!r} is not there on {socket.gethostname()}; accepted: a path that all workers "
                    "share"
                )

    def __call__(self, unit: Unit) -> Answered:
        return self.asker.answer(unit)
