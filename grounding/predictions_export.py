"""Predictions as one JSON file in COCO's terms, so that other programs can read them, and write theirs like them.

The file is an object:

* ``images``: ``id``, ``width``, ``height`` (pixels that its boxes are given in; 1 and 1 for relative ones),
  ``example_id`` and ``image_index`` (which candidate). An image that nothing is predicted in may be left out.
* ``annotations``: results as COCO has them: ``image_id``, ``category_id`` (1), ``bbox`` (x, y, width, height in
  pixels), ``score``, and ``phrase_id``. The boxes of a phrase are ranked by score. A heatmap has one for each candidate
  that it passes ``threshold`` in, with ``segmentation`` (compressed RLE of the map above the threshold) and ``peaks``
  (rows and columns of the highest cells of all).
* ``answers``, one an example: ``example_id``, ``answer`` (candidate, or relative [x, y]), ``score`` (higher is better),
  ``correct`` (if absent: the target, or within 80 pixels of 3712 x 800), ``phrases`` (ids of all that are predicted,
  also without any box; by default those of ``annotations``).
* ``threshold`` of heatmaps, needed where there are any; ``dropped_phrases`` (pairs of example and phrase: beyond a
  model's token limit) and ``skipped`` (``id``, ``reason``), which may be absent.

``docs/predictions.md`` has an example. ``pycocotools.coco.COCO.loadRes`` takes the list of annotations as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from grounding.benchmarks.base import Skipped
from grounding.errors import BadInput
from grounding.examples import Example, PhrasePrediction, Prediction
from grounding.folders import make_folder
from grounding.metrics.heatmaps import Threshold, check_threshold
from grounding.predictions import Predictions, match


class PredictionWriter:
    """Takes predictions batch by batch, keeps no heatmap, and writes the file at the end.

    threshold: of heatmaps, which are stored as what passes it; needed where there are any.
    """

    def __init__(self, threshold: Threshold | float | None = None):
        self.threshold = None if threshold is None else check_threshold(threshold)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        self._skipped: list[Skipped] = []
        self._dropped: list[tuple[str, str]] = []

    def add(self, examples: Sequence[Example], predictions: Predictions) -> None:
        """The predictions of some examples. Raises BadInput as ``grounding.predictions.match`` does."""
        self._skipped += predictions.skipped
        self._dropped += predictions.dropped_phrases
        if not predictions:
            return
        for example, prediction in match(examples, predictions, need_answers=False)[0]:
            self._add(example, prediction)

    def write(self, path: Path | str) -> None:
        """Write the file; it is complete before it gets its name."""
        content = {
            "threshold": self.threshold,
            "images": self._images,
            "annotations": self._annotations,
            "answers": self._answers,
            "dropped_phrases": self._dropped,
            "skipped": [asdict(skip) for skip in self._skipped],
        }
        path = Path(path)
        make_folder(path.parent, "folder of export")
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)

    def _add(self, example: Example, prediction: Prediction) -> None:
        count = len(example.images)
        height, width = _image_size(prediction, count)
        self._images += [
            {"id": f"{example.id}#{i}", "width": width, "height": height, "example_id": example.id, "image_index": i}
            for i in range(count)
        ]
        for phrase in prediction.phrases:
            record = self._map_records if phrase.heatmap is not None else _box_records
            self._annotations += [
                {"image_id": f"{example.id}#{index}", "category_id": 1, "phrase_id": phrase.phrase_id, **rest}
                for index, rest in record(phrase, (height, width))
            ]
        answered = {}
        if prediction.answer is not None:
            chosen = prediction.answer if np.ndim(prediction.answer) == 0 else np.asarray(prediction.answer, float)
            answered = {"answer": np.asarray(chosen).tolist(), "score": float(prediction.score)}
            answered |= {"correct": bool(prediction.correct)}
        phrases = [phrase.phrase_id for phrase in prediction.phrases]
        self._answers.append({"example_id": example.id, **answered, "phrases": phrases})

    def _map_records(self, phrase: PhrasePrediction, size: tuple[float, float]) -> list[tuple[int, dict[str, Any]]]:
        if self.threshold is None:
            raise BadInput(f"phrase {phrase.phrase_id!r} has a heatmap: a threshold is needed to export it, in [0, 1)")
        heatmap = np.asarray(phrase.heatmap, np.float32)
        highest = heatmap.max()
        passed = heatmap / highest > np.float32(self.threshold)
        rows, columns = passed.shape[1:]
        records = []
        for index in np.flatnonzero(passed.any((1, 2))).tolist():
            mask = coco_mask.encode(np.asfortranarray(passed[index].astype(np.uint8)))
            scale = np.array([size[1] / columns, size[0] / rows] * 2)
            record = {
                "bbox": (coco_mask.toBbox(mask) * scale).tolist(),
                "score": float(heatmap[index].max()),
                "segmentation": {"size": [rows, columns], "counts": mask["counts"].decode("ascii")},
                "peaks": np.argwhere(heatmap[index] == highest).tolist(),
            }
            records.append((index, record))
        return records


def _box_records(phrase: PhrasePrediction, size: tuple[float, float]) -> list[tuple[int, dict[str, Any]]]:
    """(candidate, record) of each box; without scores, ranks stand in for them."""
    boxes = np.asarray(phrase.boxes, np.float64)
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1) * ([size[1], size[0]] * 2)
    scores = 1 / np.arange(1, len(boxes) + 1) if phrase.scores is None else np.asarray(phrase.scores, np.float64)
    index = np.zeros(0, int) if phrase.image_index is None else np.asarray(phrase.image_index)
    rows = zip(index.tolist(), boxes_xywh.tolist(), scores.tolist(), strict=True)
    return [(candidate, {"bbox": box, "score": score}) for candidate, box, score in rows]


def _image_size(prediction: Prediction, count: int) -> tuple[int, int]:
    """Height and width of each candidate as the model saw it; 1 and 1 where that is not known."""
    if prediction.canvas_size is None:
        return 1, 1
    height, width = prediction.canvas_size
    return height // count, width
