"""Several processes of this machine on one run; they divide its shards by their claims."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from extract.interrupts import Interrupts
from extract.reader import Run
from extract.share import Share
from extract.store import read_manifest, read_shards
from grounding.errors import BadInput, RunFailed

_LOOK = 0.5  # seconds between looks at the workers and at the shards they have finished
_STOPPED = 130  # exit code of a worker that was told to stop


def run_processes(
    prepare: Callable[..., Any],
    arguments: Mapping[str, Any],
    workers: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Make a run with ``workers`` processes, each with a model of its own and its part of the processor's cores.

    prepare: ``extract.run.prepare`` or ``extract.from_checkpoint.prepare_checkpoint``, and its arguments by name, all
    of them picklable; device ``cuda`` becomes ``cuda:0``, ``cuda:1``, ... in turn. Where ``OMP_NUM_THREADS`` is set it
    is each process's number of threads. progress: called with (examples of complete shards, all of them).
    Ctrl-C, and the error of one, stop all of them after their shards, a second Ctrl-C at once.
    Raises what ``extract`` does; RunFailed where a process was killed.
    """
    shares = [Share(k, workers, local_index=k, origin="num_workers") for k in range(max(workers, 1))]
    shares[0].check_batch_size(arguments.get("batch_size", 1))
    out, context = Path(arguments["out"]), multiprocessing.get_context("spawn")
    errors: Any = context.SimpleQueue()
    started = [context.Process(target=_work, args=(prepare, dict(arguments), share, errors)) for share in shares]
    with Interrupts() as interrupts:
        try:
            _start(started)
            while not interrupts.asked and _going_on(started):
                if progress is not None:
                    _report(out, progress)
            _interrupt(started)
            for process in started:
                process.join()
        except BaseException:
            _interrupt(started)
            raise
        if interrupts.asked:
            raise KeyboardInterrupt
    failed = [process for process in started if process.exitcode not in (0, _STOPPED)]
    if not errors.empty():
        raise errors.get()
    if failed:
        raise RunFailed(
            f"{out}: worker process ended with code {failed[0].exitcode}; complete shards are kept, extract again"
        )
    return Run.open(out)


def _work(prepare: Callable[..., Any], arguments: dict[str, Any], share: Share, errors: Any) -> None:
    """A worker's life. The process that started it passes Ctrl-C on; the terminal's reaches only that one."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the command runs in the background
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        _extract(prepare, arguments, share)
    except (BadInput, RunFailed) as error:
        errors.put(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_STOPPED)


def _extract(prepare: Callable[..., Any], arguments: dict[str, Any], share: Share) -> None:
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // share.workers))
    arguments["device"] = share.device(arguments.get("device") or "cpu", torch.cuda.device_count())
    prepare(**arguments).run()


def _start(processes: Sequence[BaseProcess]) -> None:
    """Start them with Ctrl-C held back: one that is cut off while it receives its arguments would leave us waiting."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        for process in processes:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _interrupt(started: Sequence[BaseProcess]) -> None:
    for process in started:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGINT)


def _going_on(started: Sequence[BaseProcess]) -> bool:
    """Waits a little; are there workers at work, and has none failed?"""
    next((process for process in started if process.is_alive()), started[0]).join(_LOOK)
    return any(process.is_alive() for process in started) and not any(process.exitcode for process in started)


def _report(out: Path, progress: Callable[[int, int], None]) -> None:
    try:
        total = read_manifest(out)["identity"]["examples_count"]
    except BadInput:  # no worker has begun the run yet
        return
    progress(sum(shard.end - shard.begin for shard in read_shards(out)), total)
