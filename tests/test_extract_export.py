"""Runs for other tools: what pycocotools, pandas and FiftyOne make of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from fake_gallery import make_example, make_panorama, make_run
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from extract.export import KINDS, export
from extract.store import FORMAT
from grounding.errors import BadInput
from grounding.examples import Region
from probe.cli.export import command

BOX = ["x1", "y1", "x2", "y2"]


@pytest.fixture(scope="module")
def examples():
    return {e.id: e for e in (make_example(n, candidates=3, phrases=1 + n % 3) for n in range(6))}


@pytest.fixture(scope="module")
def run(examples):
    return make_run(list(examples.values()), attention=False)


def overlaps(run) -> np.ndarray:
    """IoU of each phrase's box with its region, 0 in another image."""
    own = run.regions.set_index("phrase").loc[run.phrases.index, BOX].to_numpy(copy=True)
    found = run.phrases[[f"predicted_{name}" for name in BOX]].to_numpy(copy=True)
    iou = box_iou(torch.from_numpy(found), torch.from_numpy(own)).diagonal().numpy()
    return np.where(run.phrases["predicted_image_index"] == run.phrases["image_index"], iou, 0)


def test_cocos_own_evaluation_finds_the_phrases_that_overlap(run, examples, tmp_path, capsys):
    exported = export(run, "coco", tmp_path, examples)
    assert exported.rows == {"images": 18, "annotations": 12, "results": 12}
    truth = COCO(str(tmp_path / "annotations.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.params.iouThrs, evaluation.params.maxDets = np.array([0.5]), [1]
    evaluation.evaluate()
    evaluation.accumulate()
    number = run.phrases.groupby("example").cumcount()
    expected = pd.Series(overlaps(run) >= 0.5).groupby(number).mean()
    np.testing.assert_allclose(evaluation.eval["recall"][0, :, 0, 0], expected)
    assert 0 < expected.mean() < 1


def test_images_are_whole_and_boxes_are_in_their_pixels(run, examples, tmp_path):
    export(run, "coco", tmp_path, examples)
    content = json.loads((tmp_path / "annotations.json").read_text())
    for record in content["images"]:
        source = examples[record["example_id"]].images[record["image_index"]]
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / record["file_name"])), source)
        assert (record["height"], record["width"]) == source.shape[:2]
    assert sum(record["target"] for record in content["images"]) == len(examples)
    images = {record["id"]: record for record in content["images"]}
    for note, (_, region) in zip(content["annotations"], run.regions.iterrows(), strict=True):
        x, y, width, height = note["bbox"]
        np.testing.assert_allclose([x / 64, y / 64, (x + width) / 64, (y + height) / 64], region[BOX].to_numpy(float))
        image = images[note["image_id"]]
        assert image["image_index"] == region["image_index"]
        (begin, end), *_ = note["tokens_positive"]
        assert image["caption"][begin:end] == note["phrase"]


def test_outlines_are_segmentations_and_images_that_are_files_stay_where_they_are(tmp_path):
    example = make_example(1, candidates=1, phrases=1)
    triangle = ((0.5, 0.25), (0.75, 0.75), (0.25, 0.75))
    phrase = replace(example.phrases[0], regions=(Region((0.25, 0.25, 0.75, 0.75), polygons=(triangle,)),))
    Image.fromarray(example.images[0]).save(tmp_path / "there.png")
    example = replace(example, images=(tmp_path / "there.png",), phrases=(phrase,))
    export(make_run([example]), "coco", tmp_path / "out", {example.id: example})
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    (note,) = coco.loadAnns(coco.getAnnIds())
    assert note["segmentation"] == [[32, 16, 48, 48, 16, 48]]
    assert coco.annToMask(note).sum() == pytest.approx(512, rel=0.1)
    assert coco.loadImgs(1)[0]["file_name"] == str(tmp_path / "there.png")
    assert not (tmp_path / "out" / "images").exists()


def test_a_heatmaps_peak_is_the_score_and_what_is_not_predicted_is_no_result(examples, tmp_path):
    run = make_run(list(examples.values()), heatmaps=True, attention=False)
    run.phrases.loc[0, "predicted_image_index"] = -1
    run.phrases.loc[1, "iou"] = np.nan
    export(run, "coco", tmp_path, examples)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [result["phrase_id"] for result in results] == run.phrases["id"].tolist()[1:]
    assert results[0]["iou"] is None
    assert results[0]["score"] == pytest.approx(run.heatmap(1).max())


def test_examples_without_a_readable_image_are_left_out_and_named(run, examples, tmp_path):
    broken = replace(examples["fake/001"], images=(tmp_path / "gone.png",) * 3)
    exported = export(run, "coco", tmp_path / "out", {**examples, "fake/001": broken, "fake/002": None})
    assert dict(exported.left_out) == {
        "fake/001": f"image {tmp_path / 'gone.png'} does not exist",
        "fake/002": "the example's images were not given",
    }
    assert exported.rows["images"] == 12


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_name_each_other_by_ids(run, tmp_path, kind):
    exported = export(run, kind, tmp_path)
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[kind]
    examples, phrases, regions = (read(file) for file in exported.files)
    assert exported.rows == {"examples": 6, "phrases": 12, "regions": 12}
    joined = regions.merge(phrases, left_on="phrase_id", right_on="id").merge(
        examples, left_on="example_id_y", right_on="id"
    )
    assert (joined["example_id_x"] == joined["example_id_y"]).all()
    np.testing.assert_allclose(phrases["iou"], run.phrases["iou"])


def stand_in() -> SimpleNamespace:
    """FiftyOne's classes as far as they are called; a dataset keeps what it is given."""

    class Dataset:
        made: ClassVar[list] = []

        def add_samples(self, samples):
            self.samples = samples

        def export(self, **options):
            Dataset.made.append((self.samples, options))

    kinds = dict.fromkeys(("Sample", "Detection", "Detections", "Keypoint", "Keypoints"), SimpleNamespace)
    return SimpleNamespace(Dataset=Dataset, types=SimpleNamespace(FiftyOneDataset="own"), **kinds)


def test_a_fiftyone_dataset_has_a_sample_an_image_with_both_sets_of_boxes(run, examples, tmp_path, monkeypatch):
    package = stand_in()
    monkeypatch.setitem(sys.modules, "fiftyone", package)
    export(run, "fiftyone", tmp_path, examples)
    ((samples, options),) = package.Dataset.made
    assert options["dataset_type"] == "own"
    assert len(samples) == 18
    own = run.regions[run.regions["example"] == 0].iloc[0]
    target = samples[int(own["image_index"])]
    x1, y1, x2, y2 = own[BOX]
    assert target.target
    assert target.ground_truth.detections[0].bounding_box == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    assert sum(len(sample.predictions.detections) for sample in samples) == 12
    assert {detection.label for sample in samples for detection in sample.ground_truth.detections} == set(
        run.phrases["text"]
    )


def test_a_described_place_is_a_keypoint(tmp_path, monkeypatch):
    package = stand_in()
    monkeypatch.setitem(sys.modules, "fiftyone", package)
    example = make_panorama(0)
    run = make_run([example])
    export(run, "fiftyone", tmp_path, {example.id: example})
    (((sample,), _),) = package.Dataset.made
    assert sample.target_point.keypoints[0].points == [pytest.approx(example.task.target_xy)]


def test_without_fiftyone_there_is_one_line(run, examples, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(BadInput, match=r"pip install 'phrase-grounding-probe\[fiftyone\]'; or export to 'coco'"):
        export(run, "fiftyone", tmp_path / "out", examples)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(run, examples, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="to 'yolo' is unknown; accepted: coco, fiftyone, csv, parquet"):
        export(run, "yolo", tmp_path)
    export(run, "csv", tmp_path)
    monkeypatch.setitem(run.manifest, "identity_hash", "other")
    with pytest.raises(BadInput, match="holds another run: identity_hash is None there and 'other' here"):
        export(run, "csv", tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({**run.manifest, "format": FORMAT}))
    with pytest.raises(BadInput, match="run' holds a run; accepted: another folder, or a new one inside it"):
        export(run, "csv", tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "annotations.json").write_text("mine")
    with pytest.raises(BadInput, match=r"holds another annotations\.json"):
        export(run, "coco", tmp_path / "mine", examples)
    assert (tmp_path / "mine" / "annotations.json").read_text() == "mine"
    with pytest.raises(BadInput, match="is not a folder"):
        export(run, "csv", tmp_path / "file")


def test_an_evaluation_is_told_what_it_has_already(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(BadInput, match=r"is an evaluation.* --export-predictions"):
        command(tmp_path, "coco", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_help_names_every_kind():
    from probe.cli.export import KINDS as NAMED

    assert ", ".join(KINDS) == NAMED
