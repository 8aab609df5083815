"""Extraction of the tiny model's games, and what it left on disk, for several test files."""

from __future__ import annotations

from pathlib import Path

import h5py
from tiny_model import TinyModel, tiny_games

from extract.reader import Run
from extract.run import extract

IDENTITY = {"checkpoint": "c0ffee", "benchmark": {"name": "tiny", "seed": 0}, "split": "dev", "limit": None}
ALL_VIEWS = ("phrase", "region", "attention", "tokens")


def run_tiny(out: Path, games=None, **options) -> Run:
    options = {"identity": IDENTITY, "batch_size": 3, "shard_size": 4, "views": ALL_VIEWS} | options
    return extract(TinyModel(), tiny_games(10) if games is None else games, out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every dataset of every shard, and of the file that joins them, by name."""
    found = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:

            def keep(name, item, path=path):
                if isinstance(item, h5py.Dataset):
                    values = item[...]
                    found[f"{path.name}/{name}"] = repr(values.tolist()).encode() + str(item.dtype).encode()

            file.visititems(keep)
    return found
