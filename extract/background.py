"""One writer thread behind a short queue: the disk works while the model computes, and memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch


class Background:
    """Runs functions one after the other in a thread of its own; a context manager that waits for them.

    The thread computes alone: its small tensor operations would only take the model's processor cores away.
    ``submit`` blocks while ``limit`` calls are waiting. An error of a call is raised at the next ``submit`` or
    ``drain``, and later calls are not made.
    """

    def __init__(self, limit: int = 2):
        self.limit = limit
        self._failed = False
        self._pending: deque[Future[None]] = deque()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        threads = torch.get_num_threads()
        self._executor.submit(_compute_alone).result()
        torch.set_num_threads(threads)  # the setting is each thread's own, the default of new threads is shared

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Calls that wait are still made after an error of the block, which is none of theirs; not after Ctrl-C."""
        self._executor.shutdown(wait=True, cancel_futures=kind is not None and not issubclass(kind, Exception))

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function(*arguments)`` in the thread, after all earlier calls."""
        while self._pending and (len(self._pending) >= self.limit or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(self._call, function, *arguments))

    def drain(self) -> None:
        """Wait until every call has been made."""
        while self._pending:
            self._pending.popleft().result()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self._failed = True
            raise


def _compute_alone() -> None:
    torch.get_num_threads()  # the first call in a thread sets it to the default
    torch.set_num_threads(1)
