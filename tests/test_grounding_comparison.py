"""Differences of two evaluations, paired over images; and whether their images were trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_grounding_evaluate import answer_game, linked_games, make_game

from grounding.comparison import differences, differences_told
from grounding.errors import BadInput
from grounding.evaluate import score
from grounding.metrics.intervals import Statistic, bootstrap_mean, paired_difference
from grounding.predictions import Predictions


def test_a_paired_difference_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    first, second, groups = rng.random(40), rng.random(40), rng.integers(0, 9, 40)
    found = paired_difference(Statistic.mean(first, groups), Statistic.mean(second, groups), 200, seed=5)
    labels, draws = np.unique(groups), np.random.default_rng(5)
    drawn = []
    for _ in range(200):
        rows = np.concatenate(
            [np.flatnonzero(groups == labels[g]) for g in draws.integers(len(labels), size=len(labels))]
        )
        drawn.append(first[rows].mean() - second[rows].mean())
    assert found.value == pytest.approx(first.mean() - second.mean())
    np.testing.assert_allclose((found.low, found.high), np.quantile(drawn, [0.025, 0.975]))


def test_pairing_sees_a_small_difference_that_separate_intervals_hide():
    rng = np.random.default_rng(1)
    hard, groups = rng.random(200), np.arange(200)
    better = hard + 0.02 + rng.normal(0, 0.01, 200)
    found = paired_difference(Statistic.mean(better, groups), Statistic.mean(hard, groups), 500)
    assert 0 < found.low < 0.02 < found.high
    apart = [bootstrap_mean(values, groups, resamples=500) for values in (better, hard)]
    assert apart[0].low < apart[1].high
    null = paired_difference(Statistic.mean(hard + rng.normal(0, 0.1, 200), groups), Statistic.mean(hard, groups), 500)
    assert null.low < 0 < null.high
    with pytest.raises(BadInput, match="200 and 199 groups are not the same"):
        paired_difference(Statistic.mean(hard, groups), Statistic.mean(hard[1:], groups[1:]))


def test_every_shared_figure_is_compared_over_what_both_have():
    examples, answers = linked_games()
    better = [answer_game(e, True, 0.9) for e in examples]
    table = differences({"a": score(examples, better), "b": score(examples, answers)}, resamples=200)
    rows = table.set_index("figure")
    assert rows.loc["accuracy", ["value_first", "value_second", "difference"]].tolist() == [1, 0.5, 0.5]
    assert rows.loc["accuracy", "low"] > 0.2
    assert rows.loc["mean_iou", "difference"] > 0
    assert "pearson" not in rows.index  # undefined for the first: it is right everywhere
    assert "**0.500**" in differences_told(table)
    reasons = pd.Series(["too few", *[None] * (len(table) - 1)])  # pandas makes NaN of None beside a text
    assert differences_told(table.assign(reason=reasons)).count("| too few |") == 1
    told = differences_told(table.assign(reason="too few"))
    assert all(line.endswith("| too few |") for line in told.splitlines()[2:])
    swapped = differences({"b": score(examples, answers), "a": score(examples, better)}, resamples=200)
    assert swapped.set_index("figure").loc["accuracy", "difference"] == -0.5

    dropped = Predictions([replace(a, phrases=a.phrases[:1]) if a.example_id == "e3" else a for a in answers[:30]])
    dropped.dropped_phrases.append(("e3", "p3.1"))
    fewer = score(examples[:30], dropped)
    rows = differences({"a": score(examples, better), "c": fewer}, resamples=50).set_index("figure")
    assert (rows.loc["accuracy", "n"], rows.loc["mean_iou", "n"]) == (30, 59)


def test_a_silent_model_loses_the_task_and_keeps_its_grounding():
    """One grounds 3 of 4 and answers always; the other grounds half, and is silent, and wrong, on the rest."""
    examples = [make_game(number) for number in range(20)]
    always = [answer_game(e, True, 0.9 if n % 4 else 0.1) for n, e in enumerate(examples)]
    half = [answer_game(e, True, 0.1 if n % 2 else 0.9) for n, e in enumerate(examples)]
    silent = [replace(a, answer=None, score=np.nan, correct=False) if n % 2 else a for n, a in enumerate(half)]
    one, other = score(examples, always), score(examples, silent, need_answers=False)
    rows = differences({"one": one, "other": other}, resamples=100).set_index("figure")
    for figure, values in {"accuracy": [1, 0.5], "mean_iou": [0.7, 0.5]}.items():
        assert rows.loc[figure, ["value_first", "value_second"]].tolist() == pytest.approx(values)
        assert rows.loc[figure, "n"] == len(examples) * (2 if figure == "mean_iou" else 1)
    assert other.summary(50, 50)["accuracy"].value == 0.5
    assert other.summary(50, 50)["pearson"].n == 10
    assert "10 examples have no answer: wrong in the task's figures" in other.to_markdown()
    never = score(examples, [replace(a, answer=None) for a in half], need_answers=False)
    assert "accuracy" not in never.summary(50, 50)
    rows = differences({"one": one, "never": never}, resamples=50).set_index("figure")
    assert rows.loc["mean_iou", "difference"] == pytest.approx(0.2)
    assert not {"accuracy", "pearson"} & set(rows.index)


def test_heatmaps_and_boxes_share_what_both_have():
    (examples, boxes), (_, maps) = linked_games(), linked_games(as_heatmap=True)
    table = differences({"boxes": score(examples, boxes), "maps": score(examples, maps, 0.5)}, resamples=50)
    rows = table.set_index("figure")
    assert rows.loc["mean_iou", "difference"] == pytest.approx(0)
    assert rows.loc["pearson", "difference"] == pytest.approx(0)
    assert not {"recall@5", "average_precision"} & set(rows.index)


def test_nothing_to_compare_is_said():
    examples, answers = linked_games(8)
    one = score(examples, answers)
    with pytest.raises(BadInput, match="1 evaluations; accepted: two or more"):
        differences({"a": one})
    others = [make_game(number) for number in range(50, 54)]
    other = score(others, [answer_game(e, True, 0.5) for e in others])
    with pytest.raises(BadInput, match="a and b have no example in common"):
        differences({"a": one, "b": other})
