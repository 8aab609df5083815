"""COCO-style JSON with tokens_positive: plain, RefCOCO, Touchdown SDR; and the corpus of Touchdown."""

from __future__ import annotations

import json

import pytest
from photo_fixture import (
    change_json,
    touchdown_file,
    write_coco,
    write_refcoco,
    write_touchdown,
    write_touchdown_raw,
)

from grounding.benchmarks import open_benchmark
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
