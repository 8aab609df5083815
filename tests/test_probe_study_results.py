"""What a study found: gains and what is enough on hand-worked numbers, its words and charts, shipped tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_files import CONTENT

from grounding.errors import BadInput
from grounding.finetune.recipes import laid_over
from probe.study import StudyConfig, collect, read_study
from probe.study.folder import read_folder
from probe.study.results import Results, _curves, _effects, _enough, _over_seeds, mean_over_seeds, smallest_enough
from probe.study.summary import summarise_study
from visualize.study import draw_study, site_heat_map

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
    """Cells of three seeds whose examples gain all from 0.3 on, or nothing anywhere."""
    random = np.random.default_rng(0)
    content = {**CONTENT, "fractions": (0, 0.3, 1), "seeds": (0, 1, 2)}
    cells = StudyConfig(**content).cells()
    ids = [f"e{n}" for n in range(200)]
    return {
        cell: pd.Series(0.2 + 0.4 * (gain and cell.fraction >= 0.3) + random.normal(0, 0.1, 200), index=ids)
        for cell in cells
    }


def test_a_planted_fraction_is_found_and_no_gain_is_told():
    found = _enough(planted(True), [0, 0.3, 1], 500, 0).iloc[0]
    assert (found["fraction"], found["low"], found["high"], found["no_gain"]) == (0.3, 0.3, 0.3, 0.0)
    assert (found["from_fraction"], found["to_fraction"], found["tried"]) == (0, 1, "0 0.3 1")
    none = _enough(planted(False), [0, 0.3, 1], 500, 0).iloc[0]
    assert none["no_gain"] > 0.05
    assert none["high"] - none["low"] >= 0.7 or np.isnan(none["fraction"])


@pytest.mark.parametrize("lacking", [0, 0.3, 1])
def test_what_is_enough_is_not_told_before_every_fraction_is_there(lacking):
    so_far = {cell: scores for cell, scores in planted(True).items() if cell.fraction != lacking}
    assert _enough(so_far, [0, 0.3, 1], 20, 0).empty
    one_seed = {cell: scores for cell, scores in planted(True).items() if cell.fraction != lacking or cell.seed == 2}
    assert _enough(one_seed, [0, 0.3, 1], 20, 0).iloc[0]["seeds"] == 1


def test_intervals_over_images_are_those_of_the_cells():
    cells = [{**keys, "value": v, "low": v - 0.2, "high": v + 0.1, "chance": 0.25} for keys, v in ((A, 0.5), (A, 0.7))]
    row = _over_seeds([pd.DataFrame([cell]) for cell in cells], ["site"]).iloc[0]
    assert tuple(row[["value", "images_low", "images_high", "chance", "seeds"]]) == pytest.approx(
        (0.6, 0.4, 0.7, 0.25, 2)
    )
    alone = _over_seeds([pd.DataFrame(cells[:1])], ["site"]).iloc[0]
    assert np.isnan(alone["seeds_low"])
    assert alone["images_high"] == pytest.approx(0.6)


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
    row = _effects(figures()).iloc[0]
    assert (row["gain"], row["seeds"], row["from_fraction"], row["to_fraction"]) == (pytest.approx(0.5), 2, 0, 1)
    assert row["high"] - row["gain"] == pytest.approx(12.7062 * np.std([0.4, 0.6], ddof=1) / np.sqrt(2), rel=1e-4)


def test_a_summary_says_what_is_missing_and_draws(tmp_path):
    curves = _curves(figures())
    enough = pd.DataFrame([{"model": "mdetr", "initialisation": "given", "fraction": float("nan"), "no_gain": 1.0}])
    layers = pd.DataFrame(columns=["model", "initialisation", "question", "condition", "probe", "score"])
    none = pd.DataFrame(columns=["model", "initialisation", "method", "target", "score", "question", "probe"])
    results = Results(figures(), curves, layers, none, none, enough, _effects(figures()))
    text = summarise_study(results, missing=3)
    assert "3 cells of the study are not whole yet" in text
    assert "| mdetr | given | 0.5 | – | 0.400 [0.400, 0.400] | – |" in text
    assert "mean IoU is no better with all of the annotation than with none." in text
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
    for file, table in vars(found).items():
        shipped = pd.read_csv(SHIPPED / folder / f"{file}.csv")
        of_cells = shipped[shipped["model"].isin(found.figures["model"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_cells, table, check_dtype=False, rtol=1e-6)
    study = read_study(name)
    given = replace(study, settings=laid_over(study.settings, {"benchmark_options": options} if options else {}))
    assert read_folder(SHIPPED / folder).resolved() == given.resolved()


def test_changes_are_coloured_around_none_and_no_zero_is_negative():
    rows = pd.DataFrame({"site": ["a", "a", "b", "b"], "fraction": [0, 1, 0, 1], "value": [-0.001, -0.3, 0.0, 0.1]})
    panel = site_heat_map(rows, "title", "change", signed=True).axes[0]
    assert panel.collections[0].get_clim() == (-0.3, 0.3)
    assert [text.get_text() for text in panel.texts] == ["0.00", "-0.30", "0.00", "0.10"]
    assert site_heat_map(rows, "title", "score").axes[0].collections[0].get_clim() == (-0.3, 0.1)
