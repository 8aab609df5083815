"""The tables beside the activations: what is computed a faster way equals the plain computation, to the bit."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from extract.metadata import ShardTables, shrink_heatmap
from extract.tables import join_columns, read_table, write_table


@pytest.mark.parametrize(("shape", "rows", "side"), [((6, 64, 64), 24, 2), ((1, 96, 128), 3, 4), ((2, 18, 15), 1, 1)])
def test_heatmaps_are_averaged_as_torch_does(shape, rows, side):
    heatmap = (np.random.default_rng(0).random(shape) ** 9).astype(np.float32)
    cells = functional.avg_pool2d(torch.from_numpy(heatmap), side)
    stored = shrink_heatmap(heatmap, rows)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, (cells / cells.amax()).half().numpy())


def test_tables_come_back_as_they_were_written(tmp_path):
    part = {
        "name": np.array(["a", "ü", ""], dtype=object),
        "count": np.array([3, 1, 2]),
        "share": np.array([0.5, np.nan, 1.0]),
        "right": np.array([True, False, True]),
    }
    none = {name: values[:0] for name, values in part.items()}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_table(file, "both", join_columns([none, part, part]))
        write_table(file, "none", none)
        pd.testing.assert_frame_equal(read_table(file["both"]), pd.concat([pd.DataFrame(part)] * 2, ignore_index=True))
        assert list(read_table(file["none"])) == list(part)
        assert len(read_table(file["none"])) == 0


def test_a_shard_without_examples_has_the_columns_of_any_other():
    tables = ShardTables(token_sites=["block.0"]).tables()
    assert list(tables) == ["examples", "phrases", "regions"]
    assert all(not len(values) for table in tables.values() for values in table.values())
    assert tables["examples"]["tokens_block.0"].dtype == np.int64
    assert tables["phrases"]["text"].dtype == object
