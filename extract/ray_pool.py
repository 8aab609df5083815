"""Jobs on the workers of a Ray cluster: each worker is made once, jobs go to whichever is free, lost ones go again."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any, Protocol

from grounding.errors import BadInput, RunFailed

INSTALL = "engine 'ray' needs the package ray: pip install 'phrase-grounding-probe[cluster]'"
_HEAD = re.compile(r"[^\s:/]+:\d+")  # HOST:PORT
_ANSWER = 10.0  # seconds to wait for the head node
_REASON = 160  # characters of what Ray says about a lost worker


class Worker(Protocol):
    """What is made in a worker process: a function from a job to a result, both picklable."""

    @property
    def facts(self) -> Any:
        """Picklable, about the worker; ``RayPool`` hands them to whoever must clear up after it."""

    def __call__(self, job: Any, /) -> Any:
        """Do a job; doing one twice must do no harm."""


@contextmanager
def connected(address: str, cpus: int | None = None) -> Iterator[None]:
    """Inside, this process belongs to a Ray cluster, as it did before if it did.

    address: ``auto`` (RAY_ADDRESS, else the cluster of this machine), ``local`` (a new one, here, that ends with
    this) or ``HOST:PORT`` of the head node. cpus: of a new one; None for those of the machine.
    Raises BadInput for another address, one that does not answer, and without the package ray.
    """
    if find_spec("ray") is None:
        raise BadInput(INSTALL)
    if address not in ("auto", "local") and not _HEAD.fullmatch(address):
        raise BadInput(f"address {address!r} is unknown; accepted: auto, local, HOST:PORT of the head node")
    import ray

    if ray.is_initialized():
        yield
        return
    head = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if _HEAD.fullmatch(head):
        _check_answer(head)
    settings = {"num_cpus": cpus} if address == "local" else {}
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **settings)  # type: ignore[arg-type]
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(f"address {address!r}: no Ray cluster answers there ({short_reason(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Raise BadInput where nobody listens; Ray itself would go on trying for many minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"address {address!r}: no Ray cluster answers there ({error})") from None


def capacity(cpus: float, gpus: float) -> int:
    """How many workers the cluster has room for. Raises BadInput where no node has room for one."""
    import ray

    fits, most = 0, {"CPU": 0.0, "GPU": 0.0}
    for node in ray.nodes():
        there = {name: node["Resources"].get(name, 0.0) if node["Alive"] else 0.0 for name in most}
        most = {name: max(most[name], there[name]) for name in most}
        fits += int(min(there["CPU"] // cpus, there["GPU"] // gpus if gpus else there["CPU"] // cpus))
    for option, wanted, name in (("cpus_per_worker", cpus, "CPU"), ("gpus_per_worker", gpus, "GPU")):
        if wanted > most[name]:
            raise BadInput(f"{option} {wanted:g} is too many: no node of the cluster has more than {most[name]:g}")
    if not fits:
        raise BadInput(f"no node of the cluster has {cpus:g} CPU and {gpus:g} GPU together; ask for less a worker")
    return fits


@dataclass
class _Member:
    """An actor of the pool; facts: None until its worker is made."""

    actor: Any
    facts: Any = None


class _Host:
    """The actor's class; the worker is made in a call of its own, so that its errors arrive as they are."""

    def __init__(self, make: Callable[[], Worker]):
        self.make = make

    def start(self) -> Any:
        self.worker = self.make()
        return self.worker.facts

    def do(self, job: Any) -> Any:
        return self.worker(job)


class RayPool:
    """``workers`` processes of the cluster that this process belongs to; a context manager that ends them.

    make: picklable, makes a worker in its process. cpus, gpus: of each; Ray shows it only its own. retries: how often
    a job, or making a worker, may lose its process before RunFailed is raised. lost: called with the facts of every
    worker that has died or was ended. BadInput and RunFailed raised in a worker are raised here.
    """

    def __init__(
        self,
        make: Callable[[], Worker],
        workers: int,
        *,
        cpus: int = 1,
        gpus: float = 0.0,
        retries: int = 3,
        lost: Callable[[Any], None] | None = None,
    ):
        import ray

        self.retries, self.lost = retries, lost
        self._workers = workers
        self._losses: Counter[Hashable] = Counter()
        environment = {"OMP_WAIT_POLICY": "passive"}  # read when torch is imported
        actor: Any = ray.remote(_Host)
        self._start = lambda: actor.options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": environment}
        ).remote(make)
        self._idle: list[_Member] = []
        self._pending: dict[Any, tuple[_Member, tuple[Any, ...]]] = {}  # call under way -> member, (job,) or ()

    def __enter__(self) -> RayPool:
        for _ in range(self._workers):
            self._add()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, also in the middle of a job."""
        for member in [*self._idle, *(member for member, _ in self._pending.values())]:
            self._end(member)
        self._idle.clear()
        self._pending.clear()

    def facts(self) -> Any:
        """Facts of the first worker that is ready."""
        while not self._idle:
            self._next()
        return self._idle[0].facts

    def results(self, jobs: Iterable[Hashable]) -> Iterator[tuple[Any, Any]]:
        """(job, result) as they are done; jobs may be lazy: each is asked for when a worker is free for it."""
        coming, again = iter(jobs), deque[Hashable]()
        while True:
            while self._idle:
                job = (again.popleft(),) if again else tuple(islice(coming, 1))
                if not job:
                    break
                member = self._idle.pop(0)
                self._pending[member.actor.do.remote(*job)] = member, job
            if not again and not any(job for _, job in self._pending.values()) and self._idle:
                return
            done, lost = self._next()
            again.extend(lost)
            yield from done

    def _add(self) -> None:
        member = _Member(self._start())
        self._pending[member.actor.start.remote()] = member, ()

    def _next(self) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        """Wait for a call to end: (job, result) of what it did, and the job that must go again."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        (call,), _ = ray.wait(list(self._pending), num_returns=1)
        member, job = self._pending.pop(call)
        try:
            value = ray.get(call)
        except RayTaskError as error:
            self._end(member)
            cause = error.cause
            raise cause if isinstance(cause, BadInput | RunFailed) else error from None
        except RayError as error:  # the actor died, was killed for memory, or is out of reach
            self._replace(member, job, error)
            return [], job
        self._idle.append(member)
        if job:
            return [(job[0], value)], ()
        member.facts = value
        return [], ()

    def _replace(self, member: _Member, job: tuple[Any, ...], error: Exception) -> None:
        self._end(member)  # it may only be out of reach
        self._losses[job] += 1
        what = f"job {job[0]}" if job else "the model was being loaded"
        if self._losses[job] > self.retries:
            raise RunFailed(f"a worker was lost {self._losses[job]} times, last while {what}: {short_reason(error)}")
        warnings.warn(f"a worker was lost ({what}), another takes its place: {short_reason(error)}", stacklevel=2)
        self._add()

    def _end(self, member: _Member) -> None:
        import ray

        ray.kill(member.actor)
        if self.lost is not None and member.facts is not None:
            self.lost(member.facts)


def short_reason(error: Exception) -> str:
    """The last line of a message, or the beginning of that."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    return line if len(line) <= _REASON else f"{line[: _REASON - 4]} ..."


def device_and_gpus(name: str, gpus: float | None) -> tuple[str, float]:
    """Device of a worker's model, and how many GPUs it needs, on the cluster that this process is connected to.

    name: auto (cuda where the cluster has GPUs), cpu or cuda. gpus: None for as many as the device needs. Raises
    BadInput for others, and for a device and a number that do not go together.
    """
    import ray

    if name not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device {name!r} with engine ray; accepted: auto, cpu, cuda (Ray chooses which)")
    if gpus is not None and gpus < 0:
        raise BadInput(f"gpus_per_worker {gpus:g} is too small; accepted: 0 or more, also a part of one")
    if gpus is None:
        gpus = 1.0 if name == "cuda" or (name == "auto" and ray.cluster_resources().get("GPU", 0) >= 1) else 0.0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if (name == "cuda") != (gpus > 0):
        raise BadInput(f"device {name!r} with gpus_per_worker {gpus:g}; accepted: cuda with some, cpu with none")
    return name, gpus
