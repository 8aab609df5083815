import numpy as np
import pandas as pd
import pytest

from grounding.metrics.joint import pearson
from probe.joined import COLUMNS, join
from probe.summary_joined import joined_lines


def make_items(n=60, seed=0, lift=0.2):
    """One phrase an example; at block.1 the probe's IoU goes with the task and is ``lift`` above the model's own."""
    random = np.random.default_rng(seed)
    own = random.uniform(0.2, 0.6, n)
    rows = []
    for part in ("validation", "test"):
        for layer, iou in enumerate((random.uniform(0, 0.1, n), own + lift)):
            correct = own > 0.4
            rows.append(
                pd.DataFrame(
                    {
                        "run": "r", "question": "localisation", "site": f"block.{layer}", "stage": "block",
                        "layer": layer, "probe": "linear", "seed": 0, "part": part, "phrase": np.arange(n),
                        "example": np.arange(n), "score": 0.0, "correct": 1.0, "iou": iou, "own_iou": own,
                        "image": [f"i{k}" for k in range(n)], "task_score": own * 2, "task_correct": correct,
                    }
                )
            )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def one(table, site, measure, probe="linear"):
    (row,) = table[(table["site"] == site) & (table["measure"] == measure) & (table["probe"] == probe)].to_dict(
        "records"
    )
    return row


def test_a_planted_link_is_found_where_it_is_and_the_gap_is_its_lift():
    items = make_items()
    table = join(items, {("r", "localisation"): True}, 300)
    assert list(table.columns) == COLUMNS
    assert one(table, "block.1", "pearson")["value"] == pytest.approx(1)
    noise = one(table, "block.0", "pearson")
    test = items[(items["part"] == "test") & (items["site"] == "block.0")]
    assert noise["value"] == pytest.approx(pearson(test["task_score"].to_numpy(), test["iou"].to_numpy()))
    assert noise["low"] < 0 < noise["high"]
    assert noise["p"] > 0.05
    assert one(table, "model", "pearson", "model")["value"] == pytest.approx(1)
    assert one(table, "block.1", "gap")["value"] == pytest.approx(0.2)
    assert one(table, "block.1", "expression_gap")["low"] == pytest.approx(0.2)  # paired: the lift is the same for all
    assert "expression_gap" not in set(table[table["site"] == "block.0"]["measure"])
    assert "gap" not in set(join(items, {("r", "localisation"): False}, 50)["measure"])


def test_the_layer_of_the_gap_is_chosen_on_validation():
    items = make_items()
    swapped = items["site"].map({"block.0": "block.1", "block.1": "block.0"})
    items["site"] = items["site"].where(items["part"] == "test", swapped)  # what is good on validation is bad on test
    gap = join(items, {("r", "localisation"): True}, 100).query("measure == 'expression_gap'").iloc[0]
    assert gap["site"] == "block.0"
    assert gap["high"] < 0


def test_quadrants_by_hand():
    items = make_items(4)
    test = (items["part"] == "test") & (items["site"] == "block.1")
    items.loc[test, "iou"] = [0.5, 0.6, 0.4, 0.9]
    items.loc[items["part"] == "test", "task_correct"] = np.tile([True, False, True, True], 2)
    items.loc[test, "task_score"] = [1.0, 2.0, 3.0, np.nan]  # the last one has no answer
    table = join(items[items["site"] == "block.1"], {("r", "localisation"): True}, 50)
    shares = {name: one(table, "block.1", name)["value"] for name in ("right_grounded", "right_not_grounded")}
    assert shares == {"right_grounded": pytest.approx(1 / 3), "right_not_grounded": pytest.approx(1 / 3)}
    assert one(table, "block.1", "wrong_grounded")["value"] == pytest.approx(1 / 3)
    assert one(table, "block.1", "wrong_not_grounded")["value"] == 0
    assert one(table, "block.1", "right_grounded")["n"] == 3


def test_what_is_undefined_says_why_and_questions_about_examples_are_left_out():
    items = make_items(10)
    items["task_correct"] = True
    table = join(items, {("r", "localisation"): False}, 50)
    row = one(table, "block.1", "point_biserial")
    assert row["value"] is None or np.isnan(row["value"])
    assert row["note"] == "one class only: the task is right in all examples"
    assert join(items.assign(phrase=-1), {}, 50).empty


@pytest.mark.parametrize(
    ("lift", "said"),
    [
        (0.2, "better than the model's own answers do"),
        (-0.1, "no sign that anything is missing inside"),
    ],
)
def test_words_about_the_gap(lift, said):
    table = join(make_items(lift=lift), {("r", "localisation"): True}, 100)
    lines = joined_lines(table, "linear", "block.1", few=False)
    assert "They go together; which of them leads to the other is not shown." in lines[0]
    assert said in lines[1]
    assert said not in " ".join(joined_lines(table, "linear", "block.1", few=True))


def test_a_model_without_answers_or_boxes_of_its_own_leaves_the_values_out():
    table = join(make_items(8).assign(task_score=np.nan, own_iou=np.nan), {("r", "localisation"): True}, 20)
    assert table["value"].isna().all()
    assert {"pearson", "gap", "right_grounded"} <= set(table["measure"])
    assert (table["note"] != "").all()
    assert joined_lines(table, "linear", "block.1", few=False) == []
