"""Extraction of the tiny model's games, and what it left on disk, for several test files."""

from __future__ import annotations

from pathlib import Path

import h5py
from tiny_model import TinyModel, tiny_games

from extract.reader import Run
from extract.run import Extraction, extract, prepare
from extract.shards import OpenShard

IDENTITY = {"checkpoint": "c0ffee", "benchmark": {"name": "tiny", "seed": 0}, "split": "dev", "limit": None}
ALL_VIEWS = ("phrase", "region", "attention", "tokens")


def tiny_arguments(out: Path, games=None, **options) -> dict:
    settings = {"identity": IDENTITY, "batch_size": 3, "shard_size": 4, "views": ALL_VIEWS} | options
    return {"model": TinyModel(), "examples": tiny_games(10) if games is None else games, "out": out, **settings}


def prepare_tiny(out: Path, games=None, **options) -> Extraction:
    return prepare(**tiny_arguments(out, games, **options))


def run_tiny(out: Path, games=None, **options) -> Run:
    return extract(**tiny_arguments(out, games, **options))


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


def interrupt_at(monkeypatch, number: int) -> None:
    """Ctrl-C when a batch, counted from 0, is to be written."""
    add, calls = OpenShard.add, iter(range(100))

    def failing(self, *arguments):
        if next(calls) == number:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(OpenShard, "add", failing)
