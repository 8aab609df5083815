"""A run as a torch Dataset: items are what the reader gives, batches are one read, workers of either kind agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_run import run_tiny
from torch.utils.data import DataLoader

from extract.datasets import RunDataset
from extract.reader import Run
from grounding.errors import BadInput


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_tiny(tmp_path_factory.mktemp("run") / "x", views=("phrase", "region"))


def pairs(run: Run) -> RunDataset:
    """Every annotated region with its phrase, backwards."""
    owner = run.regions["phrase"].to_numpy()
    region = np.flatnonzero(owner >= 0)[::-1]
    return RunDataset(run, ["block.0", "block.1"], phrase=owner[region], region=region)


def test_an_item_is_a_pair_with_the_rows_of_both_tables(run):
    data = pairs(run)
    item = data[3]
    phrase, region = data.rows["phrase"][3], data.rows["region"][3]
    assert item["phrase_row"] == {"row": phrase, **run.phrases.iloc[phrase].to_dict()}
    assert item["region_row"]["row"] == region
    assert item["region_row"]["phrase"] == phrase
    for site in ("block.0", "block.1"):
        assert item["phrase"][site].dtype == torch.float32
        np.testing.assert_array_equal(item["phrase"][site], run.read(site, "phrase", [phrase])[0])
        np.testing.assert_array_equal(item["region"][site], run.read(site, "region", [region])[0])


@pytest.mark.parametrize("view", ["phrase", "region"])
def test_items_of_one_table(run, view):
    data = RunDataset(run, ["text.0"], **{view: [2, 0, 2]})
    assert len(data) == 3
    assert set(data[0]) == {view, f"{view}_row"}
    np.testing.assert_array_equal(
        torch.stack([data[i][view]["text.0"] for i in range(3)]), run.read("text.0", view, [2, 0, 2])
    )


def test_a_batch_is_one_read_a_site(run, monkeypatch):
    calls, read = [], Run.read

    def counted(self, site, view, rows=None):
        calls.append((site, view, len(rows)))
        return read(self, site, view, rows)

    data = pairs(run)
    monkeypatch.setattr(Run, "read", counted)
    batch = next(iter(DataLoader(data, batch_size=5)))
    assert sorted(calls) == [(site, view, 5) for site in ("block.0", "block.1") for view in ("phrase", "region")]
    assert batch["phrase"]["block.0"].shape == (5, 16)
    assert batch["phrase_row"]["text"] == list(run.phrases["text"].iloc[data.rows["phrase"][:5]])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_workers_read_joined_is_what_is_read_here(run, start):
    data = pairs(run)
    run.read("block.0", "phrase", [0])  # something was read before the workers began
    batches = list(DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=start))
    for view, rows in data.rows.items():
        assert torch.cat([batch[f"{view}_row"]["row"] for batch in batches]).tolist() == rows.tolist()
        for site in data.sites:
            found = torch.cat([batch[view][site] for batch in batches])
            np.testing.assert_array_equal(found, data.run.read(site, view, rows))


@pytest.mark.parametrize(
    ("sites", "rows", "message"),
    [
        (["block.0"], {}, "rows of nothing; accepted: phrase, region, or both of one length"),
        (["block.0"], {"phrase": [0], "region": [0, 1]}, r"rows of {'phrase': 1, 'region': 2}; accepted"),
        (["block.0"], {"phrase": [0, 999]}, r"phrase rows 0 to 999; accepted: 0 to \d+"),
        (["block.0"], {"region": [-1]}, r"region rows -1 to -1; accepted"),
        ([], {"phrase": [0]}, r"sites \[\]; accepted"),
        ("block.0", {"phrase": [0]}, r"sites 'block.0'; accepted: a list"),
        (["block.9"], {"phrase": [0]}, "site 'block.9' is unknown"),
    ],
)
def test_impossible_datasets_are_refused(run, sites, rows, message):
    with pytest.raises(BadInput, match=message):
        RunDataset(run, sites, **rows)
