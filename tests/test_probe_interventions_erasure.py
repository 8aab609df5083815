"""Erasers on planted rows, and erasure in a model whose circuit is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_model import Planted, planted_games

from extract.run import extract
from grounding.errors import BadInput
from probe.interventions.concepts import CONCEPTS, read_states, train_part
from probe.interventions.erasers import ERASERS, Concept, random_subspace
from probe.interventions.erasure import Erasure, check_erasure, choose_concepts, erase
from probe.interventions.live import Live

NAMES = tuple(ERASERS)


def planted_rows(count: int = 600, width: int = 20, seed: int = 0) -> tuple[np.ndarray, Concept]:
    """Rows in which two classes and a number are linear, among correlated noise."""
    random = np.random.default_rng(seed)
    labels, number = random.integers(2, size=count), random.standard_normal((count, 1))
    x = random.standard_normal((count, width)) @ random.standard_normal((width, width)) / width**0.5
    x += (2.0 * labels[:, None] - 1) * random.standard_normal(width) + number * random.standard_normal(width)
    values = np.concatenate([labels[:, None], number], axis=1).astype(np.float64)
    return x, Concept(values, {"label": labels}, {"number": number})


class Rows:
    """As ``concepts.Rows``, for ``check_erasure``."""

    def __init__(self, concept: Concept):
        self.concept = concept


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_probe_is_at_chance_after_erasure_and_not_before(name):
    x, concept = planted_rows()
    train = np.arange(len(x)) < 400
    eraser = ERASERS[name](x[train], concept[train])
    images = np.arange(len(x)).astype(str)
    checks = {check["read"]: check for check in check_erasure(x, Rows(concept), train, images, eraser)}
    assert checks["label"]["before_low"] > checks["label"]["chance"] + 0.2
    assert checks["number"]["before_low"] > 0.3
    assert checks["label"]["after_low"] <= checks["label"]["chance"] + 0.05
    assert checks["number"]["after_low"] < 0.1
    control = check_erasure(x, Rows(concept), train, images, random_subspace(x[train], eraser.rank, 0))
    if eraser.rank < 5:  # INLP takes many
        assert all(check["after_low"] > check["chance"] + 0.1 for check in control)


def test_leace_leaves_no_covariance_and_takes_one_dimension_a_number():
    x, concept = planted_rows()
    eraser = ERASERS["leace"](x, concept)
    erased = eraser(torch.from_numpy(x)).numpy()
    assert eraser.rank == 2
    covariance = (erased - erased.mean(0)).T @ (concept.values - concept.values.mean(0)) / len(x)
    assert np.abs(covariance).max() < 1e-9
    assert np.allclose(erased.mean(0), x.mean(0))
    assert np.allclose(eraser(torch.from_numpy(erased)).numpy(), erased)


def test_mean_projection_removes_the_difference_of_the_means():
    x, concept = planted_rows()
    labels = concept.classes["label"]
    only = Concept(labels[:, None].astype(np.float64), {"label": labels}, {})
    eraser = ERASERS["mean"](x, only)
    difference = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    direction = eraser.left[:, 0].numpy()
    assert eraser.rank == 1
    assert abs(abs(direction @ difference) / np.linalg.norm(difference) / np.linalg.norm(direction) - 1) < 1e-9


def test_the_mean_of_tokens_is_erased_by_erasing_each_and_dtypes_stay():
    x, concept = planted_rows()
    eraser = ERASERS["leace"](x, concept)
    tokens = torch.randn(3, 5, x.shape[1])
    assert torch.allclose(eraser(tokens).mean(1), eraser(tokens.mean(1)), atol=1e-5)
    assert eraser(tokens.bfloat16()).dtype == torch.bfloat16


def test_nothing_to_erase_is_refused():
    x, _ = planted_rows()
    constant = Concept(np.ones((len(x), 1)), {}, {})
    with pytest.raises(BadInput, match="the concept is the same for all rows"):
        ERASERS["leace"](x, constant)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A planted model, a run of it, and batches of other games."""
    model = Planted().eval()
    games = planted_games(80, seed=1)
    run = extract(model, games, tmp_path_factory.mktemp("planted") / "run", identity={}, views=("phrase", "region"))
    return model, run, [model.prepare(planted_games(40))]


def test_a_place_that_is_used_is_found_where_it_is_and_the_control_does_less(planted):
    model, run, batches = planted
    with Live(model) as live:
        sites = [(site, ["place"]) for site in model.sites()]
        effects, checks = erase(live, sites, batches, run, None, Erasure(draws=2))
    found = {(row["site"], row["condition"], row["score"]): row for row in effects}
    assert found["block.0", "intervention", "mean_iou"]["before"] == pytest.approx(1.0)
    assert found["block.0", "intervention", "mean_iou"]["effect"] == pytest.approx(0.0)  # no place is there yet
    assert found["block.1", "intervention", "mean_iou"]["effect"] < -0.8
    assert found["block.1", "specific", "mean_iou"]["high"] < 0
    for site in ("block.0", "block.1"):  # the answer does not come from the phrase's place
        assert found[site, "intervention", "accuracy"]["after"] == 1.0
    read = {(row["site"], row["read"]): row for row in checks}
    assert read["block.1", "box"]["before_low"] > 0.3  # all of x; y is that on the canvas, not in the candidate
    assert all(row["after_low"] <= row["chance"] + 0.05 for row in checks)


def test_membership_is_found_where_cells_are_read(planted):
    model, run, batches = planted
    with Live(model) as live:
        effects, _ = erase(live, [(model.sites()[0], ["membership"])], batches, run, None, Erasure(draws=2))
    found = {(row["condition"], row["score"]): row for row in effects}
    assert found["intervention", "mean_iou"]["effect"] < -0.3
    assert found["intervention", "mean_iou"]["effect"] < found["control", "mean_iou"]["effect"]


def test_concepts_and_rows_say_what_they_should(planted):
    model, run, _ = planted
    rows = CONCEPTS["place"].rows(run)
    assert rows.concept.values.shape == (80, 4 + 3)
    assert set(rows.concept.classes["candidate index"]) == {0, 1, 2}
    assert np.allclose(rows.concept.numbers["box"][:, 2:], 0.25)
    belongs = CONCEPTS["membership"].rows(run).concept.classes["membership"]
    assert belongs.sum() == 80
    assert len(belongs) == len(run.regions)
    assert train_part(run, 0).sum() == 48
    assert read_states(run, model.sites()[1], CONCEPTS["place"], rows).shape == (80, 12)
    site = model.sites()[0]
    assert choose_concepts(site, None) == ["place", "membership"]
