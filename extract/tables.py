"""Tables as HDF5 groups: one dataset a column, strings as variable-length UTF-8."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd


def write_table(parent: h5py.Group, name: str, table: pd.DataFrame) -> None:
    """Store a table below ``parent``; the order of its columns is kept in an attribute."""
    group = parent.create_group(name)
    group.attrs["columns"] = list(table.columns)
    for column in table.columns:
        values = table[column].to_numpy()
        if pd.api.types.is_numeric_dtype(table[column]) or pd.api.types.is_bool_dtype(table[column]):
            group.create_dataset(column, data=values)
        else:
            group.create_dataset(column, data=values.astype(object), dtype=h5py.string_dtype())


def read_table(group: h5py.Group) -> pd.DataFrame:
    """The table that ``write_table`` stored, row index = row number."""
    columns = {}
    for name in group.attrs["columns"]:
        dataset = group[name]
        text = h5py.check_string_dtype(dataset.dtype) is not None
        columns[str(name)] = dataset.asstr()[:] if text and len(dataset) else np.asarray(dataset[:])
    return pd.DataFrame(columns)
