"""A run made of small arrays, with the reader's interface, and the examples its pixels come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from grounding.errors import BadInput
from grounding.examples import Example, Phrase, ReferenceGame, Region, SpatialDescription

SIDE = 64
COLOURS = {"red": "#d03a2b", "blue": "#2f5fd0", "green": "#3a9a4a", "yellow": "#e2c22f", "purple": "#8747a8"}
SHAPES = ("circle", "square", "triangle")
SITES = ("block.0", "block.1", "block.2")


@dataclass
class FakeRun:
    """What figures read of a run: tables, attention ``[heads, rows, columns]``, heatmaps ``[N, h, w]``."""

    examples: pd.DataFrame
    phrases: pd.DataFrame
    regions: pd.DataFrame
    attentions: dict[int, np.ndarray] = field(default_factory=dict)
    heatmaps: dict[int, np.ndarray] = field(default_factory=dict)
    relevance: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    manifest: dict = field(default_factory=lambda: {"benchmark": "fake", "split": "dev"})
    path: Path = Path("runs/fake")
    site_names: tuple[str, ...] = SITES

    @property
    def sites(self):
        """The sites, with attention among their views if there is any; relevance at the first two alone."""
        views = ("phrase", "region", *(["attention"] if self.attentions else []))
        return [
            SimpleNamespace(
                name=s, stage="block", layer=i, streams=("text", "image"),
                views=(*views, *(self.relevance if i < 2 else ())),
            )
            for i, s in enumerate(self.site_names)
        ]  # fmt: skip

    def attention(self, site: str, phrase_row: int) -> np.ndarray:
        """Planted attention, the same at every site."""
        if phrase_row not in self.attentions:
            raise BadInput(f"attention of {site!r} is not stored")
        return self.attentions[phrase_row]

    def maps(self, site: str, view: str, phrase_row: int) -> np.ndarray:
        """Planted maps of a view; attention is the same at every site."""
        return self.relevance[view][phrase_row] if view in self.relevance else self.attention(site, phrase_row)

    def completeness(self, site: str, view: str) -> np.ndarray:
        """Every score changes by 2, and attributions miss 0.1 of it."""
        return np.tile(np.float32([2.0, 0.1]), (len(self.phrases), 1))

    def heatmap(self, phrase_row: int) -> np.ndarray | None:
        """Planted heatmap, if there is one."""
        return self.heatmaps.get(phrase_row)

    path = Path("fake")

    @property
    def cell_offsets(self) -> np.ndarray:
        """First cell of each phrase, and the end of the last."""
        lengths = [self.attentions[row][0].size if self.attentions else 0 for row in range(len(self.phrases))]
        return np.concatenate([[0], np.cumsum(lengths)])

    def count(self, site: str, view: str) -> int:
        """Cells of all phrases."""
        return int(self.cell_offsets[-1])

    def read(self, site: str, view: str, rows) -> np.ndarray:
        """Planted attention, cell by cell, ``[n, heads]``."""
        return np.concatenate([maps.reshape(len(maps), -1).T for _, maps in sorted(self.attentions.items())])[rows]

    def release(self) -> None:
        """There is nothing to give back."""


def scene(rng: np.random.Generator, side: int = SIDE, count: int = 4) -> tuple[np.ndarray, list[tuple[str, tuple]]]:
    """A picture of coloured shapes, and (words, relative box) of each."""
    image = Image.new("RGB", (side, side), "#f4f1ea")
    draw, objects = ImageDraw.Draw(image), []
    quarters = rng.permutation(4)[:count]
    for quarter in quarters:
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        size = int(rng.integers(side // 5, side // 2 - 4))
        x = int((quarter % 2) * side // 2 + rng.integers(1, side // 2 - size))
        y = int((quarter // 2) * side // 2 + rng.integers(1, side // 2 - size))
        box = (x, y, x + size, y + size)
        if shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        else:
            draw.polygon([(x + size / 2, y), (x + size, y + size), (x, y + size)], fill=COLOURS[colour])
        objects.append((f"{colour} {shape}", tuple(v / side for v in (x, y, x + size + 1, y + size + 1))))
    return np.asarray(image), objects


def make_example(number: int, candidates: int = 6, phrases: int = 3, caption: str | None = None) -> Example:
    """A reference game whose target holds the phrases' objects; ``caption`` is put before the phrases."""
    rng = np.random.default_rng(number)
    scenes = [scene(rng) for _ in range(candidates)]
    target = int(rng.integers(candidates))
    text, named = caption if caption is not None else "there is", []
    for index in range(phrases):
        words, box = scenes[target][1][index % 4]
        text += " and a " if index else " a "
        named.append(
            Phrase(
                f"{number}-{index}", words.split()[1], ((len(text), len(text) + len(words)),), (Region(box),), target
            )
        )
        text += words
    return Example(
        f"fake/{number:03d}", "dev", tuple(pixels for pixels, _ in scenes), text + ".", tuple(named),
        ReferenceGame(target), {"image": str(number)},
    )  # fmt: skip


def make_panorama(number: int) -> Example:
    """A spatial description over one wide image."""
    rng = np.random.default_rng(number)
    parts = [scene(rng) for _ in range(5)]
    wide = np.concatenate([pixels for pixels, _ in parts], axis=1)
    words, (x1, y1, x2, y2) = parts[3][1][0]
    region = Region(((3 + x1) / 5, y1, (3 + x2) / 5, y2))
    caption = f"the bear sits right on top of the {words}"
    begin = caption.index(words)
    phrase = Phrase(f"{number}-0", "landmark", ((begin, begin + len(words)),), (region,))
    point = ((region.box[0] + region.box[2]) / 2, region.box[1])
    return Example(f"wide/{number:03d}", "dev", (wide,), caption, (phrase,), SpatialDescription(point), {"image": "0"})


def make_run(examples: list[Example], heatmaps: bool = False, attention: bool = True, seed: int = 0) -> FakeRun:
    """A run over the examples: every other task answer is wrong, predicted boxes wander, maps peak somewhere."""
    rng = np.random.default_rng(seed)
    rows = {"examples": [], "phrases": [], "regions": []}
    run = FakeRun(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
    for number, example in enumerate(examples):
        rows["examples"].append(_example_row(example, number % 2 == 0, rng))
        for phrase in example.phrases:
            row = len(rows["phrases"])
            good = rng.random() < 0.6
            rows["phrases"].append(_phrase_row(example, phrase, number, good, rng))
            for region in phrase.regions:
                x1, y1, x2, y2 = region.box
                place = {"image_index": phrase.image_index, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
                rows["regions"].append({"example": number, "kind": "annotated", "phrase": row, **place})
            if attention:
                run.attentions[row] = (
                    rng.dirichlet(np.full(len(example.images) * 16, 0.1), 4).reshape(4, -1, 4).astype(np.float32)
                )
            if heatmaps:
                run.heatmaps[row] = _heatmap(example, phrase, good, rng)
    run.examples, run.phrases, run.regions = (pd.DataFrame(rows[name]) for name in ("examples", "phrases", "regions"))
    rows_of = {row: heatmap.shape[1] for row, heatmap in run.heatmaps.items()}
    run.phrases["heatmap_rows"] = [rows_of.get(row, 0) for row in run.phrases.index]
    return run


def _example_row(example: Example, correct: bool, rng: np.random.Generator) -> dict:
    row = {"id": example.id, "caption": example.caption, "split": "dev", "n_images": len(example.images),
           "group_image": example.groups["image"], "grid_rows": 4 * len(example.images), "grid_columns": 4,
           "task_correct": correct, "task_score": float(rng.normal(0.5 if correct else -0.3, 0.3))}  # fmt: skip
    if isinstance(example.task, ReferenceGame):
        wrong = (example.target_index + 1) % len(example.images)
        answer = example.target_index if correct else wrong
        if not example.has_task:
            row, answer = row | {"task_correct": False, "task_score": np.nan}, -1
        point = {"target_x": np.nan, "target_y": np.nan, "answer_x": np.nan, "answer_y": np.nan}
        return {**row, "task": "game", "target_index": example.target_index, "answer_index": answer, **point}
    x, y = example.task.target_xy
    return {**row, "task": "sdr", "target_index": -1, "answer_index": -1, "target_x": x, "target_y": y,
            "answer_x": x if correct else 1 - x, "answer_y": y}  # fmt: skip


def _phrase_row(example: Example, phrase: Phrase, number: int, good: bool, rng: np.random.Generator) -> dict:
    x1, y1, x2, y2 = phrase.regions[0].box
    dx, dy = rng.normal(0, 0.03 if good else 0.3, 2)
    return {"id": phrase.id, "example": number, "type": phrase.type, "text": phrase.text(example.caption),
            "spans": json.dumps(phrase.spans), "image_index": phrase.image_index,
            "iou": float(rng.uniform(0.55, 0.95) if good else rng.uniform(0, 0.4)), "pointing": int(good),
            "predicted_x1": x1 + dx, "predicted_y1": y1 + dy, "predicted_x2": x2 + dx, "predicted_y2": y2 + dy,
            "predicted_image_index": phrase.image_index if good else int(rng.integers(len(example.images))),
            }  # fmt: skip


def _heatmap(example: Example, phrase: Phrase, good: bool, rng: np.random.Generator) -> np.ndarray:
    x1, y1, x2, y2 = phrase.regions[0].box
    index = phrase.image_index if good else int(rng.integers(len(example.images)))
    across, down = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(16) + 0.5) / 16)
    distance = (across - (x1 + x2) / 2) ** 2 + (down - (y1 + y2) / 2) ** 2
    heatmap = rng.uniform(0, 0.05, (len(example.images), 16, 16))
    heatmap[index] += np.exp(-distance / 0.02)
    return (heatmap / heatmap.sum()).astype(np.float32)


def make_sweep(sites: int = 12, stage: str = "block", scores: tuple[str, ...] = ("choice_accuracy",)) -> pd.DataFrame:
    """A tidy table of a sweep: two probes rising over the layers, their controls near chance."""
    rows = []
    for score in scores:
        for layer in range(sites):
            for probe, top in (("linear", 0.75), ("mlp", 0.82)):
                for condition in ("alignment", "control-labels"):
                    rise = (top - 0.25) * (1 - np.exp(-layer / 4)) if condition == "alignment" else 0.02
                    value = 0.25 + rise
                    where = {"site": f"{stage}.{layer}", "stage": stage, "layer": layer}
                    what = {"probe": probe, "condition": condition, "score": score}
                    figures = {"value": value, "low": value - 0.03, "high": value + 0.03, "chance": 0.22}
                    rows.append({**where, **what, **figures, "n_phrases": 420, "n_images": 130})
    return pd.DataFrame(rows)
