"""``activations.h5``: one file to open for a whole run, made of its complete shards only.

Rows of activations stay in the shards (HDF5 virtual datasets; a missing source would silently read as zeros, so
none is ever listed that is not complete). The small tables are copied, with row numbers made those of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np

from extract.store import META, VIRTUAL, Shard, publish
from extract.tables import Columns, join_columns, read_columns, write_table


def build_virtual(folder: Path, shards: Sequence[Shard], token: str) -> None:
    """Write ``activations.h5`` over ``shards`` (at least one), in their order, under its name in one step."""
    temporary = folder / f"{VIRTUAL}.tmp-{token}"
    try:
        image = BytesIO()  # in memory no disk is full: HDF5 does not survive that
        with h5py.File(image, "w") as file:
            for name in _common(shards):
                _link(file, folder, name, shards)
            _copy_tables(file, folder, shards)
            file.attrs["shards"] = [shard.shard for shard in shards]
        temporary.write_bytes(image.getbuffer())
        publish(temporary, folder / VIRTUAL)
    finally:
        temporary.unlink(missing_ok=True)


def _common(shards: Sequence[Shard]) -> list[str]:
    """The datasets to link: those of every shard, since what is being added may be in some only."""
    linked = [name for name, view in shards[0].datasets.items() if view != META or name == "meta/heatmaps"]
    return [name for name in linked if all(name in shard.datasets for shard in shards[1:])]


def _link(file: h5py.File, folder: Path, name: str, shards: Sequence[Shard]) -> None:
    """A dataset whose rows are those of every shard's dataset of that name, in turn."""
    with h5py.File(folder / shards[0].file_with(name), "r", locking=False) as first:
        shape, dtype, attributes = first[name].shape[1:], first[name].dtype, dict(first[name].attrs)
    lengths = [shard.rows_of(name) for shard in shards]
    layout = h5py.VirtualLayout((sum(lengths), *shape), dtype)
    begin = 0
    for shard, length in zip(shards, lengths, strict=True):
        if length:
            layout[begin : begin + length] = h5py.VirtualSource(shard.file_with(name), name, (length, *shape))
        begin += length
    if begin:
        linked = file.create_virtual_dataset(name, layout)
    else:
        linked = file.create_dataset(name, (0, *shape), dtype)
    linked.attrs.update(attributes)


def _copy_tables(file: h5py.File, folder: Path, shards: Sequence[Shard]) -> None:
    parts: dict[str, list[Columns]] = {"examples": [], "phrases": [], "regions": []}
    offsets = []
    first_example, first_phrase = 0, 0
    for shard in shards:
        with h5py.File(folder / shard.meta_file, "r", locking=False) as source:
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
