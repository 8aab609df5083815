"""Images of training are found among those evaluated by their content, and only those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kilogram_fixture import write_kilogram
from PIL import Image

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.convert import convert_benchmark
from grounding.examples import Example, ReferenceGame
from grounding.overlap import shared_images, training_overlap


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path, "BMP")
    return path


def example(*images) -> Example:
    return Example("e", "dev", images, "the one", (), ReferenceGame(0), {"image": "i"})


def test_files_of_equal_content_are_one_image_whatever_their_name(tmp_path):
    trained = [example(picture(tmp_path / "a" / f"{n}.bmp", n)) for n in range(3)]  # all of the same size in bytes
    copy, other = picture(tmp_path / "b" / "x.bmp", 1), picture(tmp_path / "b" / "y.bmp", 9)
    assert shared_images(trained, [example(copy, other)]) == {copy.resolve()}
    assert shared_images(trained, [example(other)]) == set()
    assert shared_images(trained, [trained[2]]) == {trained[2].images[0].resolve()}


def test_files_of_another_size_are_never_read(tmp_path, monkeypatch):
    short, long = tmp_path / "short.png", tmp_path / "long.png"
    short.write_bytes(b"1"), long.write_bytes(b"22")
    monkeypatch.setattr("hashlib.file_digest", lambda *args: pytest.fail("a file was read"))
    assert shared_images([example(short)], [example(long)]) == set()


def test_arrays_are_compared_by_their_pixels():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert len(shared_images([example(black.copy())], [example(black, white)])) == 1
    assert shared_images([example(black.reshape(1, 4, 3))], [example(black)]) == set()


def trained_on(benchmark: str, split: str, root: Path | None = None, seed: int = 0, **options) -> dict:
    settings = {"benchmark": benchmark, "train_split": split, "root": root and str(root), "data_seed": seed}
    return {"training": {"settings": {**settings, "benchmark_options": options, "limit_train": None}}}


def test_the_training_split_is_read_and_compared(tmp_path):
    root = write_kilogram(tmp_path / "kilogram", tangrams=48, annotations=2)
    source = open_benchmark("kilogram", root, candidates=2)
    dev = source.load("dev", 6)
    apart = training_overlap(trained_on("kilogram", "train", root, candidates=2), source, dev)
    assert (apart.shared, apart.same_split, apart.trained_on) == (0, False, "kilogram train")
    assert apart.told().startswith("Images shared with training (kilogram train): 0 of")
    seen = source.load("train", 3)
    other_games = training_overlap(trained_on("kilogram", "train", root, candidates=3), source, [*seen, *dev])
    assert other_games.shared == len({image.drawing for example in seen for image in example.images})
    assert other_games.images > other_games.shared
    assert other_games.examples == tuple(e.id for e in seen)
    assert other_games.told().startswith("WARNING: Images shared with training")
    recoloured = training_overlap(trained_on("kilogram", "train", root, seed=1, candidates=2), source, [*seen, *dev])
    again = open_benchmark("kilogram", root, 1, candidates=2).load("train")
    trained, evaluated = ({i.drawing for e in some for i in e.images} for some in (again, [*seen, *dev]))
    assert recoloured.shared == len(trained & evaluated) > 0  # the drawing counts, not its colours
    same = training_overlap(trained_on("kilogram", "dev", root, candidates=2), source, dev)
    assert same.same_split
    told = "WARNING: evaluated on the split that the checkpoint was trained on (kilogram dev)."
    assert same.told() == f"{told} The checkpoint's step was chosen on this split, which flatters it."
    assert not apart.transfer
    assert apart.chosen_on
    assert not training_overlap(trained_on("kilogram", "train", root, candidates=3), source, dev).chosen_on
    assert not training_overlap(trained_on("kilogram", "train", root, candidates=2), source, seen).chosen_on


def test_what_cannot_be_known_is_said_not_guessed(tmp_path, monkeypatch):
    source = open_benchmark("mini-game")
    dev = source.load("dev", 2)
    assert training_overlap({}, source, dev).reason == "the checkpoint does not name its training split"
    gone = training_overlap(trained_on("kilogram", "train", tmp_path / "gone"), source, dev)
    assert gone.shared is None
    assert "is not a folder" in gone.told()
    generated = training_overlap(trained_on("mini-game", "train"), source, dev)
    assert (generated.shared, generated.reason) == (0, "generated: each split draws its own")
    tangrams = open_benchmark("kilogram", write_kilogram(tmp_path / "kilogram"), candidates=2)
    pictures = tangrams.load("dev", 2)
    with monkeypatch.context() as patch:
        patch.setattr(type(source), "load", lambda *args, **options: pytest.fail("training games are drawn"))
        assert training_overlap(trained_on("mini-game", "train"), tangrams, pictures).shared == 0
    assert training_overlap(trained_on("mini-game", "dev"), source, dev).same_split
    assert not training_overlap(trained_on("mini-game", "dev", seed=1), source, dev).same_split


@pytest.mark.parametrize(
    "training",
    [
        None,
        {"settings": None},
        {"settings": {"benchmark": "columnar"}},
        {"settings": {"benchmark": "columnar", "train_split": "train", "root": None}},
        {"settings": {"benchmark": "mini-game"}},
        {"settings": {"benchmark": "mini-game", "train_split": "dev", "data_seed": None, "benchmark_options": {}}},
        {"settings": {"benchmark": "mini-game", "train_split": "dev", "data_seed": 0, "benchmark_options": None}},
    ],
)
def test_a_checkpoint_that_says_little_of_its_training_is_evaluated_all_the_same(training):
    source = open_benchmark("mini-game")
    found = training_overlap({"training": training}, source, source.load("dev", 1))
    assert not found.same_split
    assert not found.chosen_on
    assert not found.transfer


def test_another_benchmark_than_that_of_training_is_told(tmp_path):
    root = write_kilogram(tmp_path / "kilogram")
    tangrams = open_benchmark("kilogram", root, candidates=2)
    dev = tangrams.load("dev", 2)
    moved = training_overlap(trained_on("mini-game", "train"), tangrams, dev)
    assert moved.transfer == "The checkpoint was fine-tuned on mini-game, evaluated on kilogram"
    assert moved.told().startswith(f"{moved.transfer}. Images shared with training (mini-game train): 0 of")
    assert training_overlap({}, tangrams, dev).transfer == ""
    assert training_overlap(trained_on("kilogram", "train", root, candidates=2), tangrams, dev).transfer == ""
    copies = tmp_path / "copies"
    convert_benchmark("kilogram", "dev", copies, root=root, options={"candidates": 2}, limit=2)
    copy = open_benchmark("columnar", copies)
    assert training_overlap(trained_on("kilogram", "train", root, candidates=2), copy, dev).transfer == ""
    assert training_overlap(trained_on("columnar", "dev", copies), tangrams, dev).transfer == ""
    scenes = open_benchmark("mini-game")
    told = training_overlap(trained_on("columnar", "dev", copies), scenes, scenes.load("dev", 1)).transfer
    assert told == "The checkpoint was fine-tuned on kilogram, evaluated on mini-game"
    gone = training_overlap(trained_on("columnar", "train", tmp_path / "gone"), scenes, scenes.load("dev", 1))
    assert gone.transfer == ""
