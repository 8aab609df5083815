"""Any program's predictions, read from a JSON file of the form that ``grounding.predictions_export`` tells."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from grounding.benchmarks.base import Skipped
from grounding.config_files import read_json_object
from grounding.errors import BadInput
from grounding.examples import Example, PhrasePrediction, Prediction, ReferenceGame
from grounding.metrics.heatmaps import check_threshold
from grounding.metrics.tasks import sdr_solved
from grounding.predictions import Predictions

Record = Mapping[str, Any]
_HUGE = 1e300  # no number of a file is as large: beyond it, integers are no floats any more
_OVERSHOOT = 1.05  # how far a box may leave its image before its format is doubted


@dataclass(frozen=True)
class _Image:
    """Where an image of the file belongs, and how large it is in the file's pixels."""

    example: str
    index: int
    width: float
    height: float


def read_predictions(path: Path | str, examples: Sequence[Example]) -> tuple[Predictions, float | None]:
    """Predictions for ``examples``, and the threshold that heatmaps were stored at (None for boxes).

    Raises BadInput, naming file and record, for a file that is not there, no UTF-8 or half-written, fields that lack or
    have the wrong type, ids that nothing else names, and boxes that look like another format (range and order). What is
    missing or impossible beyond that, ``grounding.predictions.match`` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"predictions {str(path)!r} is not a file")
    content = read_json_object(path)
    by_id = {example.id: example for example in examples}
    listed = _by_id(_records(content, "images", path), "id", (str, int))
    images = {name: _image(record, where, by_id) for name, (record, where) in listed.items()}
    found: dict[tuple[str, str], list[tuple[_Image, Record, str]]] = defaultdict(list)
    for record, where in _records(content, "annotations", path):
        image_id = str(_field(record, "image_id", (str, int), where))
        if image_id not in images:
            raise BadInput(f"{where}: image_id {image_id!r} is none of the {len(images)} images of the file")
        phrase = str(_field(record, "phrase_id", (str, int), where))
        found[images[image_id].example, phrase].append((images[image_id], record, where))
    _check_formats([one for of_phrase in found.values() for one in of_phrase], path)
    stored = content.get("threshold")
    threshold = None if stored is None else check_threshold(_field(content, "threshold", (int, float), str(path)))
    answers = _by_id(_records(content, "answers", path), "example_id", str)
    wanted = [*answers, *dict.fromkeys(example for example, _ in found if example not in answers)]
    predictions = Predictions(
        _prediction(name, by_id.get(name), answers.get(name), found, images, threshold or 0.0) for name in wanted
    )
    if threshold is None and any(phrase.heatmap is not None for given in predictions for phrase in given.phrases):
        raise BadInput(f"{path}: threshold is missing, at which segmentations were cut; accepted: 0 <= threshold < 1")
    predictions.dropped_phrases = _pairs(content, path)
    skips = _records(content, "skipped", path, needed=False)
    predictions.skipped = [Skipped(_field(r, "id", str, w), _field(r, "reason", str, w)) for r, w in skips]
    return predictions, threshold


def _prediction(
    name: str,
    example: Example | None,
    answer: tuple[Record, str] | None,
    found: Mapping[tuple[str, str], list[tuple[_Image, Record, str]]],
    images: Mapping[str, _Image],
    threshold: float,
) -> Prediction:
    if example is None:
        # Of no example that is asked for: refused, whatever it holds.
        return Prediction(name, None, math.nan, False, ())
    record, where = answer or ({}, "")
    default = [phrase for owner, phrase in found if owner == name]
    listed = _field(record, "phrases", list, where) if "phrases" in record else default
    for phrase in default:
        if phrase not in map(str, listed):
            raise BadInput(f"{found[name, phrase][0][2]}: phrase_id {phrase!r} is not among the phrases of {where}")
    count = len(example.images)
    phrases = tuple(_phrase(str(p), found.get((name, str(p)), []), count, threshold) for p in listed)
    sizes = {(image.height, image.width) for image in images.values() if image.example == name}
    height, width = sizes.pop() if len(sizes) == 1 else (1.0, 1.0)
    canvas = None if (height, width) == (1, 1) else (round(height * count), round(width))
    if record.get("answer") is None:
        return Prediction(name, None, math.nan, False, phrases, canvas)
    chosen = _field(record, "answer", (int, list), where)
    score = float(_field(record, "score", (int, float), where))
    point = tuple(chosen) if isinstance(chosen, list) else chosen
    correct = _field(record, "correct", bool, where) if "correct" in record else _is_right(example, point)
    return Prediction(name, point, score, correct, phrases, canvas)


def _is_right(example: Example, answer: Any) -> bool:
    if isinstance(example.task, ReferenceGame):
        return bool(answer == example.task.target_index)
    return np.shape(answer) == (2,) and sdr_solved(answer, example.task.target_xy)


def _phrase(name: str, found: Sequence[tuple[_Image, Record, str]], count: int, threshold: float) -> PhrasePrediction:
    if any("segmentation" in record for _, record, _ in found):
        return PhrasePrediction(name, heatmap=_heatmap(found, count, threshold))
    scores = np.array([float(_field(record, "score", (int, float), where)) for _, record, where in found])
    boxes = np.array([_relative(one) for one in found]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    index = np.array([image.index for image, _, _ in found], dtype=np.int64)
    order = np.argsort(-scores, kind="stable")
    return PhrasePrediction(name, boxes[order], index[order], scores[order])


def _heatmap(found: Sequence[tuple[_Image, Record, str]], count: int, threshold: float) -> np.ndarray:
    """A map float32 ``[N, h, w]`` that passes the threshold where the masks are, highest at the peaks."""
    masks = []
    for image, record, where in found:
        mask = _field(record, "segmentation", dict, where)
        try:
            masks.append((image.index, coco_mask.decode({"size": mask["size"], "counts": mask["counts"]})))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise BadInput(f"{where}: segmentation is no compressed RLE with size and counts: {error}") from None
    sizes = sorted({mask.shape for _, mask in masks})
    if len(sizes) > 1:
        raise BadInput(f"{found[0][2]}: masks of one phrase have sizes {sizes}; accepted: one size")
    heatmap = np.zeros((count, *sizes[0]), np.float32)
    for (index, mask), (_, record, where) in zip(masks, found, strict=True):
        heatmap[index][mask > 0] = (1 + threshold) / 2 if "peaks" in record else 1.0
        peaks = _field(record, "peaks", list, where) if "peaks" in record else []
        inside = np.argwhere(mask).tolist() if peaks else []
        for peak in peaks:
            if peak not in inside:
                raise BadInput(f"{where}: peak {peak} is not in its segmentation; accepted: [row, column] of a cell")
            heatmap[index][tuple(peak)] = 1.0
    return heatmap


def _relative(one: tuple[_Image, Record, str]) -> list[float]:
    """x, y, width, height as shares of the image."""
    image, record, where = one
    box = _field(record, "bbox", list, where)
    if len(box) != 4 or not all(_is_number(value) for value in box):
        raise BadInput(f"{where}: bbox is {str(box)[:80]}; accepted: [x, y, width, height], finite numbers")
    x, y, width, height = box
    return [x / image.width, y / image.height, width / image.width, height / image.height]


def _check_formats(found: Sequence[tuple[_Image, Record, str]], path: Path) -> None:
    """BadInput, with a hint, where the boxes of the file, taken together, look like another format.

    Those in pixels, and those of images of 1 x 1, which are relative, are each taken by themselves.
    """
    boxed = [one for one in found if "segmentation" not in one[1]]
    in_pixels = [one for one in boxed if max(one[0].width, one[0].height) > 1]
    accepted = "accepted: x, y, width, height, in pixels of the image"
    for group in (in_pixels, [one for one in boxed if max(one[0].width, one[0].height) <= 1]):
        boxes = np.array([_relative(one) for one in group]).reshape(-1, 4)
        if not len(boxes):
            continue
        negative = (boxes[:, 2:] < 0).any(1)
        if negative.any():
            raise BadInput(f"{group[int(negative.argmax())][2]}: bbox has a negative width or height; {accepted}")
        sizes = np.array([(image.width, image.height) * 2 for image, _, _ in group])
        if sizes.min() > 2 and (boxes * sizes).max() <= _OVERSHOOT:
            raise BadInput(f"{path}: every bbox is within 0..1, so they look relative; {accepted} (or images of 1 x 1)")
        outside = (boxes[:, :2] + boxes[:, 2:] > _OVERSHOOT).any(1)
        also_outside = (boxes[:, 2:] > _OVERSHOOT).any(1)  # if they were corners; models overshoot
        if (boxes[:, 2:] > boxes[:, :2]).all() and also_outside.sum() < outside.sum():
            where = group[int(outside.argmax())][2]
            raise BadInput(f"{where}: bbox leaves its image, and all look like (x1, y1, x2, y2); {accepted}")


def _image(record: Record, where: str, examples: Mapping[str, Example]) -> _Image:
    size = {name: float(_field(record, name, (int, float), where)) for name in ("width", "height")}
    if min(size.values()) <= 0:
        raise BadInput(f"{where}: size {size} is impossible; accepted: above 0 (1 and 1 for relative boxes)")
    index, example = _field(record, "image_index", int, where), _field(record, "example_id", str, where)
    if example in examples and not 0 <= index < len(examples[example].images):
        last = len(examples[example].images) - 1
        raise BadInput(f"{where}: image_index {index} is none of the candidates of {example!r}; accepted: 0..{last}")
    return _Image(example, index, **size)


def _pairs(content: Record, path: Path) -> list[tuple[str, str]]:
    """The dropped phrases of the file."""
    pairs = content.get("dropped_phrases", [])
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadInput(f"{path}: dropped_phrases is {str(pairs)[:40]!r}; accepted: a list of [example id, phrase id]")
    return [(str(example), str(phrase)) for example, phrase in pairs]


def _by_id(
    records: Sequence[tuple[Record, str]], name: str, kind: type | tuple[type, ...]
) -> dict[str, tuple[Record, str]]:
    """Records by a field that no two of them share."""
    found: dict[str, tuple[Record, str]] = {}
    for record, where in records:
        value = str(_field(record, name, kind, where))
        if value in found:
            raise BadInput(f"{where}: {name} {value!r} comes twice, before in {found[value][1]}; accepted: once")
        found[value] = record, where
    return found


def _records(content: Record, name: str, path: Path, needed: bool = True) -> list[tuple[Record, str]]:
    """The objects of a list of the file, each with where it is."""
    listed = content.get(name, None if needed else [])
    if not isinstance(listed, list) or not all(isinstance(record, dict) for record in listed):
        raise BadInput(f"{path}: {name} is {str(listed)[:40]!r}; accepted: a list of objects")
    return [(record, f"{path}, {name}[{place}]") for place, record in enumerate(listed)]


def _field(record: Record, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of the right type; true and false are no numbers, and numbers are finite."""
    value = record.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    right = isinstance(value, bool) if bool in kinds else isinstance(value, str | list | dict) or _is_number(value)
    if not (right and isinstance(value, kinds)):
        accepted = " or ".join(k.__name__ for k in kinds) + (", finite" if float in kinds else "")
        raise BadInput(f"{where}: {name} is {str(value)[:40]!r}; accepted: {accepted}")
    return value


def _is_number(value: object) -> bool:
    """Whether it is a finite number, and neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _HUGE
