"""The data model: an example, its phrases and their regions, the task, and a model's prediction.

Boxes at rest are ``xyxy``, float, relative to their own candidate image (0..1, origin top left).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from grounding.errors import BadInput

Box = tuple[float, float, float, float]
Span = tuple[int, int]
Point = tuple[float, float]


@runtime_checkable
class RenderedImage(Protocol):
    """An image that is drawn when it is needed (a procedural scene, an SVG).

    Those with an equal attribute ``drawing``, if they have one, are one image in several colours.
    """

    def render(self, size: int | None = None) -> np.ndarray:
        """Pixels, uint8 ``[height, width, 3]``; ``size`` asks for a square of that side."""
        ...


ImageSource = Path | str | np.ndarray | RenderedImage


@dataclass(frozen=True, slots=True)
class Region:
    """A place in one image.

    box: xyxy, relative (0..1).
    polygons: outlines as relative (x, y) vertices, where they are annotated.
    mask_rle: visible pixels as COCO compressed run lengths ``(height, width, counts)``, where they are known.
    """

    box: Box
    polygons: tuple[Sequence[Point], ...] = ()
    mask_rle: tuple[int, int, str] | None = None


@dataclass(frozen=True, slots=True)
class Phrase:
    """Character spans ``[begin, end)`` of the caption, with the regions they name in image ``image_index``."""

    id: str
    type: str
    spans: tuple[Span, ...]
    regions: tuple[Region, ...]
    image_index: int = 0

    def text(self, caption: str) -> str:
        """The words of the phrase."""
        return " ".join(caption[begin:end] for begin, end in self.spans)


@dataclass(frozen=True, slots=True)
class ReferenceGame:
    """Which of the candidate images does the caption describe?"""

    target_index: int


@dataclass(frozen=True, slots=True)
class SpatialDescription:
    """Which point of the image does the caption describe? ``target_xy`` is relative to the image (0..1)."""

    target_xy: Point
    target_spans: tuple[Span, ...] = ()
    caption_id: str | None = None
    propagated: bool = False


Task = ReferenceGame | SpatialDescription


@dataclass(frozen=True, slots=True)
class Example:
    """One caption over one image (spatial description) or N candidate images (reference game).

    groups names what must not be split or resampled apart: ``image`` (the target's), ``caption``,
    ``annotation``, ``tangram``; ``image`` is always present.
    """

    id: str
    split: str
    images: tuple[ImageSource, ...]
    caption: str
    phrases: tuple[Phrase, ...]
    task: Task
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_task(self) -> bool:
        """Whether there is something to solve: a game of one candidate only shows a picture."""
        return not isinstance(self.task, ReferenceGame) or len(self.images) > 1

    @property
    def target_index(self) -> int:
        """The image that the caption is about."""
        return self.task.target_index if isinstance(self.task, ReferenceGame) else 0


@dataclass(frozen=True)
class PhrasePrediction:
    """Where a model puts one phrase: ranked boxes or a heatmap.

    boxes: float32 ``[K, 4]`` xyxy relative to candidate ``image_index[k]``, best first (not clipped).
    image_index: int64 ``[K]``. scores: float32 ``[K]``.
    heatmap: float32 ``[N, h, w]``, one map a candidate, sums to one over all of them.
    """

    phrase_id: str
    boxes: np.ndarray | None = None
    image_index: np.ndarray | None = None
    scores: np.ndarray | None = None
    heatmap: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one example.

    answer: chosen candidate (game) or ``(x, y)`` relative (spatial description); None where there is none.
    score: how well the answer fits the truth, oriented so that higher is better for every model; NaN without an answer.
    canvas_size: height and width in pixels of what the model saw, a game's candidates stacked; the ``paper`` metrics
    need it.
    """

    example_id: str
    answer: int | Point | None
    score: float
    correct: bool
    phrases: tuple[PhrasePrediction, ...]
    canvas_size: tuple[int, int] | None = None

    def answers(self, example: Example) -> bool:
        """Whether the example has a task, and this is an answer to it."""
        return example.has_task and self.answer is not None


def validate(example: Example) -> None:
    """Raise BadInput, naming the example and the value, if spans, boxes or targets are impossible."""
    where = f"example {example.id!r}"
    if not example.caption.strip():
        raise BadInput(f"{where}: caption {example.caption!r} has no words")
    if not example.images:
        raise BadInput(f"{where}: no images")
    if isinstance(example.task, ReferenceGame) and not 0 <= example.task.target_index < len(example.images):
        raise BadInput(f"{where}: target_index {example.task.target_index} is outside its {len(example.images)} images")
    if isinstance(example.task, SpatialDescription) and not all(0 <= v <= 1 for v in example.task.target_xy):
        raise BadInput(f"{where}: target_xy {example.task.target_xy} is outside 0..1")
    ids = [phrase.id for phrase in example.phrases]
    if len(set(ids)) < len(ids):
        raise BadInput(f"{where}: two phrases have the id {next(i for i in ids if ids.count(i) > 1)!r}")
    for phrase in example.phrases:
        _validate_phrase(example, phrase, f"{where}, phrase {phrase.id!r}")


def check_spans(spans: Sequence[Span], caption: str, where: str) -> None:
    """Raise BadInput, beginning with ``where``, if a span is empty, outside the caption or overlaps another of them."""
    for begin, end in spans:
        if not 0 <= begin < end <= len(caption):
            raise BadInput(f"{where}: span ({begin}, {end}) does not fit a caption of {len(caption)} characters")
    ordered = sorted(spans)
    for before, after in pairwise(ordered):
        if after[0] < before[1]:
            raise BadInput(f"{where}: spans {tuple(before)} and {tuple(after)} overlap")


def _validate_phrase(example: Example, phrase: Phrase, where: str) -> None:
    if not 0 <= phrase.image_index < len(example.images):
        raise BadInput(f"{where}: image_index {phrase.image_index} is outside its {len(example.images)} images")
    check_spans(phrase.spans, example.caption, where)
    for region in phrase.regions:
        x1, y1, x2, y2 = region.box
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):  # also false for NaN
            raise BadInput(f"{where}: box {region.box} is not xyxy within 0..1")
        if x1 == x2 or y1 == y2:
            raise BadInput(f"{where}: box {region.box} has no area")
