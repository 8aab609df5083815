"""``activations.h5``: one file to open for a whole run, made of its complete shards only.

Rows of activations stay in the shards (HDF5 virtual datasets; a missing source would silently read as zeros, so
none is ever listed that is not complete). The small tables are copied, with row numbers made those of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from extract.store import VIRTUAL, Shard, publish
from extract.tables import Columns, join_columns, read_columns, write_table


def build_virtual(folder: Path, shards: Sequence[Shard], token: str) -> None:
    """Write ``activations.h5`` over ``shards`` (at least one), in their order, under its name in one step."""
    temporary = folder / f"{VIRTUAL}.tmp-{token}"
    try:
        with h5py.File(temporary, "x", locking=False) as file:
            for name, stored in shards[0].files.items():
                with h5py.File(folder / name, "r", locking=False) as first:
                    for path in stored.rows:
                        if stored.view != "meta" or path == "meta/heatmaps":
                            _link(file, path, first[path], stored.view, shards)
            _copy_tables(file, folder, shards)
            file.attrs["shards"] = [shard.shard for shard in shards]
        publish(temporary, folder / VIRTUAL)
    finally:
        temporary.unlink(missing_ok=True)


def _link(file: h5py.File, name: str, first: h5py.Dataset, view: str, shards: Sequence[Shard]) -> None:
    """A dataset whose rows are those of every shard's dataset of that name, in turn; first: that of the first one."""
    shape, dtype = first.shape[1:], first.dtype
    lengths = [shard.files[shard.file_of(view)].rows[name] for shard in shards]
    layout = h5py.VirtualLayout((sum(lengths), *shape), dtype)
    begin = 0
    for shard, length in zip(shards, lengths, strict=True):
        if length:
            layout[begin : begin + length] = h5py.VirtualSource(shard.file_of(view), name, (length, *shape))
        begin += length
    if begin:
        file.create_virtual_dataset(name, layout)
    else:
        file.create_dataset(name, (0, *shape), dtype)


def _copy_tables(file: h5py.File, folder: Path, shards: Sequence[Shard]) -> None:
    parts: dict[str, list[Columns]] = {"examples": [], "phrases": [], "regions": []}
    offsets = []
    first_example, first_phrase = 0, 0
    for shard in shards:
        with h5py.File(folder / shard.file_of("meta"), "r", locking=False) as source:
            tables = {name: read_columns(source["meta"][name]) for name in parts}
            offsets.append(source["meta/text_offsets"][:])
        regions = tables["regions"]
        tables["phrases"]["example"] += first_example
        regions["example"] += first_example
        regions["phrase"] = np.where(regions["phrase"] < 0, regions["phrase"], regions["phrase"] + first_phrase)
        for name, table in tables.items():
            parts[name].append(table)
        first_example, first_phrase = first_example + shard.examples, first_phrase + shard.phrases
    whole = {name: join_columns(tables) for name, tables in parts.items()}
    meta = file.require_group("meta")
    for name, table in whole.items():
        write_table(meta, name, table)
    meta.create_dataset("text_offsets", data=np.concatenate(offsets))
    meta.create_dataset("attention_offsets", data=attention_offsets(whole["examples"], whole["phrases"]))


def attention_offsets(examples: Columns, phrases: Columns) -> np.ndarray:
    """First attention row of each phrase, and the end of the last: int64 ``[phrases + 1]``."""
    cells = (examples["grid_rows"] * examples["grid_columns"])[phrases["example"]]
    return np.concatenate([[0], np.cumsum(cells, dtype=np.int64)])
