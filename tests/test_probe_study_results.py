"""What a study found: gains and what is enough on hand-worked numbers, its words and charts, shipped tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_files import CONTENT
from study_tables import kilogram_table, tables

from grounding.errors import BadInput
from grounding.finetune.recipes import laid_over
from probe.study import StudyConfig, collect, read_study
from probe.study.best import best_sites
from probe.study.folder import read_folder
from probe.study.gains import FIGURE, enough, gains, smallest_enough, statistics_of
from probe.study.results import Results
from probe.study.seeds import mean_over_seeds, over_seeds
from probe.study.summary import summarise_study
from visualize.study import draw_study, fraction_curves, site_heat_map

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
SHIPPED = Path(__file__).resolve().parent.parent / "docs"
A = {"model": "mdetr", "initialisation": "given", "fraction": 1, "site": "block.0"}


def test_enough_by_hand():
    fractions = np.array([0, 0.1, 0.3, 1])
    assert smallest_enough(fractions, np.array([0.1, 0.3, 0.48, 0.5])) == 0.3
    assert smallest_enough(fractions, np.array([0.1, 0.46, 0.3, 0.5])) == 0.1
    assert smallest_enough(fractions, np.array([0.0, 0.0, 0.0, 1.0])) == 1.0
    assert np.isnan(smallest_enough(fractions, np.array([0.5, 0.9, 0.9, 0.5])))


def test_means_over_seeds_by_hand():
    mean, low, high = mean_over_seeds(np.array([1.0, 2.0, 3.0]))
    assert (mean, high - mean, mean - low) == pytest.approx((2.0, 2.48414, 2.48414), rel=1e-4)  # 4.30265 / sqrt(3)
    assert np.isnan(mean_over_seeds(np.array([1.0]))[1])


def planted(gain: bool) -> dict:
    """Examples of three seeds that gain all from 0.3 on, or nothing: success, IoU, and how they go together."""
    random = np.random.default_rng(0)
    content = {**CONTENT, "fractions": (0, 0.3, 1), "seeds": (0, 1, 2)}
    found = {}
    for cell in StudyConfig(**content).cells():
        has = 0.4 * (gain and cell.fraction >= 0.3)
        noise, own = random.normal(0, 0.1, (2, 200))
        table = {"id": [f"e{n}" for n in range(200)], "phrases": 3, "mean_iou": 0.2 + has + noise}
        found[cell] = pd.DataFrame(table | {"score": 10 * has * noise + own, "correct": random.random(200) < 0.3 + has})
    return found


def statistics(examples: dict, names=("accuracy", "mean_iou", "pearson")) -> dict:
    """Of such examples, where evaluations have these figures."""
    keys = {(cell.model, cell.initialisation) for cell in examples}
    return statistics_of(examples, pd.DataFrame([(*key, name) for key in keys for name in names], columns=FIGURE))


def test_a_planted_fraction_is_found_and_no_gain_is_told():
    found = enough(statistics(planted(True)), [0, 0.3, 1], 500).set_index("figure")
    assert list(found.index) == ["accuracy", "mean_iou", "pearson"]
    assert (found.loc[["mean_iou", "pearson"], ["fraction", "low", "high"]] == 0.3).all(axis=None)
    assert found.loc["accuracy", "low"] == 0.3
    row = found.loc["mean_iou"]
    assert (row["from_fraction"], row["to_fraction"], row["tried"], row["no_gain"]) == (0, 1, "0 0.3 1", 0.0)
    none = enough(statistics(planted(False)), [0, 0.3, 1], 500)
    assert (none["no_gain"] > 0.05).all()
    assert ((none["high"] - none["low"] >= 0.7) | none["fraction"].isna()).all()


def test_success_is_called_as_the_evaluations_call_it():
    found = statistics(planted(True), ("accuracy@80px", "mean_iou"))
    assert [figure for _, _, figure in found] == ["accuracy@80px", "mean_iou"]


def test_examples_without_an_answer_have_no_success_but_their_grounding_counts():
    examples = {
        c: t.assign(score=t["score"].where(t.index > 0), correct=t["correct"].astype(object).where(t.index > 0))
        for c, t in planted(True).items()
    }
    found = statistics(examples)
    counts = {figure: next(iter(cells.values())).n for (_, _, figure), cells in found.items()}
    assert counts == {"accuracy": 199, "mean_iou": 200, "pearson": 199}


def test_examples_with_a_task_that_are_not_answered_are_wrong_as_in_evaluations():
    examples = {
        c: t.assign(
            has_task=t.index < 150, score=t["score"].where(t.index < 100), correct=t["correct"] & (t.index < 100)
        )
        for c, t in planted(True).items()
    }
    ((_, found),) = statistics(examples, ["accuracy"]).items()
    for cell, table in examples.items():
        assert found[cell.seed, cell.fraction].value() == pytest.approx(table["correct"].sum() / 150)
        assert found[cell.seed, cell.fraction].n == 150


def test_cells_of_older_copies_take_the_images_of_the_others():
    examples = {c: t.assign(group_image=[f"i{n // 2}" for n in range(200)]) for c, t in planted(True).items()}
    first = next(iter(examples))
    whole = statistics(examples)
    old = statistics({**examples, first: examples[first].drop(columns="group_image")})
    for key, cells in whole.items():
        assert {len(statistic.labels) for statistic in old[key].values()} == {100}
        assert enough({key: old[key]}, [0, 0.3, 1], 50).equals(enough({key: cells}, [0, 0.3, 1], 50))


def test_of_one_image_there_is_no_fraction_that_is_enough():
    examples = {c: t.assign(group_image="one") for c, t in planted(True).items()}
    assert enough(statistics(examples), [0, 0.3, 1], 50).empty


def test_gains_have_an_interval_over_images():
    """Of a difference of means, of three seeds; wider where two examples that are alike are of one image."""
    examples = planted(True)
    keys = {"figure": "mean_iou", "low": 0.0, "high": 1.0}
    figures = pd.DataFrame(
        [
            {"model": c.model, "initialisation": c.initialisation, "fraction": c.fraction, "seed": c.seed, **keys}
            | {"value": table["mean_iou"].mean()}
            for c, table in examples.items()
        ]
    )
    alone = gains(figures, statistics(examples), 2000).iloc[0]
    assert alone["images_low"] < alone["gain"] < alone["images_high"]
    by_hand = 2 * 1.96 * 0.1 * np.sqrt(2 / (3 * 200))
    assert alone["images_high"] - alone["images_low"] == pytest.approx(by_hand, rel=0.15)
    twice = [pd.concat([table, table.assign(id=table["id"] + "b")]) for table in examples.values()]
    images = {c: t.assign(group_image=t["id"].str.strip("b")) for c, t in zip(examples, twice, strict=True)}
    doubled = gains(figures, statistics(images), 2000).iloc[0]
    assert doubled["images_high"] - doubled["images_low"] == pytest.approx(by_hand, rel=0.15)
    assert np.isnan(gains(figures, {}, 10).iloc[0]["images_low"])


@pytest.mark.parametrize("lacking", [0, 0.3, 1])
def test_what_is_enough_is_not_told_before_every_fraction_is_there(lacking):
    so_far = {cell: scores for cell, scores in planted(True).items() if cell.fraction != lacking}
    assert enough(statistics(so_far), [0, 0.3, 1], 20).empty
    one_seed = {cell: scores for cell, scores in planted(True).items() if cell.fraction != lacking or cell.seed == 2}
    assert enough(statistics(one_seed), [0, 0.3, 1], 20).iloc[0]["seeds"] == 1


def test_intervals_over_images_are_those_of_the_cells():
    cells = [{**keys, "value": v, "low": v - 0.2, "high": v + 0.1, "chance": 0.25} for keys, v in ((A, 0.5), (A, 0.7))]
    row = over_seeds([pd.DataFrame([cell]) for cell in cells], ["site"]).iloc[0]
    assert tuple(row[["value", "images_low", "images_high", "chance", "seeds"]]) == pytest.approx(
        (0.6, 0.4, 0.7, 0.25, 2)
    )
    alone = over_seeds([pd.DataFrame(cells[:1])], ["site"]).iloc[0]
    assert np.isnan(alone["seeds_low"])
    assert alone["images_high"] == pytest.approx(0.6)
    undefined = {**cells[0], "value": np.nan, "low": 0.0, "high": 0.0}
    row = over_seeds([pd.DataFrame([cell]) for cell in (*cells, undefined)], ["site"]).iloc[0]
    assert tuple(row[["value", "images_low", "seeds"]]) == pytest.approx((0.6, 0.4, 2))


def figures() -> pd.DataFrame:
    """Two seeds of one model, mean IoU at three fractions."""
    values = {(0, 0): 0.1, (0, 1): 0.2, (0.5, 0): 0.4, (0.5, 1): 0.4, (1, 0): 0.5, (1, 1): 0.8}
    keys = {"model": "mdetr", "initialisation": "given", "figure": "mean_iou", "n": 9, "learned_phrases": 3}
    return pd.DataFrame(
        [
            {**keys, "fraction": fraction, "seed": seed, "value": value, "low": value - 0.1, "high": value + 0.1}
            for (fraction, seed), value in values.items()
        ]
    )


def test_gains_are_paired_by_seed():
    row = gains(figures(), {}).iloc[0]
    assert (row["gain"], row["seeds"], row["from_fraction"], row["to_fraction"]) == (pytest.approx(0.5), 2, 0, 1)
    assert row["high"] - row["gain"] == pytest.approx(12.7062 * np.std([0.4, 0.6], ddof=1) / np.sqrt(2), rel=1e-4)


def best_of_two_seeds() -> pd.DataFrame:
    """A probe's best sites, with controls in two seeds, and another's in one without."""
    keys = {"model": "mdetr", "initialisation": "given", "fraction": 1, "question": "alignment", "chance": 0.25}
    less = {"selectivity": 0.1, "selectivity_low": 0.0, "selectivity_high": 0.2}
    one = {**keys, **less, "seed": 0, "probe": "linear", "site": "a", "value": 0.4, "low": 0.3, "high": 0.5}
    two = {**one, "seed": 1, "site": "b", "value": 0.6, "sites_above": 2}
    return pd.DataFrame([one | {"sites_above": 1}, two, one | {"probe": "mlp", **dict.fromkeys(less, np.nan)}]).assign(
        sites=4, n_images=80
    )


def test_the_best_site_is_that_of_the_lowest_validation_loss_of_the_first_seed():
    rows = []
    for seed, site, loss, value, p in (
        (3, "a", 0.5, 0.9, 0.01), (3, "b", 0.4, 0.6, 0.05), (3, "c", 0.6, 0.8, 0.06), (1, "a", 0.1, 0.2, 0.9)
    ):  # fmt: skip
        about = {"question": "alignment", "probe": "linear", "score": "choice_accuracy", "site": site, "seed": seed}
        about |= {"low": value - 0.1, "high": value + 0.1, "chance": 0.2, "n_images": 12}
        rows.append(about | {"condition": "alignment", "value": value, "validation_loss": loss, "p_control_holm": p})
        rows.append(about | {"condition": "selectivity", "value": value - 0.5, "low": -0.1, "high": 0.3})
        rows.append(rows[-2] | {"score": "average_precision", "validation_loss": loss - 1})
        rows.append(rows[-3] | {"probe": "concatenation", "value": 0.1})
    (found,) = best_sites(pd.DataFrame(rows)).to_dict("records")
    told = (found["probe"], found["site"], found["value"], found["sites_above"], found["sites"], found["n_images"])
    assert told == ("linear", "b", 0.6, 2, 3, 12)
    assert found["selectivity"] == pytest.approx(0.1)
    plain = pd.DataFrame(rows).query("condition == 'alignment'").assign(p_control_holm=np.nan)
    without = best_sites(plain).iloc[0]
    assert without[["selectivity", "selectivity_low", "selectivity_high", "sites_above"]].isna().all()


def test_bands_end_where_a_figure_cannot_be():
    curves = over_seeds([figures()], ["figure"]).assign(seeds_low=-2.0, seeds_high=3.0)
    for name, bounds in (("mean_iou", (0, 1)), ("pearson", (-1, 1)), ("mean_distance", (0, 3))):
        drawn = fraction_curves(figures(), curves.assign(figure=name), [name])
        (band,) = drawn.axes[0].collections[:1]
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == bounds


def test_a_summary_says_what_is_missing_and_draws(tmp_path):
    curves = over_seeds([figures()], ["figure"])
    about = {"model": "mdetr", "initialisation": "given", "from_fraction": 0.0, "to_fraction": 0.5}
    about |= {"figure": "mean_iou"}
    needed = pd.DataFrame([about | {"fraction": float("nan"), "no_gain": 1.0}])
    layers = pd.DataFrame(columns=["model", "initialisation", "question", "condition", "probe", "score"])
    none = pd.DataFrame(columns=["model", "initialisation", "method", "target", "score", "question", "probe"])
    results = Results(figures(), curves, layers, best_of_two_seeds(), none, none, needed, gains(figures(), {}))
    text = summarise_study(results, missing=3)
    interval = f"{0.5 - 1.27062:.3f}, {0.5 + 1.27062:.3f}"  # 12.7062 * 0.1 (Student's t, one degree of freedom)
    row = f"| `a`, `b` | 0.500 [{interval}] | 0.250 | 0.100 [0.100, 0.100] | 1, 2 of 4 |"
    assert f"| mdetr | given | 1 | alignment, linear {row}" in text
    assert "| mdetr | given | 1 | alignment, mlp | `a` | 0.400 [0.300, 0.500] | 0.250 | – | – |" in text
    assert "3 cells of the study are not whole yet" in text
    assert "too few" not in text
    few = replace(results, best=results.best.assign(n_images=3))
    assert "Probes of alignment were tested on 3 images, too few to conclude anything" in summarise_study(few)
    assert "| mdetr | given | 0.5 | 0.400 [0.400, 0.400] |" in text
    assert "mean IoU is no better with 0.5 of the annotation than with 0." in text
    assert [path.name for path in draw_study(vars(results), tmp_path)] == ["fractions.png", "fractions.svg"]
    with pytest.raises(BadInput, match="no figure to draw"):
        draw_study({**vars(results), "curves": curves[:0]}, tmp_path)


@pytest.mark.parametrize(
    ("folder", "name", "options"),
    [
        ("study", "miniature", {}),
        ("study-kilogram-random", "kilogram-small", {"colour_order": "random"}),
        ("study-kilogram-caption", "kilogram-small", {"colour_order": "caption"}),
    ],
)
def test_the_tables_in_the_docs_are_those_of_the_cells_beside_them(folder, name, options):
    found = collect(SHIPPED / folder)
    assert len(found.best) == 2 * len(found.figures[found.figures["figure"] == "mean_iou"])  # two questions a cell
    for file, table in vars(found).items():
        shipped = pd.read_csv(SHIPPED / folder / f"{file}.csv")
        pd.testing.assert_frame_equal(shipped, table, check_dtype=False, rtol=1e-6)
    study = read_study(name)
    given = replace(study, settings=laid_over(study.settings, {"benchmark_options": options} if options else {}))
    assert read_folder(SHIPPED / folder).resolved() == given.resolved()


@pytest.mark.parametrize("name", tables(SHIPPED / "study"))
def test_the_tables_of_the_page_are_those_of_the_study(name):
    rows = "\n".join(tables(SHIPPED / "study")[name])
    assert f"\n{rows}\n" in (SHIPPED / "study.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_kilogram_over_its_drawings():
    rows = "\n".join(kilogram_table(SHIPPED))
    assert f"\n{rows}\n" in (SHIPPED / "study.md").read_text(encoding="utf-8")
    for order in ("random", "caption"):
        for examples in (SHIPPED / f"study-kilogram-{order}").glob("cells/*/evaluation/examples.csv"):
            assert pd.read_csv(examples)["group_image"].nunique() == 12


def test_changes_are_coloured_around_none_and_no_zero_is_negative():
    rows = pd.DataFrame({"site": ["a", "a", "b", "b"], "fraction": [0, 1, 0, 1], "value": [-0.001, -0.3, 0.0, 0.1]})
    panel = site_heat_map(rows, "title", "change", signed=True).axes[0]
    assert panel.collections[0].get_clim() == (-0.3, 0.3)
    assert [text.get_text() for text in panel.texts] == ["0.00", "-0.30", "0.00", "0.10"]
    small = site_heat_map(rows.assign(value=rows["value"] / 100), "title", "change", signed=True).axes[0]
    assert [text.get_text() for text in small.texts] == ["0.000", "-0.003", "0.000", "0.001"]
    assert site_heat_map(rows, "title", "score").axes[0].collections[0].get_clim() == (-0.3, 0.1)
