"""Verification opens everything; the catalogue lists every benchmark and finds one example."""

from __future__ import annotations

from collections import Counter

import pytest
from kilogram_fixture import write_kilogram
from photo_fixture import change_json, write_coco, write_flickr, write_photo, write_refcoco, write_touchdown

from grounding.benchmarks import BENCHMARKS
from grounding.benchmarks.catalogue import find_example, list_benchmarks
from grounding.benchmarks.verify import Counts, Found, verify_benchmark
from grounding.errors import BadInput


def test_whole_files_have_no_faults(tmp_path):
    found = verify_benchmark("touchdown-sdr", root=write_touchdown(tmp_path, ("train", "dev")))
    assert found.faults == ()
    assert found.absent == ("tune", "test", "debug")
    assert found.splits == dict.fromkeys(("train", "dev"), Counts(examples=4, phrases=8, regions=12, images=4))


@pytest.mark.parametrize(
    ("name", "write"), [("kilogram", write_kilogram), ("flickr30k", write_flickr), ("refcoco", write_refcoco)]
)
def test_every_form_can_be_verified(tmp_path, name, write):
    progress = []
    found = verify_benchmark(
        name, root=write(tmp_path), splits=["dev"], limit=2, progress=lambda *done: progress.append(done)
    )
    assert found.faults == ()
    assert found.splits["dev"].examples == 2
    assert progress[-1] == (found.splits["dev"].images,) * 2


def test_whole_entries_without_an_example_are_listed(tmp_path):
    found = verify_benchmark("kilogram", root=write_kilogram(tmp_path), splits=["train", "dev"])
    assert found.faults == ()
    assert found.splits["dev"].examples + len(found.excluded) == 4 * 6
    assert {item.split for item in found.excluded} == {"dev"}
    reasons = Counter(item.reason for item in found.excluded)
    assert reasons == {f"fewer than 9 distractors of {parts} parts in dev": 4 for parts in (2, 4)}
    assert all(item.id.startswith("kilogram/dev/made-") for item in found.excluded)


def test_benchmarks_without_files_can_be_verified():
    assert verify_benchmark("mini-game", splits=["dev"], limit=2).splits["dev"].images == 12


def test_every_fault_is_listed_with_file_and_id(tmp_path):
    root = write_touchdown(tmp_path, ("train", "dev"))
    path = root / "finetune_touchdown_sdr_dev_800_3712_0.5_True_True.json"
    (root / "images" / "dev-pano0.jpg").unlink()
    write_photo(root / "images" / "dev-pano1.jpg", (460, 100))
    photo = root / "images" / "dev-pano2.jpg"
    photo.write_bytes(photo.read_bytes()[:300])
    change_json(path, lambda c: c["annotations"][9].update(bbox=[400, 0, 80, 20]))
    (root / "finetune_touchdown_sdr_train_800_3712_0.5_True_True.json").write_text('{"images": [')
    found = verify_benchmark("touchdown-sdr", root=root)
    reasons = {fault.id: fault.reason for fault in found.faults}
    assert len(found.faults) == 5
    assert "train_800_3712_0.5_True_True.json are not JSON" in reasons["train"]
    assert reasons["touchdown-sdr/dev/0"].endswith("dev-pano0.jpg does not exist")
    assert reasons["touchdown-sdr/dev/1"].endswith(
        "dev-pano1.jpg is 460 x 100 pixels; its annotations say 464 x 100"
    )  # fmt: skip
    assert "dev-pano2.jpg cannot be read" in reasons["touchdown-sdr/dev/2"]
    assert f"{path}, image 3, annotation 9: bbox" in reasons["touchdown-sdr/dev/3"]
    assert found.splits == {"dev": Counts(examples=3, phrases=6, regions=9, images=0)}


def test_a_missing_split_is_a_fault_if_it_is_asked_for(tmp_path):
    write_coco(tmp_path)
    (fault,) = verify_benchmark("coco-json", root=tmp_path, splits=["dev", "test"]).faults
    assert fault == Found("test", "test", fault.reason)
    assert "has no test.json" in fault.reason
    with pytest.raises(BadInput, match="split 'val' is unknown; accepted: train, tune, dev, test"):
        verify_benchmark("coco-json", root=tmp_path, splits=["val"])


def test_a_root_without_any_split_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"holds no split of 'refcocog'; accepted: finetune_refcocog_"):
        verify_benchmark("refcocog", root=tmp_path)


def test_the_catalogue_has_every_benchmark():
    entries = {entry.name: entry for entry in list_benchmarks()}
    assert list(entries) == list(BENCHMARKS)
    assert entries["flickr30k"].options["candidates"] == 6
    assert "train2014/" in entries["refcoco+"].needs
    assert entries["mini-sdr"].needs == "nothing"


def test_an_example_is_found_by_its_id(tmp_path):
    root = write_coco(tmp_path)
    assert find_example("coco-json", "coco-json/dev/1", root=root).id == "coco-json/dev/1"
    assert find_example("mini-sdr", "mini-sdr/test/000002", data_seed=3).id == "mini-sdr/test/000002"
    with pytest.raises(
        BadInput, match="example 'coco-json/dev/7' is not in dev; accepted: one of its 2: coco-json/dev/0"
    ):
        find_example("coco-json", "coco-json/dev/7", root=root)
    with pytest.raises(BadInput, match="example '7' does not say its split; accepted: coco-json/SPLIT"):
        find_example("coco-json", "7", root=root)
    change_json(root / "dev.json", lambda c: c["images"][1].update(caption=""))
    with pytest.raises(BadInput, match=r"dev\.json, image 1: the caption is empty"):
        find_example("coco-json", "coco-json/dev/1", root=root)
