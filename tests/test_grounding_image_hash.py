"""The hash of examples' images: other pixels change it, another place does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from kilogram_fixture import write_kilogram
from photo_fixture import write_coco, write_flickr, write_refcoco, write_touchdown
from PIL import Image
from tiny_model import tiny_games

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.convert import convert_benchmark
from grounding.image_hash import image_hash

PHOTOS = {
    "touchdown-sdr": write_touchdown,
    "flickr30k": write_flickr,
    "refcoco": write_refcoco,
    "coco-json": write_coco,
}


def greyed(folder: Path, out: Path) -> Path:
    """A copy of a folder of images in which every pixel is grey."""
    shutil.copytree(folder, out)
    for path in out.rglob("*.*"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 128)).save(path)
    return out


def dev(name, root, **options):
    return image_hash(open_benchmark(name, root, **options).load("dev"))


@pytest.mark.parametrize("name", PHOTOS)
def test_other_files_of_the_same_names_are_other_images_wherever_the_folder_is(tmp_path, name):
    root = PHOTOS[name](tmp_path / "root")
    benchmark = open_benchmark(name, root)
    before = dev(name, root)
    grey = greyed(root / benchmark.images, tmp_path / "grey")
    assert dev(name, root, images=str(grey)) != before
    moved = shutil.copytree(root, tmp_path / "moved")
    assert dev(name, moved) == before
    first = Path(benchmark.load("dev")[0].images[0]).relative_to(root)
    (moved / first).unlink()
    assert dev(name, moved) not in (before, None)


def test_files_of_one_size_are_told_apart_by_their_ends(tmp_path):
    root = write_coco(tmp_path)
    for number in range(2):
        path = root / "images" / f"{number}.png"
        Image.open(path).save(path, format="BMP")
    before = dev("coco-json", root)
    sizes = [path.stat().st_size for path in sorted((root / "images").iterdir())]
    for path in (root / "images").iterdir():
        Image.fromarray(np.full((50, 100, 3), 128, np.uint8)).save(path, format="BMP")
    assert [path.stat().st_size for path in sorted((root / "images").iterdir())] == sizes
    assert dev("coco-json", root) != before


@pytest.mark.parametrize("images", ["inside", "reference"])
def test_images_of_a_columnar_copy_count(tmp_path, images):
    root = write_coco(tmp_path / "root")
    convert_benchmark("coco-json", "dev", tmp_path / "out", root=root, images=images)
    before = dev("columnar", tmp_path / "out")
    grey = greyed(root / "images", tmp_path / "grey")
    if images == "reference":
        changed = dev("columnar", tmp_path / "out", images=str(grey))
    else:
        convert_benchmark("coco-json", "dev", tmp_path / "other", root=root, options={"images": str(grey)})
        changed = dev("columnar", tmp_path / "other")
    assert None not in (before, changed)
    assert before != changed


def test_arrays_count_by_their_pixels():
    games, again, others = tiny_games(3), tiny_games(3), tiny_games(3)
    assert image_hash(games) == image_hash(again) is not None
    others[2].images[1][0, 0, 0] ^= 1
    assert image_hash(others) != image_hash(games)


def test_what_is_drawn_is_told_by_its_benchmark(tmp_path):
    assert dev("kilogram", write_kilogram(tmp_path)) is None
    assert image_hash(open_benchmark("mini-game").load("dev", 2)) is None
