from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from grounding.errors import BadInput
from grounding.evaluate import Evaluation, evaluate, predict, score, tune, tune_threshold
from grounding.examples import (
    Example,
    Phrase,
    PhrasePrediction,
    Prediction,
    ReferenceGame,
    Region,
    SpatialDescription,
)
from grounding.metrics.heatmaps import Threshold
from grounding.metrics.joint import Correlation
from grounding.metrics.phrases import Measure
from grounding.models.base import GroundingModel

PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)
FAST = {"resamples": 300, "permutations": 300}


def make_game(number, phrases=2, split="dev", **groups):
    """Target 1 of two candidates; phrase k is in the left or the right half."""
    halves = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    found = tuple(Phrase(f"p{number}.{k}", "thing", ((0, 3),), (Region(halves[k % 2]),), 1) for k in range(phrases))
    groups = {"image": f"image-{number // 2}"} | groups
    return Example(f"e{number}", split, (PIXELS, PIXELS), "the one", found, ReferenceGame(1), groups)


def answer_game(example, right, share, as_heatmap=False):
    """A prediction whose phrases have the IoU ``share`` with their region."""
    phrases = []
    for phrase in example.phrases:
        x1 = phrase.regions[0].box[0]
        if as_heatmap:  # 1 x 20 cells a candidate; those of the region's first ``share``
            heatmap = np.zeros((2, 1, 20), dtype=np.float32)
            heatmap[1, 0, round(20 * x1) : round(20 * x1 + 10 * share)] = 1.0
            phrases.append(PhrasePrediction(phrase.id, heatmap=heatmap / heatmap.sum()))
        else:
            boxes = np.array([[x1, 0.0, x1 + 0.5 * share, 1.0], [0.0, 0.0, 0.1, 0.1]])
            phrases.append(PhrasePrediction(phrase.id, boxes, np.array([1, 0]), np.array([0.9, 0.1])))
    return Prediction(example.id, 1 if right else 0, 0.9 if right else 0.2, right, tuple(phrases))


def linked_games(n=40, as_heatmap=False):
    """Right answers are well grounded (0.8, with exceptions of 0.3), wrong ones badly (0.2)."""
    examples = [make_game(number) for number in range(n)]
    shares = [(0.3 if number % 8 == 0 else 0.8) if number % 4 < 2 else 0.2 for number in range(n)]
    answers = [
        answer_game(e, number % 4 < 2, share, as_heatmap)
        for number, (e, share) in enumerate(zip(examples, shares, strict=True))
    ]
    return examples, answers


@pytest.mark.parametrize("as_heatmap", [False, True])
def test_games_by_hand_for_both_kinds_of_grounding(as_heatmap):
    examples, answers = linked_games(as_heatmap=as_heatmap)
    evaluation = score(examples, answers, threshold=0.5)
    per_example, per_phrase = evaluation.per_example, evaluation.per_phrase
    assert (len(per_example), len(per_phrase)) == (40, 80)
    first = per_example.iloc[1]
    assert first["mean_iou"] == pytest.approx(0.8)
    assert first[["id", "split", "group_image", "task", "answer_index", "correct", "score", "phrases"]].tolist() == [
        "e1", "dev", "image-0", "game", 1, True, 0.9, 2,
    ]  # fmt: skip
    assert per_phrase["iou"].iloc[:6].tolist() == pytest.approx([0.3, 0.3, 0.8, 0.8, 0.2, 0.2])
    assert per_phrase["hit"].iloc[:6].tolist() == [False, False, True, True, False, False]
    summary = evaluation.summary(**FAST)
    assert summary["accuracy"].value == 0.5
    assert (summary["accuracy"].n, summary["accuracy"].groups) == (40, 20)
    assert summary["mean_iou"].value == pytest.approx((5 * 0.3 + 15 * 0.8 + 20 * 0.2) / 40)
    assert summary["recall@1"].value == pytest.approx(15 / 40)
    assert (summary["recall@1"].n, summary["recall@1"].groups) == (80, 20)
    assert summary["pointing"].value == 1
    for name in ("pearson", "spearman", "point_biserial"):
        assert isinstance(summary[name], Correlation)
        assert summary[name].low > 0.5
        assert summary[name].p < 0.01
    assert "accuracy_nested" not in summary
    assert "mean_distance" not in summary


def test_quadrants_covariates_and_every_way_to_measure_grounding():
    examples, answers = linked_games()
    evaluation = score(examples, answers)
    counts = evaluation.quadrants().set_index(["correct", "grounded"])["count"]
    table = evaluation.per_example
    for correct, grounded in counts.index:
        expected = ((table["correct"] == correct) & ((table["mean_iou"] >= 0.5) == grounded)).sum()
        assert counts[correct, grounded] == expected
    assert counts.sum() == 40
    assert evaluation.quadrants(0.9)["share"].tolist() == [0, 0.5, 0, 0.5]
    assert table["words"].tolist() == [len(example.caption.split()) for example in examples]
    table_of_all = evaluation.joint_table(**FAST)
    joint = table_of_all[table_of_all["boxes"].isin(("", "1")) & table_of_all["protocol"].isin(("", "all"))]
    joint = joint.set_index(["grounding", "correlation"])
    summary = evaluation.summary(**FAST)
    for kind in ("pearson", "spearman", "point_biserial", "pearson_partial"):
        assert joint.loc[("mean_iou", kind), "value"] == pytest.approx(summary[kind].value, nan_ok=True)
    hits = evaluation.per_phrase.groupby("example")["hit"].mean()[table["id"]].to_numpy(float)
    assert joint.loc[("recall", "pearson"), "value"] == pytest.approx(np.corrcoef(hits, table["score"])[0, 1])
    assert "grounding is 1 in all examples" in joint.loc[("pointing", "pearson"), "reason"]


def test_one_candidate_is_nothing_to_solve():
    examples, answers = linked_games(20)
    alone = [
        replace(
            example,
            images=example.images[:1],
            task=ReferenceGame(0),
            phrases=tuple(replace(phrase, image_index=0) for phrase in example.phrases),
        )
        for example in examples
    ]
    given = []
    for answer in answers:
        phrases = tuple(replace(phrase, image_index=phrase.image_index * 0) for phrase in answer.phrases)
        given.append(replace(answer, answer=0, correct=True, phrases=phrases))
    evaluation = score(alone, given)
    summary = evaluation.summary(**FAST)
    assert "accuracy" not in summary
    assert summary["mean_iou"].n == 40
    for kind in ("pearson", "spearman", "point_biserial", "pearson_partial"):
        assert summary[kind].value is None
        assert summary[kind].reason == "0 examples: a correlation needs 3 or more"
    assert evaluation.joint_table(**FAST)["value"].isna().all()
    assert evaluation.quadrants()["count"].sum() == 0
    told = evaluation.to_markdown(summary)
    assert "20 examples have no task: their grounding counts alone" in told
    assert "Task and grounding" not in told


def test_resampling_is_done_once(monkeypatch):
    examples, answers = linked_games(20)
    evaluation = score(examples, answers)
    first, joint = evaluation.summary(**FAST), evaluation.joint_table(**FAST)
    first.clear()
    joint["value"] = 0.0
    monkeypatch.setattr("grounding.evaluation.bootstrap", lambda *args: pytest.fail("resampled again"))
    assert len(evaluation.summary(**FAST)) > 10
    assert evaluation.joint_table(**FAST)["value"].notna().any()


def test_no_link_is_found_where_none_is():
    rng = np.random.default_rng(0)
    examples = [make_game(number) for number in range(60)]
    answers = [answer_game(e, bool(rng.integers(2)), float(rng.random())) for e in examples]
    summary = score(examples, answers).summary(**FAST)
    for name in ("pearson", "spearman", "point_biserial"):
        assert summary[name].low < 0 < summary[name].high
        assert summary[name].p > 0.05


def test_order_of_examples_and_of_predictions_leaves_the_results():
    examples, answers = linked_games()
    first = score(examples, answers)
    order = np.random.default_rng(1).permutation(len(examples))
    shuffled = score([examples[n] for n in order], [answers[n] for n in order[::-1]])
    for name, key in (("per_example", "id"), ("per_phrase", "phrase")):
        left, right = (getattr(e, name).sort_values(key, ignore_index=True) for e in (first, shuffled))
        pd.testing.assert_frame_equal(left, right)
    for one, other in zip(first.summary(**FAST).values(), shuffled.summary(**FAST).values(), strict=True):
        assert [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high])


def test_nested_accuracy_appears_where_annotations_and_tangrams_are_known():
    nesting = [("1", "A"), ("1", "A"), ("2", "A"), ("1", "B")]
    examples = [make_game(n, annotation=a, tangram=t) for n, (a, t) in enumerate(nesting)]
    answers = [answer_game(e, right, 0.5) for e, right in zip(examples, (True, False, False, True), strict=True)]
    summary = score(examples, answers).summary(**FAST)
    assert summary["accuracy"].value == 0.5
    assert summary["accuracy_nested"].value == pytest.approx((0.25 + 1) / 2)
    assert summary["accuracy_nested"].groups == 2


def test_spatial_descriptions_are_scored_in_pixels():
    box = np.array([[0.0, 0.0, 0.5, 1.0]])
    examples, answers = [], []
    for number, pixels in enumerate((0, 39, 60, 200)):
        example = replace(make_game(number, phrases=1), images=(PIXELS,), task=SpatialDescription((0.5, 0.5)))
        example = replace(example, phrases=(replace(example.phrases[0], image_index=0),))
        phrase = PhrasePrediction(example.phrases[0].id, box, np.array([0]))
        examples.append(example)
        answers.append(Prediction(example.id, (0.5, 0.5 + pixels / 800), -pixels, pixels < 80, (phrase,)))
    evaluation = score(examples, answers)
    assert evaluation.per_example["distance"].tolist() == pytest.approx([0, 39, 60, 200])
    assert evaluation.per_example["answer_y"].iloc[1] == pytest.approx(0.5 + 39 / 800)
    summary = evaluation.summary(**FAST)
    figures = ("mean_distance", "accuracy@40px", "accuracy@80px", "accuracy@120px")
    assert [summary[name].value for name in figures] == pytest.approx([74.75, 0.5, 0.75, 0.75])
    assert "accuracy" not in summary
    assert summary["pearson"].value is None
    assert "grounding is 1 in all examples" in summary["pearson"].reason
    small = score(examples, answers, sdr_size=(1392, 300)).per_example  # in which 200 pixels of 800 are 75
    assert small["distance"].tolist() == pytest.approx([0, 14.625, 22.5, 75])
    assert small["correct"].all()
    silent = [replace(answers[0], answer=None), *answers[1:]]
    summary = score(examples, silent, need_answers=False).summary(**FAST)
    assert [summary[name].value for name in figures] == pytest.approx([299 / 3, 0.25, 0.5, 0.5])
    assert summary["consistency@80px"].value == pytest.approx(0.5)


def test_examples_without_phrases_count_for_the_task_only():
    examples = [make_game(number, phrases=number % 2) for number in range(10)]
    answers = [answer_game(e, True, 0.5) for e in examples]
    evaluation = score(examples, answers)
    assert evaluation.per_example["phrases"].tolist() == [0, 1] * 5
    assert evaluation.per_example["mean_iou"].isna().tolist() == [True, False] * 5
    summary = evaluation.summary(**FAST)
    assert (summary["accuracy"].n, summary["mean_iou"].n, summary["pearson"].n) == (10, 5, 5)
    none = score(examples[::2], answers[::2]).summary(**FAST)
    assert none["mean_iou"].value is None
    assert none["mean_iou"].reason == "no values"
    assert "0 examples" in none["spearman"].reason


def test_threshold_is_tuned_on_a_named_split_and_kept_with_the_result():
    examples, answers = linked_games(as_heatmap=True)
    graded = []
    for answer in answers:  # a faint floor everywhere: only thresholds above 0.3 leave it out
        phrases = [replace(p, heatmap=np.maximum(p.heatmap, 0.3 * p.heatmap.max())) for p in answer.phrases]
        graded.append(replace(answer, phrases=tuple(phrases)))
    threshold = tune_threshold(examples, graded)
    assert (threshold.split, threshold.n, threshold.criterion) == ("dev", 80, "recall")
    assert 0.3 <= threshold.value < 0.32
    evaluation = score(examples, graded, threshold)
    assert evaluation.threshold is threshold
    assert evaluation.per_phrase["hit"].mean() == pytest.approx(15 / 40)
    assert score(examples, graded, 0.1).per_phrase["hit"].mean() == 0
    held_out = [replace(example, split="test") for example in examples]
    with pytest.raises(BadInput, match="'test' is a test split"):
        tune_threshold(held_out, graded)
    with pytest.raises(BadInput, match=r"\['dev', 'test'\]"):
        tune_threshold(examples[:20] + held_out[20:], graded)
    assert score(held_out, graded, Threshold(0.3, "dev", 80, "recall")).per_example["split"].eq("test").all()


def test_paper_arithmetic_is_a_choice_that_stays_with_the_result():
    examples, answers = linked_games()
    measure = Measure("paper", canvas_size=(8, 4))
    evaluation = score(examples, answers, metrics=measure)
    assert evaluation.measure is measure
    assert set(evaluation.per_phrase["iou"].round(6)) == {0.5, 1.0, 0.0}  # of 2 pixels: 0.6, 1.6 and 0.4 rounded
    with pytest.raises(BadInput, match="canvas_size"):
        score(examples, answers, metrics="paper")


def test_markdown_holds_every_figure():
    examples, answers = linked_games()
    evaluation = score(examples, [replace(a, answer=1, correct=True) for a in answers])
    summary = evaluation.summary(**FAST)
    table, quadrants, told = evaluation.to_markdown(summary).split("\n\n")
    lines = table.splitlines()
    assert quadrants == (
        "Task and grounding (mean IoU of at least 0.5): right and grounded: 15, right and not: 25, "
        "wrong and grounded: 0, wrong and not: 0."
    )
    assert told == "Metrics: corrected. Ranked boxes: no threshold.\n"
    assert len(lines) == 2 + len(summary)
    assert "| mean_iou | 0.438 | " in lines[3]
    assert " | 80 | 20 |" in lines[3]
    assert lines[-2].startswith("| point_biserial |  |  |  | 40 | 20 | one class only")


def test_bad_predictions_name_the_example():
    examples, answers = linked_games(8)
    broken = replace(answers[3], phrases=(replace(answers[3].phrases[0], boxes=np.full((2, 4), np.nan)),) * 2)
    with pytest.raises(BadInput, match="e3"):
        score(examples, [*answers[:3], broken, *answers[4:]])
    with pytest.raises(BadInput, match="none for example 'e7'"):
        score(examples, answers[:7])
    with pytest.raises(BadInput, match=r"threshold 1\.5"):
        score(examples, answers, threshold=1.5)


class EchoModel(GroundingModel):
    """Stands in for a model: refuses examples named so, drops phrases named so, answers all others rightly."""

    def __init__(self, as_heatmap=False):
        super().__init__()
        self.as_heatmap = as_heatmap
        self.weight = nn.Parameter(torch.zeros(1))
        self.modes = []

    def preprocess(self, examples):
        if any(example.split == "broken" for example in examples):
            raise BadInput(f"image of {next(e.id for e in examples if e.split == 'broken')} does not exist")
        dropped = tuple(p.id for e in examples for p in e.phrases if p.type == "late")
        valid = torch.tensor([[8, 4]] * len(examples))
        batch = SimpleNamespace(examples=examples, dropped_phrases=dropped, valid=valid)
        batch.to = lambda device: batch
        return batch

    def forward(self, batch):
        self.modes.append((self.training, torch.is_inference_mode_enabled()))

    def sites(self):
        return []

    def predict(self, batch, output):
        answers = [
            answer_game(e, int(e.id[1:]) % 3 > 0, 0.8 - 0.01 * int(e.id[1:]), self.as_heatmap) for e in batch.examples
        ]
        return [
            replace(a, phrases=tuple(p for p in a.phrases if p.phrase_id not in batch.dropped_phrases)) for a in answers
        ]


def test_predict_runs_in_eval_mode_batch_by_batch():
    model, done = EchoModel().train(), []
    predictions = predict(model, [make_game(n) for n in range(7)], batch_size=3, progress=done.append)
    assert [p.example_id for p in predictions] == [f"e{n}" for n in range(7)]
    assert model.modes == [(False, True)] * 3
    assert done == [3, 6, 7]
    with pytest.raises(BadInput, match="batch_size 0"):
        predict(model, [], batch_size=0)


def test_what_cannot_be_read_is_refused_or_skipped_and_reported():
    examples = [make_game(n, split="broken" if n in (1, 4, 5) else "dev") for n in range(6)]
    with pytest.raises(BadInput, match="e1"):
        predict(EchoModel(), examples, batch_size=2)
    predictions = predict(EchoModel(), examples, batch_size=2, skip_bad=True)
    assert [p.example_id for p in predictions] == ["e0", "e2", "e3"]
    assert [skip.id for skip in predictions.skipped] == ["e1", "e4", "e5"]
    evaluation = score(examples, predictions)
    assert evaluation.per_example["id"].tolist() == ["e0", "e2", "e3"]
    assert [skip.id for skip in evaluation.skipped] == ["e1", "e4", "e5"]
    with pytest.raises(BadInput, match="none for example 'e1'"):
        score(examples, list(predictions))  # a bare list says nothing of what was skipped


def test_phrases_over_the_token_limit_are_excluded_and_reported():
    examples = [make_game(n) for n in range(4)]
    late = replace(examples[2].phrases[1], type="late")
    examples[2] = replace(examples[2], phrases=(examples[2].phrases[0], late))
    predictions = predict(EchoModel(), examples)
    assert predictions.dropped_phrases == [("e2", "p2.1")]
    evaluation = score(examples, predictions)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.dropped_phrases == (("e2", "p2.1"),)
    assert evaluation.per_example["phrases"].tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("as_heatmap", [False, True])
def test_batch_by_batch_equals_all_at_once(as_heatmap):
    model = EchoModel(as_heatmap)
    examples = [make_game(n, split="broken" if n in (2, 3, 7) else "dev") for n in range(12)]
    examples[5] = replace(examples[5], groups=examples[5].groups | {"caption": "c5"})
    whole = score(examples, predict(model, examples, skip_bad=True), 0.5)
    parts = evaluate(model, examples, 0.5, batch_size=2, skip_bad=True)  # one batch has nothing left
    pd.testing.assert_frame_equal(parts.per_phrase, whole.per_phrase)
    pd.testing.assert_frame_equal(parts.per_example, whole.per_example, check_like=True)
    assert [s.id for s in parts.skipped] == [s.id for s in whole.skipped] == ["e2", "e3", "e7"]
    assert parts.summary(**FAST) == whole.summary(**FAST)
    if as_heatmap:
        kept = [example for example in examples if example.split == "dev"]
        assert tune(model, kept, batch_size=2) == tune_threshold(kept, predict(model, kept))


def test_nothing_left_to_evaluate_is_said():
    broken = [make_game(n, split="broken") for n in range(3)]
    with pytest.raises(BadInput, match="all 3 examples were skipped"):
        evaluate(EchoModel(), broken, skip_bad=True)
    with pytest.raises(BadInput, match=r"\(0, 100\)"):
        tune(EchoModel(as_heatmap=True), broken, skip_bad=True)
    with pytest.raises(BadInput, match="example id 'e0' occurs 2 times"):
        evaluate(EchoModel(), [make_game(0), make_game(0)], batch_size=1)
