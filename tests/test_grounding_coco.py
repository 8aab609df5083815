"""COCO-style JSON with tokens_positive: plain, RefCOCO, Touchdown SDR; and the corpus of Touchdown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from photo_fixture import (
    change_json,
    touchdown_file,
    write_coco,
    write_flickr_mdetr,
    write_refcoco,
    write_touchdown,
    write_touchdown_raw,
)

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.verify import verify_benchmark
from grounding.errors import BadInput
from grounding.examples import ReferenceGame, Region, SpatialDescription


def test_boxes_with_the_same_spans_are_one_phrase(tmp_path):
    example, other = open_benchmark("coco-json", write_coco(tmp_path)).load("dev")
    assert (example.id, other.id) == ("coco-json/dev/0", "coco-json/dev/1")
    assert example.images == (tmp_path / "images" / "0.png",)
    assert example.task == ReferenceGame(0)
    dog, tree = example.phrases
    assert (dog.id, dog.type, dog.spans) == ("coco-json/dev/0/0", "dog", ((0, 11), (17, 20)))
    assert dog.regions == (Region((0.1, 0.1, 0.3, 0.6)),)  # the crowd is left out
    assert (tree.type, tree.text(example.caption)) == ("tree", "a tree")
    assert tree.regions == (Region((0.5, 0.0, 0.75, 1.0)), Region((0.75, 0.0, 1.0, 1.0)))  # 0.6 px of rounding clipped


def test_a_box_that_no_characters_name_is_of_no_phrase(tmp_path):
    root = write_coco(tmp_path)
    before = open_benchmark("coco-json", root).load("dev")[0].phrases
    change_json(root / "dev.json", lambda c: c["annotations"][0].update(tokens_positive=[]))
    after = open_benchmark("coco-json", root).load("dev")[0].phrases
    assert sum(len(phrase.regions) for phrase in before) == 1 + sum(len(phrase.regions) for phrase in after)


def test_images_are_not_opened_and_may_lie_elsewhere(tmp_path):
    root = write_coco(tmp_path / "a")
    (root / "images").rename(tmp_path / "photos")
    example = open_benchmark("coco-json", root, images=str(tmp_path / "photos")).load("dev")[0]
    assert example.images[0].is_file()
    assert not open_benchmark("coco-json", root).load("dev")[0].images[0].exists()


def write_mixed(root: Path) -> None:
    """MDETR's mixed JSON as published: the first image is COCO's, the second Visual Genome's."""
    write_coco(root, "train")
    (root / "train.json").rename(root / "final_mixed_train.json")
    sources = ("coco", "vg")
    for number, source in enumerate(sources):
        (root / "images" / source).mkdir()
        (root / "images" / f"{number}.png").rename(root / "images" / source / f"{number}.png")
    path = root / "final_mixed_train.json"
    change_json(path, lambda c: [image.update(data_source=sources[image["id"]]) for image in c["images"]])


def test_mdetrs_mixed_json_is_read_as_it_is_published(tmp_path):
    write_mixed(tmp_path)
    coco, genome = open_benchmark("coco-json", tmp_path).load("train")
    assert coco.images == (tmp_path / "images" / "coco" / "0.png",)
    assert genome.images == (tmp_path / "images" / "vg" / "1.png",)
    assert coco.images[0].is_file()
    assert genome.images[0].is_file()
    with pytest.raises(BadInput, match=r"has no dev\.json; accepted: train\.json \(or final_mixed_train\.json\)"):
        open_benchmark("coco-json", tmp_path).load("dev")
    (tmp_path / "final_mixed_train.json").rename(tmp_path / "final_mixed_val.json")
    assert len(open_benchmark("coco-json", tmp_path).load("dev")) == 2
    write_coco(tmp_path)  # a file of the split's own name goes first; its images have no source
    assert open_benchmark("coco-json", tmp_path).load("dev")[0].images == (tmp_path / "images" / "0.png",)


@pytest.mark.parametrize("source", ["..", "elsewhere", ["coco"], None, 3])
def test_a_source_without_a_folder_leads_nowhere_else(tmp_path, source):
    write_mixed(tmp_path)
    change_json(tmp_path / "final_mixed_train.json", lambda c: c["images"][0].update(data_source=source))
    assert open_benchmark("coco-json", tmp_path).load("train")[0].images == (tmp_path / "images" / "0.png",)


def test_flickr30k_joins_the_mixed_json_as_the_guide_says(tmp_path, monkeypatch):
    guide = (Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    write_mixed(tmp_path)
    write_flickr_mdetr(tmp_path, images=2)
    (tmp_path / "final_flickr_separateGT_val.json").rename(tmp_path / "final_flickr_separateGT_train.json")
    (tmp_path / "flickr30k-images").rename(tmp_path / "images" / "flickr")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "benchmarks.md", "exec"), {})
    examples = open_benchmark("coco-json", tmp_path).load("train")
    assert [example.id.rpartition("/")[2] for example in examples] == ["mixed-0", "mixed-1", "flickr-0", "flickr-1"]
    assert [example.images[0].parent.name for example in examples] == ["coco", "vg", "flickr", "flickr"]
    assert all(example.images[0].is_file() for example in examples)
    assert [len(phrase.regions) for phrase in examples[2].phrases] == [1, 1]
    assert not verify_benchmark("coco-json", root=tmp_path).faults


def test_identity_follows_the_annotations(tmp_path):
    benchmark = open_benchmark("coco-json", write_coco(tmp_path))
    before = benchmark.identity()
    assert before == open_benchmark("coco-json", tmp_path).identity()
    change_json(tmp_path / "dev.json", lambda c: c["annotations"][0].update(bbox=[11, 5, 20, 25]))
    assert benchmark.identity() != before


@pytest.mark.parametrize(
    ("name", "splits"), [("refcoco", ("val", "testA")), ("refcoco+", ("val", "testB")), ("refcocog", ("val", "test"))]
)
def test_refcoco(tmp_path, name, splits):
    benchmark = open_benchmark(name, write_refcoco(tmp_path, name, splits))
    left, right = benchmark.load("dev")
    assert left.id == f"{name}/dev/0"
    assert left.images == (tmp_path / "train2014" / "COCO_train2014_000000000003.jpg",)
    assert left.phrases[0].regions == (Region((0.0, 0.25, 0.5, 0.75)),)
    assert left.groups["image"] == right.groups["image"]
    assert left.groups["caption"] != right.groups["caption"]
    assert len(benchmark.load(splits[1])) == 2


def test_refcoco_wants_one_box_an_expression(tmp_path):
    write_refcoco(tmp_path)
    path = tmp_path / "finetune_refcoco_val.json"
    change_json(path, lambda c: c["annotations"].pop())
    with pytest.raises(
        BadInput, match=r"finetune_refcoco_val\.json, image 1: 0 boxes with tokens_positive; accepted: 1"
    ):
        open_benchmark("refcoco", tmp_path).load("dev")


def test_touchdown(tmp_path):
    examples = open_benchmark("touchdown-sdr", write_touchdown(tmp_path)).load("dev")
    first, second, third, _ = examples
    caption = first.caption
    assert first.task == SpatialDescription((0.1, 0.5), first.task.target_spans, "0", False)
    assert [caption[b:e] for b, e in first.task.target_spans] == ["Touchdown", "bear"]
    assert second.task.propagated
    assert (second.task.caption_id, third.task.caption_id) == ("0", "1")
    assert first.groups == {"image": "dev-pano0.jpg", "caption": "0"}
    assert second.groups == {"image": "dev-pano1.jpg", "caption": "0"}
    car, lamp = first.phrases
    assert [car.text(caption), lamp.text(caption)] == ["a red car", "the lamp"]
    assert car.regions == (Region((0.0, 0.0, 0.25, 0.5)), Region((0.75, 0.0, 1.0, 1.0)))
    assert lamp.regions == (Region((0.5, 0.5, 0.625, 0.75)),)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sdr_target_coords": {"x": 1856, "y": 400}}, r"sdr_target_coords is \(1856, 400\); is it in pixels\?"),
        ({"sdr_target_coords": {"x": 0.5}}, "'y' is missing"),
        ({"sdr_target_coords": None}, "'x' is missing"),
        ({"is_propagated": "no"}, "'is_propagated' is 'no'; accepted: true or false"),
        ({"caption_id": None}, "'caption_id' is missing"),
    ],
)
def test_broken_targets_are_faults(tmp_path, fields, reason):
    path = write_touchdown(tmp_path) / touchdown_file("dev")
    change_json(path, lambda c: c["images"][1].update(fields))
    benchmark = open_benchmark("touchdown-sdr", tmp_path)
    with pytest.raises(BadInput, match=rf"{path.name}, image 1: .*{reason}|{path.name}, image 1: {reason}"):
        benchmark.load("dev")
    assert len(benchmark.load("dev", skip_bad=True)) == 3
    assert [item.id for item in benchmark.skipped] == ["touchdown-sdr/dev/1"]


def test_the_corpus_of_touchdown(tmp_path):
    benchmark = open_benchmark("touchdown-sdr", write_touchdown_raw(tmp_path), annotations="raw")
    examples = benchmark.load("dev")
    ids = [example.id.removeprefix("touchdown-sdr/dev/") for example in examples]
    assert ids == ["0/main", "0/pre", "1/main", "2/main"]  # neighbours only where the bear is seen
    main, pre = examples[:2]
    assert main.images == (tmp_path / "images" / "pano0main.jpg",)
    assert main.task == SpatialDescription((0.25, 0.75), ((0, 9),), "0", False)
    assert pre.task.propagated
    assert pre.phrases == ()
    with pytest.raises(BadInput, match="'tune' is not in the raw corpus; accepted: train, dev, test"):
        benchmark.load("tune")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"main_static_center": '{"x": 0.2'}, "main_static_center is .* accepted: a point"),
        ({"main_static_center": '{"x": 1400, "y": 300}'}, "is it in pixels"),
        ({"main_pano": "../secret"}, "file name '../secret.jpg' leads out of its folder"),
        ({"td_location_text": " "}, "td_location_text is empty"),
    ],
)
def test_broken_lines_of_the_corpus_are_faults(tmp_path, change, reason):
    path = write_touchdown_raw(tmp_path) / "dev.json"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    path.write_text("\n".join(lines))
    benchmark = open_benchmark("touchdown-sdr", tmp_path, annotations="raw")
    with pytest.raises(BadInput, match=rf"dev\.json, line 2: .*{reason}|dev\.json, line 2: {reason}"):
        benchmark.load("dev")
    assert len(benchmark.load("dev", skip_bad=True)) == 3


def test_unknown_annotation_sets_are_refused(tmp_path):
    with pytest.raises(BadInput, match="annotations 'coco' is unknown; accepted: study, raw"):
        open_benchmark("touchdown-sdr", tmp_path, annotations="coco")
