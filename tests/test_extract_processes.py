"""Several processes of this machine on one run: the same bytes, errors of one, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ray_jobs import SlowModel
from tiny_model import BrokenImage, tiny_games
from tiny_run import contents, run_tiny, tiny_arguments

from extract.processes import run_processes
from extract.reader import Run
from extract.run import prepare
from grounding.errors import BadInput, RunFailed

HERE = Path(__file__).resolve().parent
PID = r'"pid": (\d+)'


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, seen = run_tiny(tmp_path / "one", shard_size=2), []
    arguments = tiny_arguments(tmp_path / "two", shard_size=2) | {"model": SlowModel()}
    two = run_processes(prepare, arguments, 2, progress=lambda done, total: seen.append((done, total)))
    assert contents(two.path) == contents(one.path)
    assert two.manifest["made_with"] == one.manifest["made_with"]
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {10}
    assert {path.name for path in two.path.iterdir()} == {path.name for path in one.path.iterdir()}


@pytest.mark.slow
def test_an_error_of_one_stops_all(tmp_path):
    games = [replace(game, images=(BrokenImage(),) * 3) for game in tiny_games(4)]
    with pytest.raises(BadInput, match=r"^image broken.png cannot be read$"):
        run_processes(prepare, tiny_arguments(tmp_path / "x", games=games, shard_size=2), 2)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_is_said_and_the_run_goes_on_from_there(tmp_path):
    out = tmp_path / "x"
    killed = []

    def kill(done: int, total: int) -> None:
        """One of the two, once both are at work: the other leaves what is there readable."""
        workers = {int(found[1]) for path in out.glob("*.claim") if (found := re.search(PID, _text(path)))}
        if done and len(workers) == 2 and not killed:
            killed.append(min(workers))
            os.kill(killed[0], signal.SIGKILL)

    games, sizes = tiny_games(200), {"shard_size": 5, "batch_size": 1}
    arguments = tiny_arguments(out, games, **sizes) | {"model": SlowModel()}
    with pytest.raises(RunFailed, match="worker process ended with code -9; complete shards are kept"):
        run_processes(prepare, arguments, 2, progress=kill)
    assert killed
    assert 0 < len(Run.open(out, allow_partial=True).examples) < len(games)
    run_tiny(out, games, **sizes)
    assert contents(out) == contents(run_tiny(tmp_path / "one", games, **sizes).path)


def _text(claim: Path) -> str:
    """Of a claim that may just have been given back, or be still unwritten: nothing."""
    try:
        return claim.read_text()
    except FileNotFoundError:
        return ""


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_after_their_shards(tmp_path):
    program = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # even where the tests run in the background
        "from extract.processes import run_processes; from extract.run import prepare\n"
        "from tiny_model import tiny_games; from tiny_run import tiny_arguments; from ray_jobs import SlowModel\n"
        "if __name__ == '__main__':\n"
        "    arguments = tiny_arguments(Path(sys.argv[1]), tiny_games(90), shard_size=1, batch_size=1)\n"
        "    run_processes(prepare, arguments | {'model': SlowModel()}, 2)\n"
    )
    script, out = tmp_path / "program.py", tmp_path / "x"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    started = subprocess.Popen(
        [sys.executable, script, out], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 60
    while not list(out.glob("shard-*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    _, errors = started.communicate(timeout=60)
    assert started.returncode != 0
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")
    left = {path.suffix for path in out.iterdir()}
    assert left == {".json", ".h5"}
    assert 0 < len(Run.open(out, allow_partial=True).examples) < 90


def test_impossible_numbers_are_refused(tmp_path):
    with pytest.raises(BadInput, match="num_workers: worker 0 of 0 is impossible"):
        run_processes(prepare, tiny_arguments(tmp_path / "x"), 0)
    with pytest.raises(BadInput, match="batch_size 'auto' with several workers"):
        run_processes(prepare, tiny_arguments(tmp_path / "x", batch_size="auto"), 2)
