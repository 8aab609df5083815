"""Claims on shards: exclusive, kept fresh, and taken over from the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from extract.claims import Claims


def test_claims_are_exclusive_and_those_of_the_dead_are_taken_over(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.acquire(0)
        claim = tmp_path / "shard-00000.claim"
        owner = json.loads(claim.read_text())
        alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        claim.write_text(json.dumps(owner | {"pid": alive.pid}))
        assert not second.acquire(0)
        left = tmp_path / f"shard-00000.phrase.h5.tmp-{first.token}"
        left.write_bytes(b"half")
        alive.communicate(b"\n")
        assert second.acquire(0)  # its process has ended
        assert not left.exists()
        claim.write_text(json.dumps(owner | {"host": "elsewhere"}))
        assert not first.acquire(0)
        first.stale = -1.0
        assert first.acquire(0)  # silent for too long
        first.release(0)
        assert not claim.exists()


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_claim_that_is_gone_does_not_stop_the_heartbeat_of_the_others(tmp_path, monkeypatch, error):
    """It goes between a look at it and the sign of life: taken over by another worker, or on a disk that fails."""
    utime, gone = os.utime, threading.Event()

    def failing(path):
        if path.name == "shard-00000.claim":
            gone.set()
            raise error(path)
        utime(path)

    monkeypatch.setattr("extract.claims.HEARTBEAT", 0.01)
    monkeypatch.setattr("extract.claims.os.utime", failing)
    with Claims(tmp_path) as claims:
        assert claims.acquire(0)
        assert claims.acquire(1)
        assert gone.wait(10)
        other = tmp_path / "shard-00001.claim"
        utime(other, (0, 0))
        limit = time.monotonic() + 5
        while other.stat().st_mtime == 0 and time.monotonic() < limit:
            time.sleep(0.01)
        assert other.stat().st_mtime > 0
