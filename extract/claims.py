"""Who works on which shard: claims are files that only one process can create, kept fresh by a heartbeat.

They save work and are not needed for correctness: two workers on one shard write the same bytes under
temporary names of their own, and the later rename wins.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType

HEARTBEAT = 10.0  # seconds between signs of life
STALE = 120.0  # seconds without one after which a claim may be taken over
_LIVE: set[str] = set()  # tokens of this process that are in use


class Claims:
    """The claims of one extraction on a run's folder; a context manager, since it keeps a heartbeat thread."""

    def __init__(self, folder: Path, stale: float = STALE):
        self.folder = folder
        self.stale = stale
        self.token = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="claims")

    def __enter__(self) -> Claims:
        _LIVE.add(self.token)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for path in list(self._held):
            self._drop(path)
        _LIVE.discard(self.token)

    def acquire(self, shard: int) -> bool:
        """Try to claim a shard; a claim whose owner is gone is taken over, its unfinished files removed."""
        path = self._path(shard)
        try:
            self._create(path)
        except FileExistsError:
            owner = _owner(path)
            if owner is None or not self._abandoned(path, owner):
                return False
            _clear(path, owner["token"])
            try:
                self._create(path)
            except FileExistsError:  # another worker was faster
                return False
        return True

    def release(self, shard: int) -> None:
        """Give a claim back."""
        self._drop(self._path(shard))

    def clear(self, shard: int) -> None:
        """Remove whatever claim there is on a shard: it is complete, and nothing is left to claim."""
        self._path(shard).unlink(missing_ok=True)

    def _create(self, path: Path) -> None:
        with path.open("x", encoding="utf-8") as file:
            with self._lock:
                self._held.add(path)  # given back even where the disk is too full to say whose it is
            json.dump({"token": self.token, "host": socket.gethostname(), "pid": os.getpid()}, file)

    def _drop(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
        path.unlink(missing_ok=True)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.claim"

    def _abandoned(self, path: Path, owner: dict[str, str]) -> bool:
        """Is the owner a process of this host that has ended, or silent for too long?

        A claim under this process's id with a token that is not in use was left by another life of that number.
        """
        try:
            silent = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return False
        if silent > self.stale:
            return True
        if owner.get("host") != socket.gethostname():
            return False
        pid = int(owner.get("pid", 0))
        return owner["token"] not in _LIVE if pid == os.getpid() else not _alive(pid)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with self._lock:
                for path in self._held:
                    with suppress(OSError):  # taken over just now, or on a disk that fails for a moment: others go on
                        os.utime(path)


def release_lost(folder: Path, token: str) -> None:
    """Give back the claims of a worker that is known to have died, and remove its unfinished files.

    For a scheduler: another host cannot see that a process has ended, and would wait until the claim is stale.
    """
    for path in folder.glob("shard-*.claim"):
        owner = _owner(path)
        if owner is not None and owner["token"] == token:
            _clear(path, token)


def _clear(claim: Path, token: str) -> None:
    for left in claim.parent.glob(f"{claim.stem}.*.tmp-{token}"):
        left.unlink(missing_ok=True)
    claim.unlink(missing_ok=True)


def _owner(path: Path) -> dict[str, str] | None:
    """Who holds a claim; None if it has just been given back; an unreadable one has no name."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        owner = None
    return owner if isinstance(owner, dict) and "token" in owner else {"token": "unknown"}


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
