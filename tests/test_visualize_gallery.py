"""Galleries: the rule is kept, printed, seeded, and independent of the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from fake_gallery import make_example, make_panorama, make_run
from matplotlib.text import Text

from grounding.errors import BadInput
from visualize.case import gather
from visualize.gallery import WIDTH, Outcomes, draw_gallery, four_quadrants, right_and_wrong, select
from visualize.style import RIGHT, WRONG


@pytest.fixture(scope="module")
def examples():
    return [make_example(n, phrases=2 + n % 3) for n in range(24)]


@pytest.fixture(scope="module")
def outcomes(examples):
    return Outcomes.of(make_run(examples))


def drawn(run, examples, selections, outcomes=None):
    by_id = {e.id: e for e in examples}
    cases = {row: gather(run, row, by_id) for band in selections for s in band for row in s.rows}
    return draw_gallery(selections, cases, outcomes)


def texts(figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(Text))


def test_outcomes_are_means_of_what_is_stored(examples):
    run = make_run(examples)
    table = Outcomes.of(run).table
    ious = run.phrases[run.phrases["example"] == 5]["iou"]
    assert table.loc[5, "grounding"] == pytest.approx(ious.sum() / len(ious))
    assert table.loc[5, "correct"] == run.examples.loc[5, "task_correct"]


def test_without_iou_pointing_is_used_and_said():
    run = make_run([make_example(n) for n in range(4)])
    run.phrases["iou"] = np.nan
    outcomes = Outcomes.of(run)
    assert outcomes.measure == "share of phrases whose peak is inside their region"
    assert outcomes.table["grounding"].between(0, 1).all()


def test_an_answer_that_is_missing_beside_others_is_wrong_but_in_no_quadrant(examples):
    run = make_run(examples)
    before = Outcomes.of(run)
    silent = before.matching(True)[0]
    run.examples.loc[silent, ["task_correct", "task_score", "answer_index"]] = [False, np.nan, -1]
    found = Outcomes.of(run)
    assert silent in found.matching(False)
    assert len(found.matching(True)) == len(before.matching(True)) - 1
    assert silent not in [row for grounded in (True, False) for row in found.matching(False, grounded)]
    run.examples[["task_correct", "task_score", "answer_index"]] = [False, np.nan, -1]
    assert Outcomes.of(run).table["correct"].isna().all()


def test_every_quadrant_holds_only_its_own(outcomes):
    rows = []
    for band, grounded in zip(four_quadrants(outcomes, count=50), (True, False), strict=True):
        for selection, correct in zip(band, (True, False), strict=True):
            table = outcomes.table.loc[list(selection.rows)]
            assert (table["correct"] == correct).all()
            assert ((table["grounding"] >= 0.5) == grounded).all()
            rows += selection.rows
    assert sorted(rows) == list(range(24))


def test_from_where_on_an_example_is_grounded_can_be_said(examples):
    run = make_run(examples)
    found = Outcomes.of(run, 0.3)
    assert (found.table["grounding"][found.matching(grounded=True)] >= 0.3).all()
    assert len(found.matching(grounded=True)) > len(Outcomes.of(run).matching(grounded=True))
    with pytest.raises(BadInput, match=r"grounded-at 1\.1 cannot be; accepted: above 0, at most 1"):
        Outcomes.of(run, 1.1)


def test_selection_is_seeded_and_does_not_depend_on_the_order_of_rows(examples):
    outcomes = Outcomes.of(make_run(examples))
    shuffled = Outcomes(outcomes.table.sample(frac=1, random_state=3), outcomes.measure)
    assert select(outcomes, True, count=3).rows == select(shuffled, True, count=3).rows
    drawn_by_seed = {select(outcomes, True, count=3, seed=seed).rows for seed in range(8)}
    assert len(drawn_by_seed) > 1
    assert right_and_wrong(outcomes, 3, seed=1) == right_and_wrong(outcomes, 3, seed=1)


def test_a_larger_selection_begins_with_the_smaller(outcomes):
    assert select(outcomes, False, count=6).rows[:2] == select(outcomes, False, count=2).rows


def test_the_rule_is_printed_on_the_figure(examples, outcomes):
    figure = drawn(make_run(examples), examples, four_quadrants(outcomes, 1, seed=7), outcomes)
    words = texts(figure)
    assert "Task right, grounded" in words
    assert "mean IoU below 0.5; 1 of" in words
    assert words.count("drawn at random (seed 7)") == 4


def test_an_empty_side_says_so(examples):
    run = make_run(examples[:1])
    outcomes = Outcomes.of(run)
    figure = drawn(run, examples, right_and_wrong(outcomes), outcomes)
    assert "1 of 1 example, drawn" in texts(figure)
    assert "Task wrong: no such example" in texts(figure)


def test_an_empty_side_is_a_line_and_the_other_takes_its_columns():
    examples = [make_panorama(n) for n in range(2)]
    run = make_run(examples)
    run.examples["task_correct"] = True
    figure = drawn(run, examples, right_and_wrong(Outcomes.of(run), 2))
    (left, _, first, _), (_, right, second, _) = (image.get_extent() for image in figure.axes[0].images)
    assert first == second
    assert left < 0.3
    assert right > WIDTH
    only = drawn(run, examples, right_and_wrong(Outcomes.of(run), 1))
    left, right, _, _ = only.axes[0].images[0].get_extent()
    assert right - left > 0.9 * WIDTH


def test_a_row_of_empty_quadrants_is_two_lines(examples):
    run = make_run(examples)
    run.phrases["iou"] = 0.1
    outcomes = Outcomes.of(run)
    bands = four_quadrants(outcomes, 1)
    full, alone = (drawn(run, examples, selections).get_size_inches()[1] for selections in (bands, bands[1:]))
    assert full - alone < 0.7


def test_the_legend_shows_answers_as_the_pictures_do():
    examples = [make_panorama(n) for n in range(4)]
    run = make_run(examples)
    crosses = {}
    for name, selections in (
        ("both", right_and_wrong(Outcomes.of(run), 1)),
        ("wrong", [[select(Outcomes.of(run), False, count=1)]]),
    ):
        figure = drawn(run, examples, selections)
        lines = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
        crosses[name] = [line.get_markerfacecolor() for line in lines]
        assert "model's answer, wrong" in texts(figure)
        assert ("model's answer, right" in texts(figure)) == (name == "both")
    assert crosses == {"both": [RIGHT, WRONG, RIGHT, WRONG], "wrong": [WRONG, WRONG]}


def test_columns_stay_within_the_page(examples, outcomes):
    figure = drawn(make_run(examples), examples, right_and_wrong(outcomes, 2))
    width, height = figure.get_size_inches()
    for image in figure.axes[0].images:
        left, right, bottom, top = image.get_extent()
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_panoramas_and_single_images_are_drawn():
    examples = [make_panorama(n) for n in range(3)]
    figure = drawn(make_run(examples), examples, right_and_wrong(Outcomes.of(make_run(examples)), 2))
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "^count 0 is too small; accepted: 1 or more$"),
        ({"seed": -1}, "^seed -1 is too small; accepted: 0 or more$"),
    ],
)
def test_only_the_impossible_choice_is_named(outcomes, options, message):
    with pytest.raises(BadInput, match=message):
        select(outcomes, True, **options)
