"""Charts show exactly what the tables hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fake_gallery import make_example, make_run, make_sweep
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from grounding.errors import BadInput
from probe import conditions
from visualize.curves import BASELINES, DIFFERENCES, layer_curves, task_and_grounding
from visualize.gallery import Outcomes


def lines(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in axes.lines if not line.get_label().startswith("_")}


def texts(figure) -> str:
    return "\n".join(artist.get_text() for artist in figure.findobj(Text))


def test_lines_are_the_tables_values():
    table = make_sweep(6)
    drawn = lines(layer_curves(table).axes[0])
    assert set(drawn) == {"linear", "linear, control labels", "mlp", "mlp, control labels", "chance"}
    for probe in ("linear", "mlp"):
        rows = table[(table["probe"] == probe) & (table["condition"] == "alignment")]
        np.testing.assert_array_equal(drawn[probe][0], np.arange(6))
        np.testing.assert_array_equal(drawn[probe][1], rows["value"])
    assert set(drawn["chance"][1]) == {0.22}


def test_the_band_is_the_tables_interval():
    table = make_sweep(4)
    table = table[(table["probe"] == "linear") & (table["condition"] == "alignment")]
    band = layer_curves(table).axes[0].collections[0].get_paths()[0].vertices
    for layer, (low, high) in enumerate(zip(table["low"], table["high"], strict=True)):
        heights = band[np.isclose(band[:, 0], layer), 1]
        assert heights.min() == pytest.approx(low)
        assert heights.max() == pytest.approx(high)


def test_stages_are_apart_and_single_sites_keep_their_interval():
    table = pd.concat([make_sweep(1, "embedding"), make_sweep(3, "block")])
    table = table[(table["probe"] == "linear") & (table["condition"] == "alignment")]
    axes = layer_curves(table).axes[0]
    solid = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in solid] == [[0], [1, 2, 3]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["embedding.0", "block.0", "block.1", "block.2"]
    bars = [path.vertices for part in axes.collections for path in part.get_paths() if len(path.vertices) == 2]
    assert any(np.allclose(bar, [[0, 0.22], [0, 0.28]]) for bar in bars)


def test_a_score_that_is_zero_everywhere_has_no_ticks_below_zero():
    panel = layer_curves(make_sweep(3).assign(value=0.0, low=0.0, high=0.0, chance=0.0)).axes[0]
    low, high = panel.get_ylim()
    assert min(tick for tick in panel.get_yticks() if low <= tick <= high) == 0


def test_marks_of_few_layers_keep_near_their_own():
    table = make_sweep(2, "layers")
    panel = layer_curves(pd.concat([table, table[table["probe"] == "mlp"].assign(probe="majority")])).axes[0]
    marked = [line for line in panel.lines if line.get_marker() not in ("None", "")]
    places = np.concatenate([line.get_xdata() for line in marked])
    assert np.abs(places - places.round()).max() < 0.16  # of six series
    assert panel.get_xlabel() == "layer"
    many = layer_curves(make_sweep(30)).axes[0]
    first = [line.get_xdata()[0] for line in many.lines if line.get_marker() not in ("None", "")]
    assert max(np.abs(first)) == pytest.approx(0.3)  # of 0.5 to the border
    assert many.get_xlabel() == "layer (block)"


def test_what_has_bars_is_drawn_side_by_side():
    table = pd.concat([make_sweep(1, "embedding"), make_sweep(2, "block")])
    real = table[(table["condition"] == "alignment") & (table["probe"] == "mlp")]
    controls = [real.assign(probe=name) for name in BASELINES]
    axes = layer_curves(pd.concat([table, *controls])).axes[0]
    marked = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    single = sorted(line.get_xdata()[0] for line in marked if len(line.get_xdata()) == 1)
    assert len(single) == 2 * 2 + len(BASELINES)
    np.testing.assert_allclose(np.diff(single), 0.03 * 3)
    assert max(np.abs(single)) < 0.4  # where the stage's stretch of the chance line ends
    begins = [line.get_xdata()[0] for line in marked if len(line.get_xdata()) == 2 and line.get_linestyle() == "--"]
    assert len(set(begins)) == 2 + len(BASELINES)


def test_controls_differ_in_colour_lightness_and_marker():
    table = make_sweep(2)
    table = table[table["condition"] == "alignment"]
    controls = [table[table["probe"] == "mlp"].assign(probe=name) for name in BASELINES]
    axes = layer_curves(pd.concat([table, *controls])).axes[0]
    drawn = {line.get_label(): line for line in axes.lines if "control" in line.get_label()}
    assert len(drawn) == len(BASELINES)
    assert len({line.get_marker() for line in drawn.values()}) == len(BASELINES)
    lightness = sorted(np.dot(to_rgb(line.get_color()), (0.2126, 0.7152, 0.0722)) for line in drawn.values())
    assert np.diff(lightness).min() > 0.04
    bands = [part for part in axes.collections if isinstance(part, PolyCollection)]
    assert len(bands) == 2  # of the probes, none of the controls
    assert all(band.get_facecolor()[0, 3] <= 0.1 for band in bands)


def test_differences_are_those_of_a_sweep():
    assert set(DIFFERENCES) == set(conditions.DIFFERENCES.values())


def test_differences_are_left_out_and_further_seeds_are_thin():
    table = make_sweep(3)
    second = table.assign(seed=1, value=table["value"] + 0.1)
    difference = table.assign(condition="selectivity", value=-0.5, seed=0)
    figure = layer_curves(pd.concat([table.assign(seed=0), second, difference]))
    assert min(line.get_ydata().min() for line in figure.axes[0].lines) > 0
    assert "further seeds (1)" in texts(figure)
    assert sum(line.get_linewidth() < 1 for line in figure.axes[0].lines) == 4


def test_a_panel_for_each_score_in_the_order_asked():
    table = make_sweep(3, scores=("choice_accuracy", "auc", "other"))
    figure = layer_curves(table, ("other", "auc"))
    assert [axes.get_title("left") for axes in figure.axes] == ["other", "area under the ROC curve"]
    with pytest.raises(BadInput, match="score 'f1' is unknown; accepted: choice_accuracy, auc, other"):
        layer_curves(table, ("f1",))


def test_sample_sizes_are_printed():
    assert "n = 420 test phrases in 130 images" in texts(layer_curves(make_sweep(2)))


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def test_intervals_that_are_not_known_are_not_drawn():
    tables = make_sweep(3), make_sweep(3).assign(low=np.nan, high=np.nan)
    known, unknown = (int((pixels(layer_curves(table)) < 255).any(-1).sum()) for table in tables)
    assert unknown < 0.8 * known


def test_tables_of_something_else_are_refused():
    with pytest.raises(BadInput, match="lacks the columns chance"):
        layer_curves(make_sweep(2).drop(columns="chance"))
    with pytest.raises(BadInput, match="no rows"):
        layer_curves(make_sweep(2).iloc[:0])


def test_points_and_counts_are_those_of_the_table():
    outcomes = Outcomes.of(make_run([make_example(n) for n in range(20)]))
    figure = task_and_grounding(outcomes, note="r = 0.1")
    scatter, counts = figure.axes
    points = np.concatenate([part.get_offsets() for part in scatter.collections])
    expected = outcomes.table.sort_values("correct", ascending=False, kind="stable")[["grounding", "score"]]
    np.testing.assert_allclose(points, expected)
    shown = [int(text.get_text()) for text in counts.texts if text.get_text().isdigit()]
    assert shown == [len(outcomes.matching(c, g)) for c in (True, False) for g in (True, False)]
    assert "r = 0.1" in texts(figure)


def test_unknown_grounding_is_left_out_and_counted():
    run = make_run([make_example(n) for n in range(5)])
    run.phrases.loc[run.phrases["example"] == 0, "iou"] = np.nan
    assert "Left out: 1 example without a known grounding" in texts(task_and_grounding(Outcomes.of(run)))
    run.phrases[["iou", "pointing"]] = np.nan
    with pytest.raises(BadInput, match="no example of this run has a known grounding"):
        task_and_grounding(Outcomes.of(run))
