"""Annotations that must be refused, each naming file and entry: boxes, spans, ids, names, encodings, XML, captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from photo_fixture import change_json, flickr_image, write_coco, write_flickr

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.pixel_boxes import box_of_corners, box_of_xywh
from grounding.errors import BadInput

SIZE = (100, 50)


@pytest.mark.parametrize(
    ("bbox_xywh", "box"),
    [
        ([10, 5, 20, 25], (0.1, 0.1, 0.3, 0.6)),
        ([-0.9, 0, 100.9, 50.9], (0.0, 0.0, 1.0, 1.0)),  # less than a pixel of rounding
        ([99, 49, 1, 1.5], (0.99, 0.98, 1.0, 1.0)),
    ],
)
def test_pixel_boxes(bbox_xywh, box):
    assert box_of_xywh(bbox_xywh, SIZE, "here") == pytest.approx(box)


def test_the_box_of_an_image_of_one_pixel():
    assert box_of_xywh([0, 0, 1, 1], (1, 1), "here") == box_of_corners([1, 1, 1, 1], (1, 1), "here") == (0, 0, 1, 1)
    with pytest.raises(BadInput, match="is it relative"):
        box_of_xywh([0.1, 0.1, 0.5, 0.5], (1, 1), "here")


@pytest.mark.parametrize(
    ("bbox_xywh", "reason"),
    [
        ([60, 10, 90, 40], r"sticks out of an image of 100 x 50; is it \[x1, y1, x2, y2\]\?"),
        ([60, 10, 42, 20], r"sticks out of an image of 100 x 50; left \+ width"),  # as corners out of order
        ([-2, 0, 20, 20], "sticks out"),
        ([0.1, 0.1, 0.5, 0.5], r"is it relative \(0..1\)\?"),
        ([0, 0, 1.0, 1.0], r"is it relative \(0..1\)\?"),
        ([30, 10, 0.5, 0.25], r"is it relative \(0..1\)\?"),  # pixels and shares mixed
        ([10, 10, 0, 5], "has no area"),
        ([10, 10, -5, 5], "has no area"),
        ([100.5, 10, 1, 5], "sticks out"),
        ([10, 10, 5], r"accepted: \[left, top, width, height\] in pixels"),
        ([10, 10, float("nan"), 5], "finite numbers"),
        ([10, 10, True, 5], "finite numbers"),
        ("10,5,3,4", "accepted"),
        (None, "accepted"),
    ],
)
def test_boxes_in_another_format_are_refused_with_a_hint(bbox_xywh, reason):
    with pytest.raises(BadInput, match=f"^here: bbox .*{reason}"):
        box_of_xywh(bbox_xywh, SIZE, "here")


def test_corners_count_from_one_and_include_the_last():
    assert box_of_corners([1, 1, 100, 50], SIZE, "here") == (0.0, 0.0, 1.0, 1.0)
    assert box_of_corners([11, 6, 30, 30], SIZE, "here") == pytest.approx((0.1, 0.1, 0.3, 0.6))
    assert box_of_corners([0, 1, 101, 50], SIZE, "here") == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ([60, 20, 30, 40], r"is it \(left, top, width, height\)\?"),
        ([0.1, 0.2, 0.8, 0.9], "is it relative"),
        ([0, 0, 1, 1], "is it relative"),
        ([1, 1, 102, 50], "sticks out of an image of 100 x 50"),
    ],
)
def test_corners_in_another_format_are_refused_with_a_hint(corners, reason):
    with pytest.raises(BadInput, match=f"^here: box .*{reason}"):
        box_of_corners(corners, SIZE, "here")


def test_a_whole_file_of_corners_is_refused_even_if_bad_entries_are_skipped(tmp_path):
    path = write_coco(tmp_path) / "dev.json"

    def corners(content: dict) -> None:
        for item in content["annotations"]:
            left, top, width, height = item["bbox"]
            item["bbox"] = [left, top, left + width, top + height]

    change_json(path, corners)
    with pytest.raises(BadInput, match=r"dev\.json: the 8 boxes are \[x1, y1, x2, y2\]; accepted: bbox \[left, top"):
        open_benchmark("coco-json", tmp_path).load("dev", skip_bad=True)


def annotation(number: int, **fields) -> Callable[[dict], object]:
    return lambda content: content["annotations"][number].update(fields)


def record(number: int, **fields) -> Callable[[dict], object]:
    return lambda content: content["images"][number].update(fields)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (annotation(0, bbox=[60, 10, 90, 40]), r"image 0, annotation 0: bbox .* is it \[x1, y1, x2, y2\]"),
        (annotation(0, tokens_positive=[[0, 11], [8, 20]]), r"annotation 0: .*spans \(0, 11\) and \(8, 20\) overlap"),
        (annotation(0, tokens_positive=[[4, 4]]), r"annotation 0: .*span \(4, 4\) does not fit"),
        (annotation(0, tokens_positive=[[20, 99]]), r"span \(20, 99\) does not fit a caption of 31 characters"),
        (annotation(0, tokens_positive=[[0.5, 3]]), "whole numbers of characters"),
        (annotation(0, tokens_positive=None), "'tokens_positive' is missing"),
        (annotation(0, id=1), "image 0, annotation 1: two annotations have this id"),
        (annotation(0, id=None), "'id' is missing"),
        (record(0, caption="a tree"), r"span \(0, 11\) does not fit a caption of 6 characters"),
        (record(0, caption="  "), "image 0: the caption is empty"),
        (record(0, caption=None), "'caption' is missing or is no str"),
        (record(0, file_name="../../secret.png"), r"file name '\.\./\.\./secret.png' leads out of its folder"),
        (record(0, file_name="/etc/passwd"), "leads out of its folder"),
        (record(0, file_name="a\\..\\..\\b.png"), "leads out of its folder"),
        (record(0, file_name="C:b.png"), "leads out of its folder"),
        (record(0, width=0), "an image of 0 x 50 pixels"),
        (record(0, height=True), "'height' is missing or is no int"),
    ],
)
def test_a_broken_entry_is_named_and_loses_no_other(tmp_path, change, reason):
    path = write_coco(tmp_path) / "dev.json"
    change_json(path, change)
    benchmark = open_benchmark("coco-json", tmp_path)
    with pytest.raises(BadInput, match=rf"dev\.json, .*{reason}"):
        benchmark.load("dev")
    assert [example.id for example in benchmark.load("dev", skip_bad=True)] == ["coco-json/dev/1"]
    assert [item.id for item in benchmark.skipped] == ["coco-json/dev/0"]


def test_the_same_id_for_two_images(tmp_path):
    path = write_coco(tmp_path) / "dev.json"
    change_json(path, record(1, id=0))
    benchmark = open_benchmark("coco-json", tmp_path)
    assert len(benchmark.load("dev", skip_bad=True)) == 1
    reasons = [item.reason for item in benchmark.skipped]
    assert f"{path}, image 0: two images have this id" in reasons
    assert any("there is no image 1" in reason for reason in reasons)  # whose boxes are left over


def test_entries_that_are_no_objects(tmp_path):
    path = write_coco(tmp_path) / "dev.json"
    change_json(path, lambda c: (c["images"].extend([None, 3]), c["annotations"].append("box")))
    benchmark = open_benchmark("coco-json", tmp_path)
    assert len(benchmark.load("dev", skip_bad=True)) == 2
    assert [item.reason.removeprefix(f"{path}, ") for item in benchmark.skipped] == [
        "image number 2: 'id' is missing or is no int or str",
        "image number 3: 'id' is missing or is no int or str",
        "annotation '': there is no image ''",
    ]


def test_boxes_of_no_image_are_named(tmp_path):
    path = write_coco(tmp_path) / "dev.json"
    change_json(path, lambda c: c["annotations"].append({**c["annotations"][0], "id": 99, "image_id": 7}))
    benchmark = open_benchmark("coco-json", tmp_path)
    assert len(benchmark.load("dev", skip_bad=True)) == 2
    assert benchmark.skipped[0].reason == f"{path}, annotation 99: there is no image 7"


def test_two_sizes_for_one_image(tmp_path):
    path = write_coco(tmp_path) / "dev.json"
    change_json(path, record(1, file_name="0.png", width=120))
    with pytest.raises(BadInput, match=r"image 1: image 0\.png is 120 x 50 pixels here and 100 x 50 before"):
        open_benchmark("coco-json", tmp_path).load("dev")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"images": [{"id": 0, "cap', "are not JSON"),
        ('{"images": "caf\u00e9"}'.encode("latin-1"), "are not UTF-8: .* at byte 15"),
        (b"", "are not JSON"),
        (b"[]", "'annotations' is missing or is no list"),
        (b'{"annotations": [], "images": {}}', "'images' is missing or is no list"),
        (b"[" * 100_000, "are not JSON"),
    ],
)
def test_unreadable_files_are_refused_by_name(tmp_path, content, reason):
    (write_coco(tmp_path) / "dev.json").write_bytes(content)
    with pytest.raises(BadInput, match=rf"dev\.json:? {reason}"):
        open_benchmark("coco-json", tmp_path).load("dev")


@pytest.mark.parametrize("name", ["touchdown-sdr", "flickr30k", "refcoco", "refcoco+", "refcocog", "coco-json"])
def test_roots_without_the_files_are_told_what_belongs_there(tmp_path, name):
    with pytest.raises(BadInput, match=r"root .* has no .*; accepted: .*(json|txt).* and "):
        open_benchmark(name, tmp_path).load("dev")


def rewrite(old: str, new: str) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return apply


NAME = flickr_image("val", 0)


@pytest.mark.parametrize(
    ("file", "breaks", "reason", "lost"),
    [
        (f"Annotations/{NAME}.xml", rewrite("</annotation>", ""), r"1100\.xml are not XML", 2),
        (
            f"Annotations/{NAME}.xml",
            rewrite("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>"),
            "DOCTYPE",
            2,
        ),
        (f"Annotations/{NAME}.xml", rewrite("<xmin>11<", "<xmin>35<"), "chain 11001: box .* ends before it begins", 2),
        (f"Annotations/{NAME}.xml", rewrite("<xmax>30<", "<xmax>95<"), "chain 11001: box .* sticks out", 2),
        (f"Annotations/{NAME}.xml", rewrite("<xmin>11<", "<xmin>0.11<"), r"'xmin' is '0.11'; is it relative", 2),
        (f"Annotations/{NAME}.xml", rewrite("<xmin>11</xmin>", ""), "chain 11001: 'xmin' is missing", 2),
        (f"Annotations/{NAME}.xml", rewrite("<width>80<", "<width>0<"), "an image of 0 x 60 pixels", 2),
        (f"Annotations/{NAME}.xml", rewrite("1100.jpg", "1101.jpg"), "are of image '1101.jpg'; accepted: 1100", 2),
        (f"Annotations/{NAME}.xml", Path.unlink, r"has no 1100\.xml", 2),
        (f"Sentences/{NAME}.txt", Path.unlink, r"has no 1100\.txt", 2),
        (
            f"Sentences/{NAME}.txt",
            rewrite("two balls]", "two balls"),
            "1100.txt, line 1: phrases overlap or are not",
            1,
        ),
        (f"Sentences/{NAME}.txt", rewrite("two balls]", "two [/EN#9/x balls]]"), "line 1: phrases overlap", 1),
        (f"Sentences/{NAME}.txt", rewrite("two balls]", "]"), "line 1: the phrase of chain 11002 is empty", 1),
        ("val.txt", rewrite("1101", "../1101"), r"val\.txt: file name '\.\./1101' leads out of its folder", 2),
        ("val.txt", rewrite("1101", "1100"), r"val\.txt: image '1100' is listed twice", 2),
    ],
)
def test_a_broken_flickr_file_is_named_and_loses_no_other_image(tmp_path, file, breaks, reason, lost):
    breaks(write_flickr(tmp_path, images=3) / file)
    benchmark = open_benchmark("flickr30k", tmp_path, candidates=1)
    with pytest.raises(BadInput, match=reason):
        benchmark.load("dev")
    assert len(benchmark.load("dev", skip_bad=True)) == 6 - lost
    assert len(benchmark.skipped) == 1
    assert len(benchmark.load("test")) == 6


def test_captions_and_boxes_of_different_images_do_not_go_together(tmp_path):
    root = write_flickr(tmp_path, images=2)
    other = (root / "Sentences" / f"{flickr_image('val', 1)}.txt").read_text()
    (root / "Sentences" / f"{NAME}.txt").write_text(other)
    with pytest.raises(BadInput, match=r"1100\.txt: no phrase is of a chain that 1100\.xml names"):
        open_benchmark("flickr30k", root, candidates=1).load("dev")


def test_captions_that_are_not_utf_8(tmp_path):
    path = write_flickr(tmp_path, images=1) / "Sentences" / f"{NAME}.txt"
    path.write_bytes("[/EN#11001/people Ren\u00e9e] waves .".encode("latin-1"))
    with pytest.raises(BadInput, match=r"1100\.txt are not UTF-8: .* at byte 21"):
        open_benchmark("flickr30k", tmp_path, candidates=1).load("dev")
