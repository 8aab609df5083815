"""Runs in memory whose heads have planted maps, for tests of what scores attention as grounding."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from extract.reader import SiteInfo

IMAGES, SIDE = 3, 4  # candidates, and cells a side of each
CELLS = IMAGES * SIDE * SIDE


@dataclass
class FakeMaps:
    """The attributes and methods of extract.reader.Run that scoring heads uses."""

    examples: pd.DataFrame
    phrases: pd.DataFrame
    regions: pd.DataFrame
    path: Path
    manifest: dict
    sites: list[SiteInfo] = field(default_factory=list)
    rows: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def cell_offsets(self) -> np.ndarray:
        return np.arange(len(self.phrases) + 1) * CELLS

    def read(self, site: str, view: str, rows: np.ndarray) -> np.ndarray:
        return self.rows[site, view][rows].astype(np.float32)

    def add(self, name: str, maps: np.ndarray, view: str = "attention") -> None:
        """maps: ``[P, heads, cells]``."""
        stage, _, layer = name.partition(".")
        self.sites.append(SiteInfo(name, stage, int(layer), ("text", "image"), 8, (view,), maps.shape[1]))
        self.rows[name, view] = maps.transpose(0, 2, 1).reshape(-1, maps.shape[1])


def make_maps(split: str = "dev", n_examples: int = 60, n_phrases: int = 3, seed: int = 0) -> FakeMaps:
    """Games of three candidates; each phrase has a box of one cell, no two of an example the same."""
    random = np.random.default_rng(seed)
    target = random.integers(IMAGES, size=n_examples)
    cell = random.permuted(np.tile(np.arange(SIDE * SIDE), (n_examples, 1)), axis=1)[:, :n_phrases].ravel()
    example = np.repeat(np.arange(n_examples), n_phrases)
    phrases = pd.DataFrame({"example": example, "image_index": target[example], "iou": 0.5, "pointing": 1.0})
    x1, y1 = (cell % SIDE) / SIDE, (cell // SIDE) / SIDE
    boxes = {"x1": x1, "y1": y1, "x2": x1 + 1 / SIDE, "y2": y1 + 1 / SIDE}
    regions = pd.DataFrame(
        {"example": example, "image_index": target[example], **boxes, "phrase": np.arange(len(cell))}
    )
    names = [f"{split}-{i}" for i in range(n_examples)]
    sizes = {"n_images": IMAGES, "grid_rows": IMAGES * SIDE, "grid_columns": SIDE}
    examples = pd.DataFrame({"id": names, "group_image": names, **sizes})
    identity = {"checkpoint": "c0ffee", "split": split}
    manifest = {"identity": identity, "identity_hash": f"hash-{split}-{seed}"}
    return FakeMaps(examples, phrases, regions, Path(f"runs/{split}"), manifest)


def own_cells(run: FakeMaps) -> np.ndarray:
    """The cell of each phrase on the canvas, int ``[P]``."""
    row = np.rint(run.regions["y1"] * SIDE).astype(int) + run.regions["image_index"] * SIDE
    return (row * SIDE + np.rint(run.regions["x1"] * SIDE).astype(int)).to_numpy()


def noise(run: FakeMaps, heads: int = 2, seed: int = 1) -> np.ndarray:
    """Maps that say nothing, ``[P, heads, cells]``."""
    return np.random.default_rng(seed).random((len(run.phrases), heads, CELLS))
