"""Tables as HDF5 groups: one dataset a column, strings as variable-length UTF-8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import h5py
import numpy as np
import pandas as pd

Columns = dict[str, np.ndarray]  # of equal length; strings are of dtype object


def write_table(parent: h5py.Group, name: str, table: Mapping[str, np.ndarray]) -> None:
    """Store a table below ``parent``; the order of its columns is kept in an attribute."""
    group = parent.create_group(name)
    group.attrs["columns"] = list(table)
    for column, values in table.items():
        group.create_dataset(column, data=values, dtype=h5py.string_dtype() if values.dtype == object else None)


def read_columns(group: h5py.Group) -> Columns:
    """The columns that ``write_table`` stored."""
    columns = {}
    for name in group.attrs["columns"]:
        dataset = group[name]
        text = h5py.check_string_dtype(dataset.dtype) is not None
        columns[str(name)] = dataset.asstr()[:] if text and len(dataset) else np.asarray(dataset[:])
    return columns


def read_table(group: h5py.Group) -> pd.DataFrame:
    """The table that ``write_table`` stored, row index = row number."""
    return pd.DataFrame(read_columns(group))


def length(table: Mapping[str, np.ndarray]) -> int:
    """How many rows a table has."""
    return len(next(iter(table.values())))


def join_columns(parts: Sequence[Mapping[str, np.ndarray]]) -> Columns:
    """Tables one below the other, with the columns of the first, in its order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
