"""What extraction refuses, or warns of, and that it then leaves everything as it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import tiny_games
from tiny_run import IDENTITY, contents, interrupt_at, run_tiny

from extract.reader import Run
from grounding.errors import BadInput


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x")


def test_another_run_is_refused_with_both_values(run, tmp_path):
    out = tmp_path / "x"
    shutil.copytree(run.path, out)
    before = contents(out)
    with pytest.raises(BadInput, match=r"holds another run: split is 'dev' there and 'test' here; choose"):
        run_tiny(out, identity=IDENTITY | {"split": "test"})
    other = {"checkpoint": "x" * 500, "split": "test", "limit": 1, "benchmark": {"name": "other", "seed": 3}}
    with pytest.raises(BadInput, match=r"x \.\.\. here; .* \(and \d more\); choose") as many:
        run_tiny(out, identity=other)
    assert len(str(many.value)) < 600
    with pytest.raises(BadInput, match=r"benchmark.seed is 0 there and 3 here"):
        run_tiny(out, identity=IDENTITY | {"benchmark": {"name": "tiny", "seed": 3}})
    with pytest.raises(BadInput, match=r"dtype is 'float16' there and 'float32' here"):
        run_tiny(out, dtype="float32")
    with pytest.raises(BadInput, match=r"examples_count is 10 there and 9 here"):
        run_tiny(out, games=tiny_games(10)[:9])
    assert contents(out) == before


def greyed(games):
    """The same games over images without anything to see."""
    return [replace(game, images=tuple(np.full_like(image, 128) for image in game.images)) for game in games]


def test_other_images_under_the_same_annotations_are_another_run(run, tmp_path, monkeypatch):
    out, grey = tmp_path / "x", greyed(tiny_games(10))
    with pytest.raises(
        BadInput, match=r"holds another run: images\.shard 0 is '\w{16}' there and '\w{16}' here; .*choose"
    ):
        run_tiny(run.path, games=grey)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(out)
    monkeypatch.undo()
    before = contents(out)
    with pytest.raises(BadInput, match=r"holds another run: images\.shard 0 is"):
        run_tiny(out, games=grey)
    assert contents(out) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda game: replace(game, groups={"image": "another"}),
        lambda game: replace(game, phrases=(replace(game.phrases[0], type="another"), *game.phrases[1:])),
    ],
    ids=["groups", "type"],
)
def test_what_splits_and_control_labels_depend_on_is_part_of_the_identity(run, change):
    games = tiny_games(10)
    with pytest.raises(BadInput, match="holds another run: examples is"):
        run_tiny(run.path, games=[*games[:9], change(games[9])])


def test_images_of_shards_that_are_not_written_may_be_mended(run, tmp_path, monkeypatch):
    out, games = tmp_path / "x", tiny_games(10)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(out, games=[*games[:5], *greyed(games[5:6]), *games[6:]])
    monkeypatch.undo()
    assert Run.open(out, allow_partial=True).manifest["identity"] != run.manifest["identity"]
    mended = run_tiny(out)
    assert contents(out) == contents(run.path)
    told = ("identity", "identity_hash")
    assert [mended.manifest[name] for name in told] == [run.manifest[name] for name in told]


def test_images_may_not_change_where_no_shard_tells_of_the_others(run, tmp_path):
    out = tmp_path / "x"
    out.mkdir()
    (out / "manifest.json").write_text(
        json.dumps(run.manifest | {"complete": False})
    )  # of a worker that has just begun
    with pytest.raises(BadInput, match=r"holds another run: images\.shard 0 is"):
        run_tiny(out, games=greyed(tiny_games(10)))


def test_other_means_are_said(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "x")
    (tmp_path / "x" / "shard-00001.json").unlink()
    with pytest.warns(UserWarning, match="bytes may differ: batch_size is 3 there and 2 here"):
        resumed = run_tiny(tmp_path / "x", batch_size=2)
    assert len(resumed.examples) == len(run.examples)


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds files that are not a run"):
        run_tiny(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(BadInput, match=r"is not a run: it has no manifest.json"):
        Run.open(tmp_path)
    with pytest.raises(BadInput, match="is a file"):
        run_tiny(tmp_path / "notes.txt")
    with pytest.raises(BadInput, match="is not a folder"):
        Run.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"seed": -1}, "seed -1 is too small"),
        ({"workers": -1}, "workers -1 is too small"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown; accepted: float16, float32, bfloat16"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown; accepted: fp32, bf16, fp16"),
        ({"compression": "zip"}, "compression 'zip' is unknown; accepted: none, lzf, gzip"),
        ({"views": ["pixels"]}, "view 'pixels' is unknown"),
        ({"sites": ["block.7"]}, "site 'block.7' is unknown"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"games": []}, "no examples"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_made(tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        run_tiny(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
