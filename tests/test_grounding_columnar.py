"""The columnar form: whatever is converted loads again as equal examples with equal pixels."""

from __future__ import annotations

import json
import pickle
from dataclasses import astuple, replace

import numpy as np
import pytest
from kilogram_fixture import write_kilogram
from photo_fixture import write_coco, write_flickr, write_touchdown

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.convert import convert_benchmark
from grounding.benchmarks.verify import verify_benchmark
from grounding.errors import BadInput
from grounding.images import read_image

WRITERS = {
    "kilogram": write_kilogram,
    "touchdown-sdr": write_touchdown,
    "flickr30k": write_flickr,
    "coco-json": write_coco,
    "mini-game": None,
    "mini-sdr": None,
}


def source_of(name, folder):
    """Arguments that open a benchmark of that name, its files written where it needs any."""
    write = WRITERS[name]
    return {"root": write(folder)} if write else {}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_converted_loads_as_equal_examples(tmp_path, name):
    source = source_of(name, tmp_path / "in")
    written = convert_benchmark(name, "dev", tmp_path / "out", limit=5, **source)
    before = open_benchmark(name, **source).load("dev", limit=5)
    after = open_benchmark("columnar", tmp_path / "out").load("dev")
    assert written.examples == len(before)
    assert any(example.phrases for example in before)
    assert [replace(e, images=()) for e in after] == [replace(e, images=()) for e in before]
    for example, original in zip(after, before, strict=True):
        for image, drawn in zip(example.images, original.images, strict=True):
            np.testing.assert_array_equal(read_image(image), read_image(drawn))
    assert [type(v) for v in astuple(after[0].task)] == [type(v) for v in astuple(before[0].task)]


def test_masks_and_polygons_come_back_exactly(tmp_path):
    convert_benchmark("mini-game", "dev", tmp_path / "mini", limit=2)
    convert_benchmark("kilogram", "dev", tmp_path / "kilo", root=write_kilogram(tmp_path / "in"), limit=2)
    (mini, *_), (kilo, *_) = (open_benchmark("columnar", tmp_path / n).load("dev") for n in ("mini", "kilo"))
    assert mini.phrases[0].regions[0].mask_rle == (64, 64, mini.phrases[0].regions[0].mask_rle[2])
    assert len(kilo.phrases[0].regions[0].polygons[0]) >= 3


def test_images_by_reference_are_the_files_themselves(tmp_path):
    root = write_flickr(tmp_path / "in")
    convert_benchmark("flickr30k", "dev", tmp_path / "out", root=root, images="reference")
    assert open_benchmark("columnar", tmp_path / "out").load("dev") == open_benchmark("flickr30k", root).load("dev")
    assert [path.name for path in sorted((tmp_path / "out" / "dev").iterdir())] == ["examples.parquet", "manifest.json"]
    moved = tmp_path / "photos"
    (root / "flickr30k-images").rename(moved)
    example = open_benchmark("columnar", tmp_path / "out", images=str(moved)).load("dev")[0]
    assert all(path.parent == moved and path.is_file() for path in example.images)


def test_image_files_keep_their_bytes_and_are_stored_once(tmp_path):
    from pyarrow import parquet

    root = write_flickr(tmp_path / "in")
    written = convert_benchmark("flickr30k", "dev", tmp_path / "out", root=root)
    rows = parquet.read_table(tmp_path / "out" / "dev" / "images-00000.parquet").to_pylist()
    assert written.images == len(rows) == 8
    originals = {path.read_bytes() for path in (root / "flickr30k-images").iterdir()}
    assert {row["image"]["bytes"] for row in rows} <= originals


def test_the_tables_open_with_datasets(tmp_path):
    from datasets import Dataset

    convert_benchmark("mini-game", "dev", tmp_path / "out", limit=3)
    folder = tmp_path / "out" / "dev"
    examples = Dataset.from_parquet(str(folder / "examples.parquet"), cache_dir=str(tmp_path / "cache"))
    images = Dataset.from_parquet(str(folder / "images-00000.parquet"), cache_dir=str(tmp_path / "cache"))
    assert examples[0]["task"] == "game"
    assert images[0]["image"].size == (64, 64)


def test_stored_images_travel_to_other_processes(tmp_path):
    convert_benchmark("mini-game", "dev", tmp_path / "out", limit=4)  # 24 images: more than one group of rows
    images = [i for e in open_benchmark("columnar", tmp_path / "out").load("dev") for i in e.images]
    drawn = [i for e in open_benchmark("mini-game").load("dev", limit=4) for i in e.images]
    assert len(pickle.dumps(images[-1])) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images[-1])).render(), drawn[-1].render())
    assert read_image(images[0], 32).shape == (32, 32, 3)


def test_splits_are_added_and_never_overwritten(tmp_path):
    for split in ("dev", "test"):
        convert_benchmark("mini-sdr", split, tmp_path, limit=2)
    assert {path.name for path in tmp_path.iterdir()} == {"dev", "test"}
    columnar = open_benchmark("columnar", tmp_path)
    identity = columnar.identity()
    assert columnar.load("test")[0].id == "mini-sdr/test/000000"
    with pytest.raises(BadInput, match=r"dev' exists already; accepted: a new folder"):
        convert_benchmark("mini-sdr", "dev", tmp_path, limit=3)
    assert columnar.identity() == identity


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    root = write_coco(tmp_path / "in")
    (root / "images" / "1.png").unlink()
    (tmp_path / "mine").mkdir()
    for out in ("out", "mine"):
        with pytest.raises(BadInput, match=r"1\.png does not exist"):
            convert_benchmark("coco-json", "dev", tmp_path / out, root=root)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "mine").iterdir()) == []
    written = convert_benchmark("coco-json", "dev", tmp_path / "out", root=root, skip_bad=True)
    assert [item.id for item in written.skipped] == ["coco-json/dev/1"]
    assert written.skipped[0].reason.endswith("1.png does not exist")
    whole = [e.id for e in open_benchmark("coco-json", root).load("dev") if e.id != "coco-json/dev/1"]
    assert [example.id for example in open_benchmark("columnar", tmp_path / "out").load("dev")] == whole
    assert len(whole) == written.examples > 0


def test_what_cannot_be_converted_is_refused(tmp_path):
    with pytest.raises(BadInput, match="images 'reference' does not fit Scene, which is no file; accepted: inside"):
        convert_benchmark("mini-game", "dev", tmp_path / "out", images="reference", limit=1)
    with pytest.raises(BadInput, match="images 'both' is unknown; accepted: inside, reference"):
        convert_benchmark("mini-game", "dev", tmp_path / "out", images="both")
    with pytest.raises(BadInput, match=r"root .*dev' has no manifest\.json; accepted: a folder a split"):
        open_benchmark("columnar", tmp_path).load("dev")


def edit_manifest(folder, **fields):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_broken_tables_are_named(tmp_path):
    root = write_flickr(tmp_path / "in")
    folder = convert_benchmark("flickr30k", "dev", tmp_path / "a", root=root).folder
    images = folder / "images-00000.parquet"
    content = images.read_bytes()
    images.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"table .*images-00000\.parquet cannot be read"):
        open_benchmark("columnar", tmp_path / "a").load("dev")
    images.unlink()
    with pytest.raises(
        BadInput, match=r"examples\.parquet, example 'flickr30k/dev/1100/0': there is no image '0000000"
    ):
        open_benchmark("columnar", tmp_path / "a").load("dev")
    edit_manifest(folder, format=7)
    with pytest.raises(BadInput, match="format 7 is unknown; accepted: 1"):
        open_benchmark("columnar", tmp_path / "a").load("dev")
    edit_manifest(folder, format=1, images="elsewhere")
    with pytest.raises(BadInput, match=r"images 'elsewhere' is unknown; accepted: inside, reference"):
        open_benchmark("columnar", tmp_path / "a").load("dev")


def test_names_in_tables_lead_to_no_other_folder(tmp_path):
    from datasets import Dataset

    from grounding.benchmarks.columnar_rows import example_features, to_row

    folder = convert_benchmark(
        "coco-json", "dev", tmp_path / "out", root=write_coco(tmp_path / "in"), images="reference"
    ).folder
    example = open_benchmark("columnar", tmp_path / "out").load("dev")[0]
    row = to_row(example, ["../secret.png"])
    Dataset.from_list([row], features=example_features()).to_parquet(folder / "examples.parquet")
    with pytest.raises(BadInput, match=r"file name '\.\./secret.png' leads out of its folder"):
        open_benchmark("columnar", tmp_path / "out").load("dev")


def test_verifying_finds_a_broken_stored_image(tmp_path):
    from datasets import Dataset, Features, Image, Value

    folder = convert_benchmark("mini-sdr", "dev", tmp_path, limit=2).folder
    features = Features({"name": Value("string"), "image": Image()})
    rows = [{"name": f"{number:08d}", "image": {"bytes": b"no image", "path": None}} for number in range(2)]
    Dataset.from_list(rows, features=features).to_parquet(folder / "images-00000.parquet")
    found = verify_benchmark("columnar", root=tmp_path)
    assert [fault.id for fault in found.faults] == ["mini-sdr/dev/000000", "mini-sdr/dev/000001"]
    assert "images-00000.parquet cannot be read" in found.faults[0].reason
