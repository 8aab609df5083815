"""Fixed shares of a run: what torchrun and Slurm tell is understood, and whoever finishes last leaves the run whole."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest
from tiny_model import BrokenImage, tiny_games
from tiny_run import contents, prepare_tiny, run_tiny

from extract import folder as folder_module
from extract.claims import Claims, release_lost
from extract.reader import Run
from extract.share import Share, choose_share
from extract.store import read_manifest
from grounding.errors import BadInput

BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}
ARRAY |= {"SLURM_ARRAY_TASK_MAX": "7"} | BATCH_SCRIPT  # --array=1-7:2
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x")


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((None, None), {}, (0, 1, 0)),
        ((2, 5), {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (2, 5, 1)),  # the command line first
        ((None, None), {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"} | ARRAY, (5, 8, 1)),  # then torchrun
        ((None, None), {"RANK": "5"}, (0, 1, 0)),
        ((None, None), ARRAY, (2, 4, 0)),
        ((None, None), BATCH_SCRIPT | {"SLURM_NTASKS": "1"}, (0, 1, 0)),
        ((None, None), BATCH_SCRIPT | {"SLURM_NTASKS": "4"}, (0, 1, 0)),  # not started by srun: one process, all of it
        ((None, None), STEP, (3, 4, 1)),
        ((None, None), STEP | {"SLURM_STEP_NUM_TASKS": "8"}, (3, 8, 1)),  # the step's tasks, not the job's
        ((None, None), ARRAY | STEP, (2 * 4 + 3, 16, 1)),  # an array of steps
    ],
)
def test_the_share_comes_from_the_arguments_or_else_the_environment(given, environment, expected):
    share = choose_share(*given, environment)
    assert (share.index, share.workers, share.local_index) == expected


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ((1, None), {}, "--shard-index needs --num-workers too"),
        ((None, 2), {}, "--num-workers needs --shard-index too"),
        ((2, 2), {}, "worker 2 of 2 is impossible; accepted: 0 to workers - 1"),
        ((-1, 2), {}, "worker -1 of 2 is impossible"),
        ((0, 0), {}, "worker 0 of 0 is impossible"),
        ((None, None), {"RANK": "2", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE of the environment: worker 2 of 2"),
        ((None, None), {"RANK": "x", "WORLD_SIZE": "2"}, "RANK of the environment is 'x'; accepted: a whole number"),
        ((None, None), ARRAY | {"SLURM_ARRAY_TASK_MAX": "8"}, "5 of 4 tasks from 1 to 8: not evenly spaced"),
        ((None, None), ARRAY | {"SLURM_ARRAY_TASK_ID": "6"}, "6 of 4 tasks from 1 to 7: not evenly spaced"),
        ((None, None), {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT of the environment is ''"),
    ],
)
def test_impossible_shares_are_refused(given, environment, message):
    with pytest.raises(BadInput) as error:
        choose_share(*given, environment)
    assert message in str(error.value)


def test_every_shard_has_one_worker():
    for workers in (1, 2, 3, 7):
        taken = [shard for index in range(workers) for shard in Share(index, workers).of(5)]
        assert sorted(taken) == list(range(5))


def test_workers_go_round_the_devices_they_see():
    assert [Share(0, 9, local).device("cuda", 2) for local in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert Share(0, 9, 3).device("cuda", 1) == "cuda"  # each task sees its own only
    assert Share(0, 9, 3).device("cuda:1", 4) == "cuda:1"
    assert Share(0, 9, 3).device("cpu", 4) == "cpu"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_whoever_finishes_last_leaves_the_run_whole(run, tmp_path, order):
    out, seen = tmp_path / "x", []
    for index, left in zip(order, ([k for k in range(3) if k % 2 != order[0]], []), strict=True):
        extraction = prepare_tiny(out, progress=lambda done, total: seen.append((done, total)))
        assert extraction.run_share(Share(index, 2)) == left
        assert read_manifest(out)["complete"] is (not left)
        assert seen[-1] == ((6, 6) if index == 0 else (4, 4))  # shards of 4, 4 and 2 examples
    assert contents(out) == contents(run.path)
    assert Run.open(out).manifest["rows"] == run.manifest["rows"]


def test_a_worker_without_shards_leaves_the_others_alone(tmp_path):
    out = tmp_path / "x"
    assert prepare_tiny(out).run_share(Share(3, 4)) == [0, 1, 2]
    assert prepare_tiny(out).run_share(Share(0, 2)) == [1]
    assert prepare_tiny(out).run_share(Share(3, 4)) == [1]
    assert prepare_tiny(out).run_share(Share(1, 2)) == []
    assert len(Run.open(out).examples) == 10


def test_a_slower_worker_does_not_overwrite_the_whole_with_its_part(run, tmp_path, monkeypatch):
    """The other worker finishes between this one's look at the shards and its writing of what it saw."""
    out, build, meanwhile = tmp_path / "x", folder_module.build_virtual, iter([True])
    prepare_tiny(out).run_share(Share(1, 2))
    slow = prepare_tiny(out)

    def building(folder, shards, token):
        if next(meanwhile, False):
            (out / "shard-00001.json").write_bytes(hidden)  # the other's last shard
            build(folder, folder_module.read_shards(out), "other")
        build(folder, shards, token)

    hidden = (out / "shard-00001.json").read_bytes()
    (out / "shard-00001.json").unlink()
    monkeypatch.setattr(folder_module, "build_virtual", building)
    assert slow.run_share(Share(0, 2)) == []
    assert read_manifest(out)["complete"] is True
    assert contents(out) == contents(run.path)


def test_a_worker_that_fails_takes_nothing_from_one_that_works(tmp_path):
    out = tmp_path / "x"
    working = prepare_tiny(out)
    failing = prepare_tiny(out, games=[replace(game, images=(BrokenImage(),) * 3) for game in tiny_games(10)])
    out.mkdir()
    with Claims(out) as other:
        assert other.acquire(1)
        with pytest.raises(BadInput, match="cannot be read"):
            failing.run_share(Share(0, 3))
        assert (out / "manifest.json").is_file()
    with pytest.raises(BadInput, match="cannot be read"):
        prepare_tiny(out, games=failing.examples).run_share(Share(0, 3))
    (out / "manifest.json").unlink()  # one that began the run and failed takes it back: the others write it again
    assert working.run_share(Share()) == []
    assert len(Run.open(out).examples) == 10


def test_auto_is_refused_among_several_workers():
    Share(0, 1).check_batch_size("auto")
    with pytest.raises(BadInput, match="batch_size 'auto' with several workers"):
        Share(0, 2).check_batch_size("auto")


def test_the_claims_of_a_worker_that_is_known_to_be_lost_are_free_at_once(tmp_path):
    lost, other = Claims(tmp_path), Claims(tmp_path)
    with lost, other:
        assert lost.acquire(0)
        assert other.acquire(1)
        half = tmp_path / f"shard-00000.phrase.h5.tmp-{lost.token}"
        half.write_bytes(b"half")
        assert not other.acquire(0)
        release_lost(tmp_path, lost.token)
        assert not half.exists()
        assert other.acquire(0)
        assert (tmp_path / "shard-00001.claim").exists()


def test_a_shard_that_another_holds_is_waited_for_if_it_is_ones_own(run, tmp_path, monkeypatch):
    out = tmp_path / "x"
    shutil.copytree(run.path, out)
    record = (out / "shard-00002.json").read_bytes()
    (out / "shard-00002.json").unlink()
    naps = []

    def nap(seconds):
        naps.append(seconds)
        (out / "shard-00002.json").write_bytes(record)

    monkeypatch.setattr(time, "sleep", nap)
    with Claims(out) as other:
        assert other.acquire(2)
        assert prepare_tiny(out).run_share(Share(1, 2)) == [2]  # not this one's
        assert not naps
        assert prepare_tiny(out).run_share(Share(0, 2)) == []
        assert naps


def test_shares_made_without_a_common_disk_are_joined_by_copying_them_together(run, tmp_path):
    for index in (0, 1):
        prepare_tiny(tmp_path / f"host-{index}").run_share(Share(index, 2))
    for path in (tmp_path / "host-1").glob("shard-*"):
        shutil.copy(path, tmp_path / "host-0")
    assert read_manifest(tmp_path / "host-0")["complete"] is False
    assert contents(run_tiny(tmp_path / "host-0").path) == contents(run.path)
