"""The tables beside the activations: examples, phrases with the model's own grounding, candidate regions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from extract.plan import Regions
from grounding.examples import Example, Prediction, Region
from grounding.metrics.phrases import PhraseItem, phrase_table
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

    threshold: of heatmaps. token_sites: sites whose tokens are stored. text_offsets: one array a batch.
    """

    threshold: float | None = None
    token_sites: list[str] = field(default_factory=list)
    examples: list[dict[str, object]] = field(default_factory=list)
    phrases: list[dict[str, object]] = field(default_factory=list)
    regions: list[pd.DataFrame] = field(default_factory=list)
    text_offsets: list[np.ndarray] = field(default_factory=list)
    dropped_phrases: list[list[str]] = field(default_factory=list)

    def add(
        self,
        batch: Batch,
        grids: Sequence[tuple[int, int]],
        regions: Regions,
        predictions: Sequence[Prediction],
        points: np.ndarray,
        tokens: Mapping[str, list[int]],
    ) -> np.ndarray:
        """Add the rows of a batch; returns the heatmaps of its phrases, float16 ``[cells]``, for the caller to store.

        batch: on the CPU. points: float ``[B, 2]``, the answers on the real canvas. tokens: site -> ``[B]`` stored
        tokens.
        """
        first_example, first_phrase = len(self.examples), len(self.phrases)
        for b, (example, prediction) in enumerate(zip(batch.examples, predictions, strict=True)):
            row = _example_row(example, prediction, grids[b], points[b], int(batch.text_mask[b].sum()))
            self.examples.append(row | {f"tokens_{site}": lengths[b] for site, lengths in tokens.items()})
            kept = {phrase.phrase_id for phrase in prediction.phrases}
            lost = (p.id for p in example.phrases if p.id in batch.dropped_phrases and p.id not in kept)
            self.dropped_phrases += [[example.id, phrase_id] for phrase_id in lost]
        self.text_offsets.append(batch.offsets[batch.text_mask].numpy().astype(np.int32))
        rows, heatmaps = _phrase_rows(batch, grids, predictions, self.threshold)
        self.phrases += [row | {"example": row["example"] + first_example} for row in rows]  # type: ignore[operator]
        self.regions.append(_region_frame(regions, first_example, first_phrase))
        return np.concatenate([np.zeros(0, dtype=np.float16), *heatmaps])

    def all_text_offsets(self) -> np.ndarray:
        """Caption characters of the text tokens of all examples, int32 ``[tokens, 2]``."""
        return np.concatenate([np.zeros((0, 2), dtype=np.int32), *self.text_offsets])

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables ``examples``, ``phrases`` and ``regions``, with the same columns however few rows there are."""
        lengths = {f"tokens_{site}": "int64" for site in self.token_sites}
        return {
            "examples": _frame(self.examples, _EXAMPLE | lengths),
            "phrases": _frame(self.phrases, _PHRASE),
            "regions": pd.concat(self.regions, ignore_index=True) if self.regions else _frame([], _REGION),
        }


def _frame(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({name: "object" if kind == "str" else kind for name, kind in columns.items()})


def _region_frame(regions: Regions, first_example: int, first_phrase: int) -> pd.DataFrame:
    """Regions of a batch, their row numbers moved on to where the batch begins in its shard."""
    extra = regions.phrase < 0
    columns = {
        "example": regions.example + first_example,
        "image_index": regions.image_index,
        **dict(zip(_BOX, regions.boxes.astype(np.float64).T, strict=True)),
        "kind": np.where(extra, "extra", "annotated").astype(object),
        "phrase": np.where(extra, -1, regions.phrase + first_phrase),
    }
    return pd.DataFrame(columns)


def _example_row(
    example: Example, prediction: Prediction, grid: tuple[int, int], point: np.ndarray, text_tokens: int
) -> dict[str, object]:
    game = isinstance(prediction.answer, int)
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
        "answer_index": prediction.answer if game else -1,
        "answer_x": float(point[0]),
        "answer_y": float(point[1]),
        "task_score": prediction.score,
        "task_correct": prediction.correct,
        "text_tokens": text_tokens,
    }


def _phrase_rows(
    batch: Batch, grids: Sequence[tuple[int, int]], predictions: Sequence[Prediction], threshold: float | None
) -> tuple[list[dict[str, object]], list[np.ndarray]]:
    """Rows of the batch's phrases, example numbers within the batch, and their heatmaps (flat, float16)."""
    items, rows, heatmaps = [], [], []
    predicted = [{phrase.phrase_id: phrase for phrase in prediction.phrases} for prediction in predictions]
    for b, phrase_id in zip(batch.phrase_example.tolist(), batch.phrase_ids, strict=True):
        example = batch.examples[b]
        phrase = next(p for p in example.phrases if p.id == phrase_id)
        item = PhraseItem(example, phrase, predicted[b][phrase_id])
        items.append(item)
        height, width = 0, 0
        if item.prediction.heatmap is not None:
            stored = shrink_heatmap(item.prediction.heatmap, grids[b][0])
            height, width = stored.shape[1:]
            heatmaps.append(stored.reshape(-1))
        rows.append(
            {
                "id": phrase.id,
                "example": b,
                "type": phrase.type,
                "text": phrase.text(example.caption),
                "spans": json.dumps(phrase.spans),
                "image_index": phrase.image_index,
                "heatmap_rows": height,
                "heatmap_columns": width,
            }
        )
    scores = score_phrases(items, threshold)
    return [row | score for row, score in zip(rows, scores, strict=True)], heatmaps


def score_phrases(items: Sequence[PhraseItem], threshold: float | None) -> list[dict[str, object]]:
    """iou, pointing and best box of each phrase, as ``grounding.metrics.phrases`` measures them.

    iou and pointing are NaN for a phrase without regions: nothing is known of them. Without a threshold, the iou
    of a heatmap is NaN and its predicted box too (image -1).
    """
    if not items:
        return []
    anywhere = (Region((0.0, 0.0, 1.0, 1.0)),)  # a stand-in, so that a phrase without regions has a box
    whole = [i if i.phrase.regions else replace(i, phrase=replace(i.phrase, regions=anywhere)) for i in items]
    table = phrase_table(whole, 0.0 if threshold is None else threshold)
    unknown = [not item.phrase.regions for item in items]
    mapped = [item.prediction.heatmap is not None and threshold is None for item in items]
    if any(unknown):
        table.loc[unknown, ["iou", "pointing"]] = np.nan
    if any(mapped):
        table.loc[mapped, ["iou", *_PREDICTED]] = np.nan
        table.loc[mapped, "predicted_image_index"] = -1
    names = ("iou", "pointing", *_PREDICTED, "predicted_image_index")
    rows = zip(*(table[name].tolist() for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


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
