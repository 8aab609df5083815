"""Faults of machines: a full disk, locks held by others, a kill at any moment."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import tiny_games
from tiny_run import contents, run_tiny

from extract.reader import Run
from extract.store import verify_run
from grounding.errors import RunFailed

HERE = Path(__file__).resolve().parent
LIVES = 100
# One process imports everything and forks: each life is killed, most of them before their run is done.
PROGRAM = """
import os, random, signal, sys, time
sys.path[:0] = sys.argv[2:4]
from pathlib import Path
import torch
from tiny_model import tiny_games
from tiny_run import run_tiny
torch.set_num_threads(1)
games, chance, folder, run = tiny_games(60), random.Random(0), Path(sys.argv[1]), 0
for life in range(int(sys.argv[4])):
    out = folder / f"x{run}"
    child = os.fork()
    if child == 0:
        os.close(2)
        run_tiny(out, games=games)
        os._exit(0)
    time.sleep(chance.uniform(0.0, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run += len(list(out.glob("shard-*.json"))) == 15
print(run + 1)
"""


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


@pytest.mark.parametrize("kilobytes", [60, 1100, 1500, 2200, 3000, 3600])
def test_a_disk_that_fills_up_stops_the_run_which_then_goes_on(disk, tmp_path, kilobytes):
    out = disk(kilobytes) / "x"
    with pytest.raises(
        RunFailed, match=r"No space left on device; complete shards are kept.*; extract again"
    ) as failed:
        run_tiny(out)
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    shards = sum(name.endswith(".json") and name.startswith("shard") for name in left)
    assert (shards > 0) == (kilobytes > 2500)
    assert ("MB more are needed" in str(failed.value)) == (shards > 0)
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
    words = [sys.executable, "-c", PROGRAM, tmp_path, HERE, HERE.parent, str(LIVES)]
    runs = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert 1 < runs < LIVES / 2  # many lives a run, and more than one run
    whole = contents(run_tiny(tmp_path / "whole", games=tiny_games(60)).path)
    for run in range(runs):
        out = tmp_path / f"x{run}"
        run_tiny(out, games=tiny_games(60))
        assert contents(out) == whole
        assert verify_run(out) == []
        assert not [path for path in out.iterdir() if "claim" in path.name]


def test_reading_needs_no_lock_either(tmp_path):
    run = run_tiny(tmp_path / "x")
    os.chmod(run.path / "activations.h5", 0o444)
    assert len(Run.open(run.path).examples) == 10
