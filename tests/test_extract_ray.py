"""Extraction on Ray: a real cluster of two workers on this machine, one of them killed; and what is refused."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from ray_jobs import SlowModel, Squares
from test_probe_cli import run as run_command
from tiny_model import BrokenImage, tiny_games
from tiny_run import contents, run_tiny, tiny_arguments

from extract import ray_engine
from extract.ray_pool import RayPool
from extract.run import prepare
from grounding.errors import BadInput, RunFailed


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.h5"))}


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_bytes_are_those_of_one_process(cluster, tmp_path):
    one, many, killed = run_tiny(tmp_path / "one", shard_size=2), tmp_path / "many", []

    def kill(done: int, total: int) -> None:
        """When the first shard is done, the other worker is in the middle of one."""
        claims = [json.loads(path.read_text()) for path in sorted(many.glob("*.claim"))]
        if done and claims and not killed:
            assert claims[0]["pid"] != os.getpid()
            os.kill(claims[0]["pid"], signal.SIGKILL)
            killed.append(claims[0]["token"])

    arguments = tiny_arguments(many, shard_size=2) | {"model": SlowModel()}
    with pytest.warns(UserWarning, match="a worker was lost"):
        found = ray_engine.run_on_ray(prepare, arguments, num_workers=2, progress=kill)
    assert killed
    assert shard_bytes(many) == shard_bytes(one.path)
    assert contents(many) == contents(one.path)
    assert {path.name for path in many.iterdir()} == {path.name for path in one.path.iterdir()}
    assert found.manifest["rows"] == one.manifest["rows"]
    assert found.manifest["made_with"] == one.manifest["made_with"]


@pytest.mark.slow
def test_errors_of_workers_arrive_in_one_line_and_nothing_is_left(cluster, tmp_path):
    games = tiny_games(10)
    broken = [*games[:8], *(replace(game, images=(BrokenImage(),) * 3) for game in games[8:])]
    with pytest.raises(BadInput) as error:
        ray_engine.run_on_ray(prepare, tiny_arguments(tmp_path / "x", games=broken), num_workers=1)
    assert str(error.value) == "image broken.png cannot be read"
    assert not list((tmp_path / "x").glob("*.claim")) + list((tmp_path / "x").glob("*.tmp-*"))
    with pytest.raises(BadInput, match=r"site 'block\.9' is unknown"):
        ray_engine.run_on_ray(prepare, tiny_arguments(tmp_path / "y", sites=["block.9"]), num_workers=1)
    assert not (tmp_path / "y").exists()
    for wanted, message in (
        ({"gpus_per_worker": 1}, "gpus_per_worker 1 is too many: no node of the cluster has more than 0"),
        ({"cpus_per_worker": 3}, "cpus_per_worker 3 is too many: no node of the cluster has more than 2"),
    ):
        with pytest.raises(BadInput, match=message):
            ray_engine.run_on_ray(prepare, tiny_arguments(tmp_path / "y"), **wanted)
    run_tiny(tmp_path / "z")
    with pytest.raises(BadInput, match="holds another run: dtype is 'float16' there and 'float32' here"):
        ray_engine.run_on_ray(prepare, tiny_arguments(tmp_path / "z", dtype="float32"), num_workers=1)


@pytest.mark.slow
def test_jobs_go_again_when_their_worker_is_lost_but_not_for_ever(cluster, tmp_path):
    lost: list[int] = []
    make = partial(Squares, str(tmp_path / "flag"))
    with RayPool(make, 2, retries=1, lost=lost.append) as pool:
        with pytest.warns(UserWarning, match="a worker was lost .job 5., another takes its place"):
            squares = dict(pool.results(range(8)))
        assert squares == {job: job * job for job in range(8)}
        assert len(lost) == 1
        with (
            pytest.warns(UserWarning, match="job 13"),
            pytest.raises(RunFailed, match="a worker was lost 2 times, last while job 13"),
        ):
            list(pool.results([13]))


@pytest.mark.slow
def test_the_command_on_ray_gives_the_bytes_of_the_command_alone(cluster, monkeypatch, capsys, tmp_path):
    words = [
        "extract",
        "--ckpt",
        "vilt-aligner-grounded",
        "--benchmark",
        "mini-game",
        "--limit",
        6,
        "--views",
        "phrase",
    ]
    words += ["--shard-size", 2, "--json", "--out"]
    code, _, err = run_command(monkeypatch, capsys, *words, tmp_path / "one")
    assert code == 0, err
    monkeypatch.chdir(tmp_path)
    code, printed, err = run_command(monkeypatch, capsys, *words, "many", "--engine", "ray", "--num-workers", 2)
    assert code == 0, err
    assert json.loads(printed)["examples"] == 6
    assert shard_bytes(tmp_path / "many") == shard_bytes(tmp_path / "one")
    manifest = json.loads((tmp_path / "many" / "manifest.json").read_text())
    assert manifest["command"][-4:] == ["--engine", "ray", "--num-workers", "2"]
