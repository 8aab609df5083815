"""Faults of machines: a full disk, locks held by others, a kill at any moment."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import contents, run_tiny

from extract.reader import Run
from extract.store import verify_run
from grounding.errors import RunFailed

HERE = Path(__file__).resolve().parent
PROGRAM = (
    "import sys; sys.path[:0] = [sys.argv[2], sys.argv[3]]\n"
    "from pathlib import Path\n"
    "from tiny_model import tiny_games\n"
    "from tiny_run import run_tiny\n"
    "print('ready', flush=True)\n"
    "run_tiny(Path(sys.argv[1]), games=tiny_games(60))\n"
)


@pytest.fixture
def disk(tmp_path):
    """Makes a small file system of some kilobytes; skips where this process may not mount one."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(kilobytes: int, options: str = "") -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"{options}size={kilobytes}k", "tmpfs", place]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no small file system: this process may not mount one")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True)


@pytest.mark.parametrize(("kilobytes", "shards"), [(60, 0), (1100, 0), (1300, 0), (2200, 1), (2900, 1)])
def test_a_disk_that_fills_up_stops_the_run_which_then_goes_on(disk, tmp_path, kilobytes, shards):
    out = disk(kilobytes) / "x"
    needed = r", about \d+ MB more are needed" if shards else ""
    with pytest.raises(RunFailed, match=rf"No space left on device; complete shards are kept{needed}; extract again"):
        run_tiny(out)
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert sum(name.endswith(".json") and name.startswith("shard") for name in left) == shards
    assert not [name for name in left if "tmp" in name or "claim" in name]
    disk(20000, "remount,")
    assert contents(run_tiny(out).path) == contents(run_tiny(tmp_path / "y").path)


def test_locks_of_others_do_not_matter(tmp_path):
    run = run_tiny(tmp_path / "x")
    held = [path.open("rb+") for path in run.path.glob("*.h5")]
    for file in held:
        fcntl.flock(file, fcntl.LOCK_EX)
    before = run.read("block.0", "phrase")
    (run.path / "shard-00001.json").unlink()
    again = run_tiny(tmp_path / "x")
    assert (again.read("block.0", "phrase") == before).all()
    for file in held:
        file.close()


@pytest.mark.slow
def test_killed_at_a_hundred_random_moments_and_resumed(tmp_path):
    from tiny_model import tiny_games

    whole = contents(run_tiny(tmp_path / "whole", games=tiny_games(60)).path)
    chance = random.Random(0)
    out, lives, finished = tmp_path / "x", 0, 0
    while lives < 100:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, out, HERE, HERE.parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        lives += 1
        if (out / "manifest.json").is_file() and len(list(out.glob("shard-*.json"))) == 15:
            finished += _check(out, whole)
            out = tmp_path / f"x{lives}"
    finished += _check(out, whole)
    assert finished > 1


def _check(out: Path, whole: dict[str, bytes]) -> int:
    from tiny_model import tiny_games

    run_tiny(out, games=tiny_games(60))
    assert contents(out) == whole
    assert verify_run(out) == []
    assert not [path for path in out.iterdir() if "claim" in path.name]
    return 1


def test_reading_needs_no_lock_either(tmp_path):
    run = run_tiny(tmp_path / "x")
    os.chmod(run.path / "activations.h5", 0o444)
    assert len(Run.open(run.path).examples) == 10
