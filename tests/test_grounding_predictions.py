from dataclasses import replace

import numpy as np
import pytest

from grounding.benchmarks.base import Skipped
from grounding.errors import BadInput
from grounding.examples import (
    Example,
    Phrase,
    PhrasePrediction,
    Prediction,
    ReferenceGame,
    Region,
    SpatialDescription,
)
from grounding.predictions import Predictions, match

BOX = np.array([[0.1, 0.1, 0.4, 0.4]])
HERE = np.array([0])


def example(name="e0", task=None, phrases=("p0", "p1")):
    regions = (Region((0.1, 0.1, 0.4, 0.4)),)
    found = tuple(Phrase(phrase, "thing", ((0, 3),), regions) for phrase in phrases)
    images = (np.zeros((4, 4, 3), dtype=np.uint8),) * (2 if task is None else 1)
    return Example(name, "dev", images, "the one", found, task or ReferenceGame(0), {"image": name})


def prediction(name="e0", phrases=("p0", "p1"), answer=0, score=0.5, correct=True, **grounding):
    grounding = grounding or {"boxes": BOX, "image_index": HERE}
    return Prediction(name, answer, score, correct, tuple(PhrasePrediction(p, **grounding) for p in phrases))


def test_pairs_follow_the_examples_whatever_the_order_of_predictions():
    examples = [example("e0"), example("e1")]
    pairs, items = match(examples, [prediction("e1", ("p1", "p0")), prediction("e0")])
    assert [(e.id, p.example_id) for e, p in pairs] == [("e0", "e0"), ("e1", "e1")]
    assert [(i.example.id, i.phrase.id, i.prediction.phrase_id) for i in items] == [
        (e, p, p) for e in ("e0", "e1") for p in ("p0", "p1")
    ]


def test_phrases_without_regions_are_not_scored():
    bare = replace(example().phrases[0], regions=())
    _, items = match([replace(example(), phrases=(bare, example().phrases[1]))], [prediction()])
    assert [item.phrase.id for item in items] == ["p1"]


def test_what_a_model_reports_as_left_out_is_left_out():
    predictions = Predictions([prediction("e0", ("p0",))])
    predictions.skipped.append(Skipped("e1", "image gone.png does not exist"))
    predictions.dropped_phrases.append(("e0", "p1"))
    pairs, items = match([example("e0"), example("e1")], predictions)
    assert [e.id for e, _ in pairs] == ["e0"]
    assert [item.phrase.id for item in items] == ["p0"]
    predictions.skipped.append(Skipped("e0", "too"))
    with pytest.raises(BadInput, match="all 2 examples were skipped"):
        match([example("e0"), example("e1")], predictions)


NAN = float("nan")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "prediction: 0 examples are predicted of 1; none for example 'e0'"),
        ([prediction(), prediction("e9")], "example 'e9' is predicted but not among"),
        ([prediction(), prediction()], "example 'e0' is predicted 2 times"),
        ([prediction(phrases=("p0",))], "example 'e0': 1 phrases are predicted of 2; none for phrase 'p1'"),
        ([prediction(phrases=("p0", "p1", "p9"))], "example 'e0': phrase 'p9' is predicted but not"),
        ([prediction(phrases=("p0", "p1", "p1"))], "phrase 'p1' is predicted 2 times"),
        ([prediction(score=NAN)], "example 'e0': score nan is not finite"),
        ([prediction(answer=2)], r"example 'e0': answer 2 is none of the candidates 0\.\.1"),
        ([prediction(answer=(0.5, 0.5))], "answer .* is none of the candidates"),
        ([prediction(answer=1)], "correct is True, but the answer is 1 and the target 0"),
        ([prediction(boxes=BOX * NAN, image_index=HERE)], "example 'e0', phrase 'p0': boxes hold 4 numbers"),
        ([prediction(boxes=BOX[:, :3], image_index=HERE)], r"boxes have shape \(1, 3\)"),
        (
            [prediction(boxes=BOX[:, ::-1], image_index=HERE)],
            "ends before it begins; it looks like .x, y, width, height.*accepted: xyxy",
        ),
        ([prediction(boxes=BOX, image_index=HERE + 2)], r"image_index is \[2\] for 1 boxes"),
        ([prediction(boxes=BOX, image_index=HERE, scores=np.full(1, NAN))], r"scores are \[nan\] for 1 boxes"),
        ([prediction(boxes=BOX)], r"image_index is \[\] for 1 boxes"),
        ([prediction(heatmap=np.full((2, 3, 3), NAN))], "example 'e0', phrase 'p0': heatmap holds 18 numbers"),
        ([prediction(heatmap=np.ones((3, 3, 3)))], r"heatmap has shape \(3, 3, 3\); accepted: \[2 candidates"),
        ([prediction(heatmap=-np.ones((2, 3, 3)))], "not their logarithms"),
        ([prediction(heatmap=np.zeros((2, 3, 3)))], "positive peak"),
        ([prediction(heatmap=np.ones((2, 3, 3)), boxes=BOX, image_index=HERE)], "either ranked boxes or a heatmap"),
        ([prediction(scores=np.ones(1))], "either ranked boxes or a heatmap"),
    ],
)
def test_bad_predictions_name_the_example(bad, message):
    with pytest.raises(BadInput, match=message):
        match([example()], bad)


def test_bad_points_and_bad_examples_are_named():
    described = SpatialDescription((0.5, 0.5))
    with pytest.raises(BadInput, match=r"example 'e0': answer .*nan.* is not a point"):
        match([example(task=described)], [prediction(answer=(NAN, 0.5))])
    with pytest.raises(BadInput, match="answer 3 is not a point"):
        match([example(task=described)], [prediction(answer=3)])
    with pytest.raises(BadInput, match="no examples"):
        match([], [])
    with pytest.raises(BadInput, match="example id 'e0' occurs 2 times"):
        match([example(), example()], [prediction()])
    with pytest.raises(BadInput, match="mix"):
        match([example(), example("e1", described)], [prediction()])
    with pytest.raises(BadInput, match="example 'e0' has no group 'image'"):
        match([replace(example(), groups={})], [prediction()])
