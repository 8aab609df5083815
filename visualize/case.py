"""A case: one example of a run with everything that a figure shows of it, gathered from tables and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as coco_mask

from grounding.errors import BadInput
from grounding.examples import Box, Example, Point, ReferenceGame, Region, Span
from grounding.images import read_legible
from visualize.canvas import enlarge
from visualize.style import MISSING

if TYPE_CHECKING:
    import pandas as pd

    from extract.reader import Run

PLACEHOLDER_SIDE = 240


@dataclass(frozen=True)
class CasePhrase:
    """A phrase with its true regions and where the model puts it.

    row: its row in the run's table of phrases. image_index: the candidate its regions lie in.
    boxes, polygons: truth, relative to that candidate. masks: of visible pixels, bool ``[h, w]``, where they are known,
    at a size of their own. predicted: (candidate, box), None if there is none.
    iou, pointing: as stored; None where they are not. heatmap: float ``[N, h, w]`` or None.
    """

    row: int
    text: str
    spans: tuple[Span, ...]
    image_index: int
    boxes: tuple[Box, ...] = ()
    polygons: tuple[Sequence[Point], ...] = ()
    masks: tuple[np.ndarray, ...] = ()
    predicted: tuple[int, Box] | None = None
    iou: float | None = None
    pointing: bool | None = None
    heatmap: np.ndarray | None = None

    @property
    def drawn_apart(self) -> bool:
        """Whether the heatmap, stored as means over cells, is highest elsewhere than the whole one had its peak."""
        if self.heatmap is None:
            return False
        image, row, column = np.unravel_index(np.nan_to_num(self.heatmap).argmax(), self.heatmap.shape)
        _, height, width = self.heatmap.shape
        x, y = (column + 0.5) / width, (row + 0.5) / height
        # Of boxes, by which runs store it, outlines or not.
        inside = image == self.image_index and any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in self.boxes)
        elsewhere = self.predicted is not None and self.predicted[0] != image
        return elsewhere or (self.pointing is not None and self.pointing != inside)


@dataclass(frozen=True)
class Case:
    """One example, its task outcome and its phrases (in the table's order, which gives them their colours).

    images: uint8 RGB ``[height, width, 3]`` per candidate, a grey placeholder where ``missing`` tells why.
    target, answer: candidate of a reference game, or relative (x, y) of a spatial description. correct and score mean
    nothing where there is no answer.
    """

    row: int
    id: str
    caption: str
    images: tuple[np.ndarray, ...]
    target: int | Point
    answer: int | Point | None
    correct: bool
    score: float
    phrases: tuple[CasePhrase, ...]
    missing: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_game(self) -> bool:
        """Whether one candidate was to be chosen; one alone is no choice."""
        return isinstance(self.target, int) and len(self.images) > 1

    @property
    def has_heatmaps(self) -> bool:
        """Whether the model gave heatmaps: each IoU is then of a whole heatmap, and each box only round its peak."""
        return any(phrase.heatmap is not None for phrase in self.phrases)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each candidate in the pixels held here."""
        return [(image.shape[0], image.shape[1]) for image in self.images]


def gather(run: Run, row: int, examples: Mapping[str, Example]) -> Case:
    """The case of row ``row`` of the run's examples.

    examples: example id -> example, for the pixels and polygons; one that is absent gets placeholders.
    Raises BadInput if the run has no such row.
    """
    if row not in run.examples.index:
        raise BadInput(f"example row {row} is not in the run; accepted: 0 to {len(run.examples) - 1}")
    record = run.examples.loc[row]
    example = examples.get(record["id"])
    images, missing = _images(int(record["n_images"]), example)
    target: int | Point
    answer: int | Point | None
    if record["task"] == "game":
        target, answer = int(record["target_index"]), _whole(record.get("answer_index"))
    else:
        target, answer = (float(record["target_x"]), float(record["target_y"])), _point(record)
    table = run.phrases[run.phrases["example"] == row]
    return Case(
        row=row,
        id=str(record["id"]),
        caption=str(record["caption"]),
        images=images,
        target=target,
        answer=answer,
        correct=bool(record["task_correct"]) and answer is not None,
        score=float(record["task_score"]),
        phrases=tuple(_phrase(run, int(index), record, example) for index, record in table.iterrows()),  # type: ignore[call-overload]
        missing=missing,
    )


def of_example(example: Example) -> Case:
    """The case of an example that no model has answered: annotations only."""
    images, missing = _images(len(example.images), example)
    return Case(
        row=0,
        id=example.id,
        caption=example.caption,
        images=images,
        target=example.task.target_index if isinstance(example.task, ReferenceGame) else example.task.target_xy,
        answer=None,
        correct=False,
        score=float("nan"),
        phrases=tuple(
            CasePhrase(
                row=number,
                text=phrase.text(example.caption),
                spans=phrase.spans,
                image_index=phrase.image_index,
                boxes=tuple(region.box for region in phrase.regions),
                polygons=_polygons(phrase.regions),
                masks=_masks(phrase.regions),
            )
            for number, phrase in enumerate(example.phrases)
        ),
        missing=missing,
    )


def find_row(run: Run, example_id: str) -> int:
    """Row of the example of that id. Raises BadInput if the run does not hold it."""
    rows = run.examples.index[run.examples["id"] == example_id]
    if not len(rows):
        some = ", ".join(run.examples["id"].head(3))
        raise BadInput(f"example {example_id!r} is not in the run; accepted: one of its {len(run.examples)}: {some}, …")
    return int(rows[0])


def _images(count: int, example: Example | None) -> tuple[tuple[np.ndarray, ...], dict[int, str]]:
    images, missing = [], {}
    for index in range(count):
        try:
            if example is None or index >= len(example.images):
                raise BadInput("the example's images were not given")
            images.append(enlarge(read_legible(example.images[index], PLACEHOLDER_SIDE)))
        except BadInput as error:
            grey = int(MISSING[1:3], 16)
            images.append(np.full((PLACEHOLDER_SIDE, PLACEHOLDER_SIDE, 3), grey, np.uint8))
            missing[index] = str(error)
    return tuple(images), missing


def _phrase(run: Run, row: int, record: pd.Series, example: Example | None) -> CasePhrase:
    regions = run.regions[(run.regions["phrase"] == row) & (run.regions["kind"] == "annotated")]
    known = next((p for p in example.phrases if p.id == record["id"]), None) if example else None
    iou, pointing = _number(record.get("iou")), _number(record.get("pointing"))
    return CasePhrase(
        row=row,
        text=str(record["text"]),
        spans=tuple((int(begin), int(end)) for begin, end in json.loads(record["spans"])),
        image_index=int(record["image_index"]),
        boxes=tuple(tuple(box) for box in regions[["x1", "y1", "x2", "y2"]].to_numpy(float)),
        polygons=_polygons(known.regions if known else ()),
        masks=_masks(known.regions if known else ()),
        predicted=_predicted(record),
        iou=iou,
        pointing=None if pointing is None else pointing > 0,
        heatmap=run.heatmap(row),
    )


def _polygons(regions: Sequence[Region]) -> tuple[Sequence[Point], ...]:
    return tuple(polygon for region in regions for polygon in region.polygons)


def _masks(regions: Sequence[Region]) -> tuple[np.ndarray, ...]:
    """The pixels of regions whose visible part is known; whoever has polygons too is drawn by those."""
    coded = [region.mask_rle for region in regions if region.mask_rle is not None and not region.polygons]
    return tuple(
        coco_mask.decode({"size": [height, width], "counts": counts}).astype(bool) for height, width, counts in coded
    )


def _number(value: object) -> float | None:
    """The value as a finite float, else None (a column that is absent, or NaN)."""
    if value is None:
        return None
    number = float(value)  # type: ignore[arg-type]
    return number if np.isfinite(number) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 else None


def _point(record: pd.Series) -> Point | None:
    x, y = _number(record.get("answer_x")), _number(record.get("answer_y"))
    return None if x is None or y is None else (x, y)


def _predicted(record: pd.Series) -> tuple[int, Box] | None:
    index = _whole(record.get("predicted_image_index"))
    corners = [_number(record.get(f"predicted_{corner}")) for corner in ("x1", "y1", "x2", "y2")]
    if index is None or None in corners:
        return None
    return index, tuple(corners)  # type: ignore[return-value]
