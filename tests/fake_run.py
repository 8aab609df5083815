"""A run in memory with planted signals, for tests of what reads runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class FakeSite:
    name: str
    stage: str
    layer: int
    streams: tuple[str, ...] = ("text", "image")
    width: int = 16
    views: tuple[str, ...] = ("phrase", "region")
    phrase_partner: str | None = None
    region_partner: str | None = None


@dataclass
class FakeRun:
    """The attributes and methods of extract.reader.Run that probes use."""

    examples: pd.DataFrame
    phrases: pd.DataFrame
    regions: pd.DataFrame
    sites: list[FakeSite] = field(default_factory=list)
    rows: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    manifest: dict = field(default_factory=lambda: {"identity_hash": "fake", "identity": {"split": "dev"}})
    path: Path = Path("fake")

    def release(self) -> None:
        """There is nothing to give back."""

    def count(self, site: str, view: str) -> int:
        return len(self.rows[site, view])

    def read(self, site: str, view: str, rows: np.ndarray | None = None) -> np.ndarray:
        values = self.rows[site, view].astype(np.float32)
        return values if rows is None else values[rows]

    def tokens(self, site: str, example_row: int) -> np.ndarray:
        (count,) = {len(values) for (name, view), values in self.rows.items() if (name, view) == (site, "tokens")}
        return self.rows[site, "tokens"][: count // len(self.examples)]

    def site(self, name: str) -> FakeSite:
        return next(site for site in self.sites if site.name == name)

    def add_tokens(self, name: str, phrase: np.ndarray, tokens: np.ndarray, streams: tuple[str, ...]) -> None:
        """A site with phrase rows and, instead of regions, tokens of all examples."""
        stage, _, layer = name.partition(".")
        views = ("phrase", "tokens")
        self.sites.append(FakeSite(name, stage, int(layer or 0), streams, tokens.shape[1], views))
        self.rows[name, "phrase"], self.rows[name, "tokens"] = phrase.astype(np.float16), tokens.astype(np.float16)

    def add(self, name: str, phrase: np.ndarray, region: np.ndarray) -> None:
        stage, _, layer = name.partition(".")
        self.sites.append(FakeSite(name, stage, int(layer), width=phrase.shape[1]))
        self.rows[name, "phrase"] = phrase.astype(np.float16)
        self.rows[name, "region"] = region.astype(np.float16)


def make_run(n_examples: int = 200, n_phrases: int = 3, n_extra: int = 5, n_types: int = 6, seed: int = 0) -> FakeRun:
    """Tables without sites: one box a phrase and extra boxes, no two of which overlap; one image an example."""
    random = np.random.default_rng(seed)
    n_regions = n_phrases + n_extra
    side = 5
    example_of_region = np.repeat(np.arange(n_examples), n_regions)
    cells = random.permuted(np.tile(np.arange(side * side), (n_examples, 1)), axis=1)[:, :n_regions].ravel()
    x1, y1 = (cells % side) / side, (cells // side) / side
    slot = np.tile(np.arange(n_regions), n_examples)
    phrase = np.where(slot < n_phrases, example_of_region * n_phrases + slot, -1)
    # Annotated regions must not always come first: order would give the answer away.
    shuffled = np.lexsort((random.random(len(slot)), example_of_region))
    regions = pd.DataFrame(
        {
            "example": example_of_region,
            "image_index": 0,
            "x1": x1,
            "y1": y1,
            "x2": x1 + 0.18,
            "y2": y1 + 0.18,
            "kind": np.where(phrase >= 0, "annotated", "extra"),
            "phrase": phrase,
        }
    )
    regions = regions.iloc[shuffled].reset_index(drop=True)
    total = n_examples * n_phrases
    phrases = pd.DataFrame(
        {
            "id": [f"phrase-{i}" for i in range(total)],
            "example": np.repeat(np.arange(n_examples), n_phrases),
            "type": [f"type-{t}" for t in random.integers(n_types, size=total)],
            "image_index": 0,
            "iou": random.random(total),
            "pointing": 1.0,
        }
    )
    names = [f"image-{i}" for i in range(n_examples)]
    examples = pd.DataFrame(
        {
            "id": names,
            "group_image": names,
            "group_caption": names,
            "group_annotation": names,
            "group_tangram": "",
            "task_score": random.standard_normal(n_examples),
            "task_correct": random.random(n_examples) < 0.5,
            "n_images": 1,
            "grid_rows": side,
            "grid_columns": side,
            "text_tokens": 2,
        }
    )
    return FakeRun(examples, phrases, regions)


def twin_of(run: FakeRun) -> FakeRun:
    """The same tables and sites, at each of which there is noise."""
    rows = {
        (site.name, view): noisy
        for site in run.sites
        for view, noisy in zip(site.views, noise(run, site.width, 7), strict=True)
    }
    return replace(run, rows=rows, path=run.path.with_name(f"{run.path.name}-random"))


def noise(run: FakeRun, width: int = 16, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Phrase and region rows that say nothing."""
    random = np.random.default_rng(seed)
    return random.standard_normal((len(run.phrases), width)), random.standard_normal((len(run.regions), width))


def plant_alignment(run: FakeRun, width: int = 16, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A phrase row is a rotation of its region's row: a bilinear form finds it, a sum of two terms cannot."""
    phrase, region = noise(run, width, seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]
    owned = run.regions["phrase"].to_numpy()
    phrase[owned[owned >= 0]] = region[owned >= 0] @ rotation
    return phrase, region


def plant_patches(run: FakeRun, width: int = 16, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Phrase rows, and tokens (two of text, 25 patches an example): a phrase is a rotation of the patch of its box."""
    random = np.random.default_rng(seed)
    phrase = random.standard_normal((len(run.phrases), width))
    tokens = random.standard_normal((len(run.examples), 2 + 25, width))
    rotation = np.linalg.qr(random.standard_normal((width, width)))[0]
    own = run.regions[run.regions["phrase"] >= 0]
    phrase[own["phrase"]] = tokens[own["example"], 2 + patch_of(own)] @ rotation
    return phrase, tokens.reshape(-1, width)


def patch_of(regions: pd.DataFrame) -> np.ndarray:
    """The patch of the 5 x 5 grid that each box of ``make_run`` lies in."""
    column, row = ((regions[name] * 5 + 1e-6).astype(int).to_numpy() for name in ("x1", "y1"))
    return row * 5 + column


def plant_xor(run: FakeRun, width: int = 8, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A region is annotated when two coordinates of it agree in sign; of use in runs of one phrase an example."""
    phrase, region = noise(run, width, seed)
    region[:, :2] += 0.5 * np.sign(region[:, :2])
    belongs = run.regions["phrase"].to_numpy() >= 0
    agree = np.sign(region[:, 0]) == np.sign(region[:, 1])
    region[agree != belongs, 0] *= -1
    return phrase, region
