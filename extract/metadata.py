"""The tables beside the activations: examples, phrases with the model's own grounding, candidate regions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional

from extract.plan import Regions
from extract.tables import Columns, join_columns, length
from grounding.examples import Example, Prediction, ReferenceGame, Region
from grounding.metrics.phrases import PhraseItem, phrase_scores
from grounding.models.answers import target_point
from grounding.models.base import Batch

GROUPS = ("image", "caption", "annotation", "tangram")
CELLS_A_TOKEN = 8  # heatmap cells stored along the side of an image token: what the aligner head computes
_BOX = ("x1", "y1", "x2", "y2")
_PREDICTED = tuple(f"predicted_{name}" for name in _BOX)
_EXAMPLE = {
    "id": "str",
    "caption": "str",
    "split": "str",
    **{f"group_{name}": "str" for name in GROUPS},
    "task": "str",
    "n_images": "int64",
    "grid_rows": "int64",
    "grid_columns": "int64",
    "target_index": "int64",
    "target_x": "float64",
    "target_y": "float64",
    "answer_index": "int64",
    "answer_x": "float64",
    "answer_y": "float64",
    "task_score": "float64",
    "task_correct": "bool",
    "text_tokens": "int64",
}
_PHRASE = {
    "id": "str",
    "example": "int64",
    "type": "str",
    "text": "str",
    "spans": "str",
    "image_index": "int64",
    "iou": "float64",
    "pointing": "float64",
    **dict.fromkeys(_PREDICTED, "float64"),
    "predicted_image_index": "int64",
    "heatmap_rows": "int64",
    "heatmap_columns": "int64",
}
_REGION = {
    "example": "int64",
    "image_index": "int64",
    **dict.fromkeys(_BOX, "float64"),
    "kind": "str",
    "phrase": "int64",
}


@dataclass
class ShardTables:
    """Rows of a shard's tables, added batch by batch; row numbers count within the shard.

    threshold: of heatmaps. examples, phrases, regions, text_offsets: one entry a batch.
    """

    threshold: float | None = None
    examples: list[Columns] = field(default_factory=list)
    phrases: list[Columns] = field(default_factory=list)
    regions: list[Columns] = field(default_factory=list)
    text_offsets: list[np.ndarray] = field(default_factory=list)
    dropped_phrases: list[list[str]] = field(default_factory=list)

    def add(
        self,
        batch: Batch,
        grids: Sequence[tuple[int, int]],
        regions: Regions,
        predictions: Sequence[Prediction],
        points: np.ndarray,
    ) -> np.ndarray:
        """Add the rows of a batch; returns the heatmaps of its phrases, float16 ``[cells]``, for the caller to store.

        batch: on the CPU. points: float ``[B, 2]``, the answers on the real canvas.
        """
        first_example, first_phrase = sum(map(length, self.examples)), sum(map(length, self.phrases))
        rows, text_tokens = [], batch.text_mask.sum(1).tolist()
        for b, (example, prediction) in enumerate(zip(batch.examples, predictions, strict=True)):
            rows.append(_example_row(example, prediction, grids[b], points[b], text_tokens[b]))
            kept = {phrase.phrase_id for phrase in prediction.phrases}
            lost = (p.id for p in example.phrases if p.id in batch.dropped_phrases and p.id not in kept)
            self.dropped_phrases += [[example.id, phrase_id] for phrase_id in lost]
        self.examples.append(_typed({name: [row[name] for row in rows] for name in _EXAMPLE}, _EXAMPLE))
        self.text_offsets.append(batch.offsets[batch.text_mask].numpy().astype(np.int32))
        items = _phrase_items(batch, predictions)
        heatmaps = [_heatmap(item, grids[b][0]) for b, item in zip(batch.phrase_example.tolist(), items, strict=True)]
        phrases = _phrase_columns(items, batch.phrase_example.numpy() + first_example, heatmaps)
        self.phrases.append(phrases | score_phrases(items, self.threshold))
        self.regions.append(_region_columns(regions, first_example, first_phrase))
        return np.concatenate([np.zeros(0, dtype=np.float16), *(heatmap.reshape(-1) for heatmap in heatmaps)])

    def all_text_offsets(self) -> np.ndarray:
        """Caption characters of the text tokens of all examples, int32 ``[tokens, 2]``."""
        return np.concatenate([np.zeros((0, 2), dtype=np.int32), *self.text_offsets])

    def tables(self) -> dict[str, Columns]:
        """The tables ``examples``, ``phrases`` and ``regions``, with the same columns however few rows there are."""
        parts = {"examples": self.examples, "phrases": self.phrases, "regions": self.regions}
        kinds = {"examples": _EXAMPLE, "phrases": _PHRASE, "regions": _REGION}
        empty = {name: _typed({column: [] for column in columns}, columns) for name, columns in kinds.items()}
        return {name: join_columns([empty[name], *parts[name]]) for name in parts}


def _typed(columns: Mapping[str, Sequence[object]], kinds: Mapping[str, str]) -> Columns:
    """Columns as arrays of the kinds they are stored as."""
    dtypes = {name: object if kind == "str" else kind for name, kind in kinds.items()}
    return {name: np.array(values, dtype=dtypes[name]) for name, values in columns.items()}


def _region_columns(regions: Regions, first_example: int, first_phrase: int) -> Columns:
    """Regions of a batch, their row numbers moved on to where the batch begins in its shard."""
    extra = regions.phrase < 0
    return {
        "example": regions.example + first_example,
        "image_index": regions.image_index,
        **dict(zip(_BOX, regions.boxes.astype(np.float64).T, strict=True)),
        "kind": np.where(extra, "extra", "annotated").astype(object),
        "phrase": np.where(extra, -1, regions.phrase + first_phrase),
    }


def _example_row(
    example: Example, prediction: Prediction, grid: tuple[int, int], point: np.ndarray, text_tokens: int
) -> dict[str, object]:
    game, answered = isinstance(example.task, ReferenceGame), prediction.answers(example)
    x, y = target_point(example)
    groups = {f"group_{name}": example.groups.get(name, "") for name in GROUPS}
    return groups | {
        "id": example.id,
        "caption": example.caption,
        "split": example.split,
        "task": "game" if game else "sdr",
        "n_images": len(example.images),
        "grid_rows": grid[0],
        "grid_columns": grid[1],
        "target_index": example.target_index,
        "target_x": x,
        "target_y": y,
        "answer_index": prediction.answer if game and answered else -1,
        "answer_x": float(point[0]) if answered else np.nan,
        "answer_y": float(point[1]) if answered else np.nan,
        "task_score": prediction.score if answered else np.nan,
        "task_correct": answered and prediction.correct,
        "text_tokens": text_tokens,
    }


def _phrase_items(batch: Batch, predictions: Sequence[Prediction]) -> list[PhraseItem]:
    """The phrases of the batch, in its order, each with its prediction."""
    predicted = [{phrase.phrase_id: phrase for phrase in prediction.phrases} for prediction in predictions]
    items = []
    for b, phrase_id in zip(batch.phrase_example.tolist(), batch.phrase_ids, strict=True):
        example = batch.examples[b]
        phrase = next(p for p in example.phrases if p.id == phrase_id)
        items.append(PhraseItem(example, phrase, predicted[b][phrase_id]))
    return items


def _heatmap(item: PhraseItem, token_rows: int) -> np.ndarray:
    """The heatmap of a phrase as it is stored, float16 ``[N, h, w]``; no cells where it has ranked boxes."""
    heatmap = item.prediction.heatmap
    return np.zeros((0, 0, 0), dtype=np.float16) if heatmap is None else shrink_heatmap(heatmap, token_rows)


def _phrase_columns(items: Sequence[PhraseItem], example: np.ndarray, heatmaps: Sequence[np.ndarray]) -> Columns:
    """What is known of phrases beside their scores; example: int64 ``[P]``, row numbers."""
    phrases = [item.phrase for item in items]
    columns: dict[str, list[object]] = {
        "id": [phrase.id for phrase in phrases],
        "type": [phrase.type for phrase in phrases],
        "text": [item.phrase.text(item.example.caption) for item in items],
        "spans": [json.dumps(phrase.spans) for phrase in phrases],
        "image_index": [phrase.image_index for phrase in phrases],
        "heatmap_rows": [heatmap.shape[1] for heatmap in heatmaps],
        "heatmap_columns": [heatmap.shape[2] for heatmap in heatmaps],
    }
    return _typed(columns, _PHRASE) | {"example": example}


def score_phrases(items: Sequence[PhraseItem], threshold: float | None) -> Columns:
    """iou, pointing and best box of each phrase, as ``grounding.metrics.phrases`` measures them.

    iou and pointing are NaN for a phrase without regions, and where nothing was predicted: nothing is known of them.
    Without a threshold, the iou of a heatmap is NaN and its predicted box too (image -1).
    """
    anywhere = (Region((0.0, 0.0, 1.0, 1.0)),)  # a stand-in, so that a phrase without regions has a box
    whole = [i if i.phrase.regions else replace(i, phrase=replace(i.phrase, regions=anywhere)) for i in items]
    scores = phrase_scores(whole, 0.0 if threshold is None else threshold, protocols=("all",))
    silent = [item.prediction.boxes is None and item.prediction.heatmap is None for item in items]
    unknown = np.array([not item.phrase.regions for item in items], dtype=bool) | np.array(silent, dtype=bool)
    mapped = np.array([item.prediction.heatmap is not None and threshold is None for item in items], dtype=bool)
    scores["iou"][unknown | mapped] = np.nan
    scores["pointing"][unknown] = np.nan
    for name in _PREDICTED:
        scores[name][mapped] = np.nan
    scores["predicted_image_index"][mapped] = -1
    return scores


def shrink_heatmap(heatmap: np.ndarray, token_rows: int) -> np.ndarray:
    """A heatmap ``[N, h, w]`` at the resolution it was computed in, as float16 shares of its highest cell.

    Models enlarge their maps to pixels; here pixels are averaged into cells, ``CELLS_A_TOKEN`` along the side of an
    image token (``token_rows`` over all N candidates). Shares of the peak keep what float16 would lose of a map
    that sums to one.
    """
    n_images, height, width = heatmap.shape
    side = max(1, height * n_images // (token_rows * CELLS_A_TOKEN))
    if height % side or width % side:
        side = 1
    cells = functional.avg_pool2d(torch.from_numpy(heatmap), side)
    return (cells / cells.amax()).half().numpy()
