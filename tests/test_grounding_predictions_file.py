"""Predictions to a file of COCO results and back: the same figures; what others get wrong is told in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO

from grounding.errors import BadInput
from grounding.evaluate import score
from grounding.examples import Example, Phrase, PhrasePrediction, Prediction, ReferenceGame, Region, SpatialDescription
from grounding.predictions import Predictions
from grounding.predictions_export import PredictionWriter
from grounding.predictions_import import read_predictions

PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)
RNG_BOXES = 6


def game(number: int, phrases: int = 2) -> Example:
    regions = [Region((0.1, 0.2, 0.5, 0.6)), Region((0.4, 0.5, 0.9, 1.0))]
    found = tuple(Phrase(f"p{k}", "thing", ((0, 3),), (regions[k],), 1) for k in range(phrases))
    return Example(f"e{number}", "dev", (PIXELS, PIXELS), "the one", found, ReferenceGame(1), {"image": f"i{number}"})


def answered(example: Example, grounding: list[PhrasePrediction], canvas: tuple[int, int] | None = (640, 480)):
    right = int(example.id[1:]) % 2 == 0
    return Prediction(example.id, int(right), 0.25 + right, right, tuple(grounding), canvas)


def ranked(rng: np.random.Generator, phrase: str) -> PhrasePrediction:
    corners = np.sort(rng.random((RNG_BOXES, 2, 2)), axis=1).reshape(RNG_BOXES, 4).astype(np.float32)
    scores = np.sort(rng.random(RNG_BOXES))[::-1]
    return PhrasePrediction(phrase, corners, rng.integers(2, size=RNG_BOXES), scores)


def heat(rng: np.random.Generator, phrase: str) -> PhrasePrediction:
    heatmap = rng.integers(0, 5, (2, 6, 8)).astype(np.float32)  # many tied peaks
    return PhrasePrediction(phrase, heatmap=heatmap / heatmap.sum())


def round_trip(path: Path, examples: list[Example], predictions: Predictions, threshold: float | None = None):
    writer = PredictionWriter(threshold)
    for begin in range(0, len(examples), 3):
        part = Predictions(predictions[begin : begin + 3])
        part.dropped_phrases = [d for d in predictions.dropped_phrases if d[0] in {p.example_id for p in part}]
        writer.add(examples[begin : begin + 3], part)
    writer.write(path)
    return read_predictions(path, examples)


@pytest.mark.parametrize("metrics", ["corrected", "paper"])
@pytest.mark.parametrize("kind", [ranked, heat])
def test_what_is_read_back_has_the_same_figures(tmp_path, kind, metrics):
    rng = np.random.default_rng(0)
    examples = [game(number) for number in range(8)]
    predictions = Predictions(answered(e, [kind(rng, p.id) for p in e.phrases], (12, 8)) for e in examples)
    threshold = 0.5 if kind is heat else None
    back, stored = round_trip(tmp_path / "p.json", examples, predictions, threshold)
    assert stored == threshold
    options = {"metrics": metrics, "thresholds": ()}
    first, second = (score(examples, p, threshold, **options) for p in (predictions, back))
    exact = kind is ranked or metrics == "corrected"  # paper resizes heat before the threshold, masks after it
    if exact:
        columns = ["phrase", "iou", "iou_any", "iou_merged", "pointing", "hit", "average_precision"]
        pd.testing.assert_frame_equal(first.per_phrase[columns], second.per_phrase[columns])
        pd.testing.assert_frame_equal(first.sensitivity, second.sensitivity)
    pd.testing.assert_series_equal(first.per_example["score"], second.per_example["score"])
    assert first.per_example["correct"].tolist() == second.per_example["correct"].tolist()


def test_ties_without_scores_keep_their_rank_and_empty_phrases_stay(tmp_path):
    example = game(0)
    boxes = np.array([[0.4, 0.5, 0.9, 1.0], [0.1, 0.2, 0.5, 0.6]])
    given = [
        PhrasePrediction("p0", boxes, np.array([1, 1])),
        PhrasePrediction("p1", np.zeros((0, 4)), np.zeros(0, int)),
    ]
    back, _ = round_trip(tmp_path / "p.json", [example], Predictions([answered(example, given, None)]))
    np.testing.assert_allclose(back[0].phrases[0].boxes, boxes)
    assert back[0].phrases[1].boxes.shape == (0, 4)
    table = score([example], back).per_phrase.set_index("phrase")
    assert table.loc["p1", "iou"] == 0
    assert table.loc["p0", "iou"] < 0.5


def test_dropped_phrases_are_kept(tmp_path):
    example = game(0)
    predictions = Predictions([answered(example, [ranked(np.random.default_rng(0), "p0")])])
    predictions.dropped_phrases.append(("e0", "p1"))
    back, _ = round_trip(tmp_path / "p.json", [example], predictions)
    assert score([example], back).dropped_phrases == (("e0", "p1"),)


def test_pycocotools_reads_the_annotations(tmp_path):
    rng = np.random.default_rng(1)
    examples = [game(0), game(1)]
    predictions = Predictions(answered(e, [ranked(rng, "p0"), ranked(rng, "p1")]) for e in examples)
    round_trip(tmp_path / "p.json", examples, predictions)
    content = json.loads((tmp_path / "p.json").read_text())
    coco = COCO()
    coco.dataset = {"images": content["images"], "annotations": [], "categories": [{"id": 1, "name": "phrase"}]}
    coco.createIndex()
    assert len(coco.loadRes(content["annotations"]).getAnnIds()) == 2 * 2 * RNG_BOXES


def a_file(**changes) -> dict:
    """One game with one phrase, as another program may write it: pixels of 200 x 100, no scores but of boxes."""
    annotation = {"image_id": 1, "phrase_id": "p0", "bbox": [20, 20, 80, 40], "score": 0.5}
    return {
        "images": [{"id": 1, "width": 200, "height": 100, "example_id": "e0", "image_index": 1}],
        "annotations": [annotation],
        "answers": [{"example_id": "e0", "answer": 1, "score": 0.7}],
    } | changes


def read(tmp_path: Path, content: object, example: Example | None = None):
    path = tmp_path / "theirs.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_predictions(path, [example or game(0, phrases=1)])


def test_a_file_of_another_program_is_enough(tmp_path):
    back, _ = read(tmp_path, a_file())
    evaluation = score([game(0, phrases=1)], back)
    assert evaluation.per_phrase["iou"].tolist() == pytest.approx([1.0])  # 20..100 of 200, 20..60 of 100
    assert evaluation.per_example["correct"].tolist() == [True]
    point = SpatialDescription((0.5, 0.5))
    place = Example("e0", "dev", (PIXELS,), "the one", (), point, {"image": "i"})
    near, far = ({"example_id": "e0", "answer": [0.5, y], "score": -1.0} for y in (0.55, 0.7))
    for answer, right in ((near, True), (far, False)):
        found, _ = read(tmp_path, a_file(images=[], annotations=[], answers=[answer]), place)
        assert found[0].correct is right


def test_a_missing_answer_is_an_error_unless_grounding_alone_counts(tmp_path):
    back, _ = read(tmp_path, a_file(answers=[]))
    example = game(0, phrases=1)
    with pytest.raises(BadInput, match="example 'e0': no task answer; accepted"):
        score([example], back)
    evaluation = score([example], back, need_answers=False)
    summary = evaluation.summary(resamples=50, permutations=50)
    assert "accuracy" not in summary
    assert summary["mean_iou"].value == pytest.approx(1.0)
    assert "0 examples" in summary["pearson"].reason
    alone = replace(example, images=example.images[:1], task=ReferenceGame(0), phrases=())
    assert not score([alone], [replace(back[0], phrases=())]).per_example["answered"].any()
    assert "1 examples have no answer: their grounding counts alone" in evaluation.to_markdown(summary)
    assert evaluation.joint_table(50, 50)["value"].isna().all()


def annotation(**changes) -> dict:
    return a_file(annotations=[a_file()["annotations"][0] | changes])


def mask(**changes) -> dict:
    """A map instead of boxes."""
    return annotation(**({"segmentation": {"size": [4, 4], "counts": "9220O"}} | changes)) | {"threshold": 0.5}


def beside_relative(**changes) -> dict:
    """A box in pixels, and one of an image of 1 x 1: formats are told apart among those of a kind."""
    small = {"id": 2, "width": 1, "height": 1, "example_id": "e0", "image_index": 0}
    relative = {"image_id": 2, "phrase_id": "p0", "score": 0.1, "bbox": [0.5, 0.5, 0.2, 0.2]}
    return a_file(images=[*a_file()["images"], small], annotations=[*annotation(**changes)["annotations"], relative])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"theirs\.json is not JSON: .*line 1"),
        ("[1, 2]", "holds a list; accepted: a JSON object"),
        (a_file(images=None), "images is 'None'; accepted: a list of objects"),
        (a_file(answers=[3]), "accepted: a list of objects"),
        (annotation(image_id=7), r"annotations\[0\]: image_id '7' is none of the 1 images"),
        (annotation(phrase_id=None), r"annotations\[0\]: phrase_id is 'None'; accepted: str or int"),
        (annotation(score="high"), "score is 'high'; accepted: int or float"),
        (annotation(score=True), "score is 'True'"),
        (annotation(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]; accepted: \[x, y, width, height\]"),
        (annotation(bbox=[100, 60, -80, 10]), "negative width or height; accepted: x, y, width, height"),
        (annotation(bbox=[90, 45, 180, 90]), r"all look like \(x1, y1, x2, y2\)"),
        (annotation(bbox=[0.1, 0.2, 0.5, 0.4]), "within 0..1, so they look relative"),
        (annotation(segmentation=[[1, 2, 3]]), "segmentation is '.*'; accepted: dict"),
        (annotation(segmentation={"size": [4, 4]}), "no compressed RLE"),
        (a_file(images=[a_file()["images"][0] | {"width": 0}]), "is impossible; accepted: above 0"),
        (annotation(segmentation={"size": [4, 4], "counts": "9220O"}), "threshold is missing, at which segmentations"),
        (annotation(bbox=[float("nan"), 20, 80, 40]), r"annotations\[0\]: bbox is \[nan, .*finite numbers"),
        (annotation(bbox=[10**400, 20, 80, 40]), "finite numbers"),
        (annotation(score=float("nan")), r"annotations\[0\]: score is 'nan'; accepted: int or float, finite"),
        (a_file(answers=[a_file()["answers"][0] | {"score": float("inf")}]), "score is 'inf'; .*finite"),
        (a_file(answers=a_file()["answers"] * 2), r"answers\[1\]: example_id 'e0' comes twice, before"),
        (a_file(images=a_file()["images"] * 2), r"images\[1\]: id '1' comes twice"),
        (a_file(images=[a_file()["images"][0] | {"image_index": 2}]), "none of the candidates of 'e0'; accepted: 0..1"),
        (a_file(dropped_phrases=[["e0"]]), r"dropped_phrases is .*accepted: a list of \[example id, phrase id\]"),
        (mask(peaks=3), "peaks is '3'; accepted: list"),
        (mask(peaks=[[3, 0]]), r"peak \[3, 0\] is not in its segmentation"),
        (mask(segmentation={"size": [-4, 4], "counts": "9220O"}), "no compressed RLE"),
        (beside_relative(bbox=[90, 45, 180, 90]), r"annotations\[0\]: bbox .* look like \(x1, y1, x2, y2\)"),
        (beside_relative(bbox=[0.1, 0.2, 0.5, 0.4]), "within 0..1, so they look relative"),
        (
            annotation(phrase_id="p9") | {"answers": [a_file()["answers"][0] | {"phrases": ["p0"]}]},
            r"annotations\[0\]: phrase_id 'p9' is not among the phrases of .*answers\[0\]",
        ),
        (a_file(threshold=2), "threshold 2.* is out of range"),
    ],
)
def test_what_others_get_wrong_is_named(tmp_path, content, message):
    with pytest.raises(BadInput, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (annotation(bbox=[2000, 20, 80, 40]), "looks like pixels"),
        (annotation(phrase_id="p9"), "none for phrase 'p0'"),
        (a_file(annotations=[]), "0 phrases are predicted of 1; none for phrase 'p0'"),
        (a_file(answers=[a_file()["answers"][0] | {"answer": 5}]), "answer 5 is none of the candidates"),
        (a_file(answers=[*a_file()["answers"], {"example_id": "e9"}]), "example 'e9' is predicted but not among"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, content, message):
    back, _ = read(tmp_path, content)
    with pytest.raises(BadInput, match=message):
        score([game(0, phrases=1)], back)


def test_corners_are_told_from_sizes_where_a_model_overshoots(tmp_path):
    rng = np.random.default_rng(0)
    begin = rng.uniform(-2, 60, (40, 2))
    size = rng.uniform(5, 45, (40, 2))  # some end beyond an image of 100 x 50

    def content(ends: np.ndarray) -> dict:
        boxes = np.concatenate([begin, ends], axis=1).tolist()
        return a_file(annotations=[annotation(bbox=box)["annotations"][0] for box in boxes])

    with pytest.raises(BadInput, match=r"all look like \(x1, y1, x2, y2\)"):
        read(tmp_path, content(np.maximum(begin, 0) * 1.05 + size + 20))
    read(tmp_path, content(size))


def test_files_that_are_no_utf8_or_not_there(tmp_path):
    (tmp_path / "latin.json").write_bytes(json.dumps(a_file()).encode() + b"\xe9")
    with pytest.raises(BadInput, match=r"latin\.json is not JSON: 'utf-8' codec"):
        read_predictions(tmp_path / "latin.json", [game(0)])
    with pytest.raises(BadInput, match="is not a file"):
        read_predictions(tmp_path / "none.json", [game(0)])


def test_heatmaps_are_exported_at_a_threshold(tmp_path):
    example = game(0, phrases=1)
    predictions = Predictions([answered(example, [heat(np.random.default_rng(0), "p0")])])
    with pytest.raises(BadInput, match="phrase 'p0' has a heatmap: a threshold is needed"):
        PredictionWriter().add([example], predictions)
