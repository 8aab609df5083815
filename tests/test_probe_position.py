"""The position-only control: it finds what a phrase says of a place, and nothing that only the regions' states say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from fake_run import make_run, noise, plant_alignment
from labelled_sites import labelled

from grounding.metrics.intervals import bootstrap
from probe.estimators import BilinearProbe
from probe.position import position_only, position_rows
from probe.scores import as_statistic


def test_rows_are_box_area_and_candidate():
    regions = pd.DataFrame(
        {"x1": [0.0, 0.5], "y1": [0.25, 0.0], "x2": [0.5, 1.0], "y2": [0.75, 1.0], "image_index": [2, 0]}
    )
    expected = np.array([[0, 0.25, 0.5, 0.75, 0.25, 0, 0, 1], [0.5, 0, 1, 1, 0.5, 1, 0, 0]])
    np.testing.assert_allclose(position_rows(regions), expected)
    np.testing.assert_allclose(position_rows(regions.drop(columns="image_index")), expected[:, :5])


def choice(run):
    """Choice accuracy on test of a bilinear probe that reads positions, with its interval."""
    data = labelled(run)
    positions = replace(data, features=[position_only(rows, run.regions) for rows in data.features])
    chosen = positions.fit(BilinearProbe(tol=1e-4), (1.0, 0.1, 0.01))
    return bootstrap({"": as_statistic(positions.scored(0, chosen[0].probe), "choice_accuracy")}, 200)[""]


def test_a_phrase_that_tells_the_place_is_found_without_region_states():
    run = make_run(300)
    phrase, region = noise(run)
    own = run.regions[run.regions["phrase"] >= 0]
    phrase[own["phrase"], :2] = 3 * (own[["x1", "y1"]].to_numpy() - 0.4)
    run.add("block.0", phrase, region)
    assert choice(run).low > 0.2


def test_what_only_region_states_tell_is_not():
    run = make_run(300)
    run.add("block.0", *plant_alignment(run))
    found = choice(run)
    assert found.low < 0.125 < found.high
