"""The tables beside the activations: heatmaps, and columns on disk."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd

from extract.metadata import ShardTables, shrink_heatmap
from extract.tables import join_columns, read_table, write_table


def test_a_heatmap_is_stored_in_the_cells_it_was_computed_in_as_shares_of_its_peak():
    heatmap = np.zeros((2, 16, 16), dtype=np.float32)  # two candidates of one token row each: 8 cells along a side
    heatmap[0, 0, :2], heatmap[1, 4:6, 6:8] = 0.2, 0.4
    stored = shrink_heatmap(heatmap, token_rows=2)
    assert (stored.dtype, stored.shape) == (np.float16, (2, 8, 8))
    expected = np.zeros((2, 8, 8))
    expected[0, 0, 0], expected[1, 2, 3] = 0.25, 1.0
    np.testing.assert_allclose(stored, expected, atol=1e-3)
    assert shrink_heatmap(heatmap[:, :15], token_rows=2).shape == (2, 15, 16)  # no whole cells: as it is


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
    tables = ShardTables().tables()
    assert list(tables) == ["examples", "phrases", "regions"]
    assert all(not len(values) for table in tables.values() for values in table.values())
    assert tables["phrases"]["text"].dtype == object
