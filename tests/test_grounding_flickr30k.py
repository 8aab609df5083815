"""Flickr30k Entities: captions, chains and boxes as published and in MDETR's JSON; games with hard distractors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from photo_fixture import change_json, flickr_image, write_flickr, write_flickr_mdetr

from grounding.benchmarks import open_benchmark
from grounding.benchmarks.caption_similarity import ENCODERS, nearest_images, tfidf
from grounding.benchmarks.flickr30k import Flickr30k
from grounding.errors import BadInput
from grounding.examples import ReferenceGame, Region

BOX_OF_CHAIN_0 = "<name>0</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight photographs a split that no test changes."""
    return write_flickr(tmp_path_factory.mktemp("flickr"))


def test_phrases_and_boxes_of_the_published_files(root):
    example = open_benchmark("flickr30k", root, candidates=1).load("dev")[0]
    name = flickr_image("val", 0)
    assert (example.id, example.split) == (f"flickr30k/dev/{name}/0", "dev")
    assert example.images == (root / "flickr30k-images" / f"{name}.jpg",)
    assert example.task == ReferenceGame(0)
    assert "[" not in example.caption
    people, balls = example.phrases  # neither the scene, which has no box, nor chain 0, which is not visual
    assert people.type == "people/animals"
    assert people.text(example.caption).startswith("A ")
    assert people.regions == (Region((10 / 80, 0.0, 30 / 80, 1.0)),)
    assert balls.text(example.caption) == "two balls"
    assert balls.regions == (Region((0.0, 0.0, 0.1, 0.1)), Region((0.5, 0.5, 1.0, 0.75)))
    assert example.groups == {"image": name, "caption": f"{name}/0"}


def test_chain_0_is_no_phrase_even_if_it_has_a_box(tmp_path):
    path = write_flickr(tmp_path, images=1) / "Annotations" / f"{flickr_image('val', 0)}.xml"
    path.write_text(
        path.read_text().replace("<name>11003</name><scene>1</scene><nobndbox>1</nobndbox>", BOX_OF_CHAIN_0)
    )
    example = open_benchmark("flickr30k", tmp_path, candidates=1).load("dev")[0]
    assert [phrase.type for phrase in example.phrases] == ["people/animals", "other"]


def test_games_have_six_images_and_their_phrases_lie_in_the_target(root):
    examples = open_benchmark("flickr30k", root).load("dev")
    assert len(examples) == 16
    for example in examples:
        names = [path.stem for path in example.images]
        assert len(set(names)) == 6
        assert names[example.task.target_index] == example.groups["image"]
        assert {phrase.image_index for phrase in example.phrases} == {example.task.target_index}
    assert len({example.task.target_index for example in examples}) > 2


def test_games_depend_on_the_seed_and_on_nothing_else(root):
    first, again, other = (open_benchmark("flickr30k", root, seed).load("train") for seed in (0, 0, 1))
    assert first == again
    assert [e.images for e in first] != [e.images for e in other]
    assert open_benchmark("flickr30k", root).load("train", limit=3) == first[:3]


def test_distractors_outside_train_are_those_that_fit_the_caption_best(root):
    captions = open_benchmark("flickr30k", root, candidates=1).load("test")
    texts, names = [e.caption for e in captions], [e.groups["image"] for e in captions]
    best = list(nearest_images(texts, names, tfidf, 5))
    for example, expected in zip(open_benchmark("flickr30k", root).load("test"), best, strict=True):
        assert {path.stem for path in example.images} - {example.groups["image"]} == set(expected)


def test_the_nearest_images_by_hand():
    captions = ["red dog", "red dog runs", "blue boat", "red boat", "red dog"]
    images = ["a", "a", "b", "c", "d"]
    found = list(nearest_images(captions, images, tfidf, 2))
    assert found[0] == ["d", "c"]  # the same words, then one of them; never its own image
    assert found[2][0] == "c"
    assert len(found) == 5


def halves(texts):
    """Says that the captions of a split's first four images are alike, and those of its last four."""
    return np.repeat(np.eye(2), len(texts) // 2, axis=0)


def test_the_encoder_can_be_replaced(root, monkeypatch):
    examples = Flickr30k(root, encoder=halves).load("dev")
    for image, others in ((0, (1, 2, 3, 4, 5)), (5, (4, 6, 7, 0, 1))):  # its own half, then the first of the other
        example = next(e for e in examples if e.groups["image"] == flickr_image("val", image))
        assert {path.stem for path in example.images} == {flickr_image("val", k) for k in (image, *others)}
    monkeypatch.setitem(ENCODERS, "halves", halves)
    assert open_benchmark("flickr30k", root, encoder="halves").load("dev") == examples


def test_encoders_are_checked_and_told(root):
    assert Flickr30k(root, encoder=halves).identity()["encoder"] == "halves"
    with pytest.raises(BadInput, match="encoder 'clip' is unknown; accepted: tfidf"):
        Flickr30k(root, encoder="clip")
    with pytest.raises(BadInput, match=r"encoder gave \(3,\) for 16 captions"):
        Flickr30k(root, encoder=lambda texts: np.zeros(3)).load("dev")


def test_games_are_read_from_a_file(root, tmp_path):
    names = [flickr_image("val", number) for number in range(6)]
    path = tmp_path / "games.json"
    path.write_text(json.dumps({f"{names[2]}/1": names}))
    benchmark = open_benchmark("flickr30k", root, games=str(path))
    (example,) = benchmark.load("dev")
    assert {item.reason for item in benchmark.excluded["dev"]} == {f"no game in {path}"}
    assert len(benchmark.excluded["dev"]) == 15
    assert [image.stem for image in example.images] == names
    assert example.task.target_index == 2
    assert example.id == f"flickr30k/dev/{names[2]}/1"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([0, 1, 2, 3, 4], "accepted: 6 names of images that differ"),
        ([0, 1, 2, 3, 4, 4], "accepted: 6 names of images that differ"),
        ([1, 2, 3, 4, 5, 6], "its own image is not among the candidates"),
        ([0, 1, 2, 3, 4, None], "image '../elsewhere' is not in the split"),
        ("six", "accepted: 6 names of images that differ"),
    ],
)
def test_broken_games_are_faults(root, tmp_path, names, reason):
    path = tmp_path / "games.json"
    key = f"{flickr_image('val', 0)}/0"
    game = names if names == "six" else [flickr_image("val", n) if n is not None else "../elsewhere" for n in names]
    path.write_text(json.dumps({key: game}))
    benchmark = open_benchmark("flickr30k", root, games=str(path))
    with pytest.raises(BadInput, match=rf"games\.json, caption '{key}': .*{reason}"):
        benchmark.load("dev")
    assert benchmark.load("dev", skip_bad=True) == []
    assert benchmark.skipped[0].id == f"flickr30k/dev/{key}"


def test_files_that_hold_no_games_are_refused(root, tmp_path):
    path = tmp_path / "games.json"
    path.write_text("[]")
    with pytest.raises(BadInput, match=r"games .*games\.json are no object"):
        open_benchmark("flickr30k", root, games=str(path)).load("dev")
    path.write_text('{"1/1": []}')
    with pytest.raises(BadInput, match="name no caption of dev; accepted: ids as '1100/0'"):
        open_benchmark("flickr30k", root, games=str(path)).load("dev")


def test_mdetrs_json(tmp_path):
    benchmark = open_benchmark("flickr30k", write_flickr_mdetr(tmp_path), annotations="mdetr")
    example = benchmark.load("dev")[0]
    assert example.id == f"flickr30k/dev/{flickr_image('val', 0)}/3"
    man, dog = example.phrases
    assert [p.text(example.caption) for p in (man, dog)] == ["A man", "his dog"]
    assert man.regions == (Region((0.25, 0.0, 0.75, 1.0)),)
    assert dog.regions == (Region((0.0, 0.5, 0.25, 1.0)),)  # the other box does not name all of "his dog"
    assert len(example.images) == 6
    change_json(tmp_path / "final_flickr_separateGT_val.json", lambda c: [i.pop("sentence_id") for i in c["images"]])
    with pytest.raises(BadInput, match="'sentence_id' is missing"):
        benchmark.load("dev")


def test_a_region_of_mdetrs_json_names_all_spans_of_its_phrase(tmp_path):
    path = write_flickr_mdetr(tmp_path) / "final_flickr_separateGT_val.json"
    change_json(path, lambda c: c["images"][0].update(tokens_positive_eval=[[[0, 5], [10, 13]], [[0, 5], [10, 17]]]))
    example = open_benchmark("flickr30k", tmp_path, annotations="mdetr").load("dev")[0]
    (both,) = example.phrases  # no box names all of the second
    assert both.spans == ((0, 5), (10, 13))


def test_too_few_images_for_a_game(tmp_path):
    write_flickr(tmp_path, images=3)
    with pytest.raises(BadInput, match="dev has 3 images; accepted: 6 or more for games"):
        open_benchmark("flickr30k", tmp_path).load("dev")
    assert len(open_benchmark("flickr30k", tmp_path, candidates=3).load("dev")) == 6


def test_identity_follows_annotations_and_games(tmp_path):
    write_flickr(tmp_path, images=6, sentences=1)
    benchmark = open_benchmark("flickr30k", tmp_path)
    before = benchmark.identity()
    json.dumps(before)
    path = tmp_path / "Annotations" / f"{flickr_image('val', 0)}.xml"
    path.write_text(path.read_text().replace("<xmin>11<", "<xmin>12<"))
    assert benchmark.identity() != before
    assert benchmark.identity() != open_benchmark("flickr30k", tmp_path, candidates=2).identity()


def test_unknown_options_are_refused(root):
    with pytest.raises(BadInput, match="annotations 'raw' is unknown; accepted: entities, mdetr"):
        open_benchmark("flickr30k", root, annotations="raw")
    with pytest.raises(BadInput, match="candidates 0 is too small"):
        open_benchmark("flickr30k", root, candidates=0)
