"""Examples as rows of a table, and back: what the columnar form holds beside the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grounding.examples import (
    Example,
    ImageSource,
    Phrase,
    Point,
    ReferenceGame,
    Region,
    Span,
    SpatialDescription,
    Task,
)

Row = dict[str, Any]


def example_features() -> Any:
    """The columns of the table of examples, as ``datasets.Features``.

    task is ``game`` (target_index) or ``sdr`` (target_x, target_y, target_spans, caption_id, propagated); what the
    other has is null. images: names, in the order of the candidates.
    """
    from datasets import Features, List, Value

    text, number, whole = Value("string"), Value("float64"), Value("int64")
    spans = List(List(whole))
    region = {
        "box": List(number),
        "polygons": List(List(List(number))),
        "mask_height": whole,
        "mask_width": whole,
        "mask_counts": text,
    }
    return Features(
        {
            "id": text,
            "split": text,
            "images": List(text),
            "caption": text,
            "phrases": List(
                {"id": text, "type": text, "spans": spans, "image_index": whole, "regions": List(region)}
            ),
            "task": text,
            "target_index": whole,
            "target_x": number,
            "target_y": number,
            "target_spans": spans,
            "caption_id": text,
            "propagated": Value("bool"),
            "groups": List({"kind": text, "label": text}),
        }
    )  # fmt: skip


def to_row(example: Example, images: Sequence[str]) -> Row:
    """The row of an example whose images are kept under these names."""
    return {
        "id": example.id,
        "split": example.split,
        "images": list(images),
        "caption": example.caption,
        "phrases": [_phrase_row(phrase) for phrase in example.phrases],
        **_task_row(example.task),
        "groups": [{"kind": kind, "label": label} for kind, label in example.groups.items()],
    }


def from_row(row: Row, images: Mapping[str, ImageSource]) -> Example:
    """The example of a row; images: name -> where its pixels are. Raises KeyError for a name that is not there."""
    task: Task
    if row["task"] == "game":
        task = ReferenceGame(row["target_index"])
    else:
        point = (row["target_x"], row["target_y"])
        task = SpatialDescription(point, _spans(row["target_spans"]), row["caption_id"], row["propagated"])
    return Example(
        id=row["id"],
        split=row["split"],
        images=tuple(images[name] for name in row["images"]),
        caption=row["caption"],
        phrases=tuple(_phrase(phrase) for phrase in row["phrases"]),
        task=task,
        groups={group["kind"]: group["label"] for group in row["groups"]},
    )


def _task_row(task: Task) -> Row:
    row: Row = dict.fromkeys(("target_index", "target_x", "target_y", "caption_id", "propagated"))
    if isinstance(task, ReferenceGame):
        return row | {"task": "game", "target_index": task.target_index, "target_spans": []}
    x, y = task.target_xy
    return row | {
        "task": "sdr",
        "target_x": x,
        "target_y": y,
        "target_spans": _pairs(task.target_spans),
        "caption_id": task.caption_id,
        "propagated": task.propagated,
    }


def _phrase_row(phrase: Phrase) -> Row:
    return {
        "id": phrase.id,
        "type": phrase.type,
        "spans": _pairs(phrase.spans),
        "image_index": phrase.image_index,
        "regions": [_region_row(region) for region in phrase.regions],
    }


def _region_row(region: Region) -> Row:
    height, width, counts = region.mask_rle or (None, None, None)
    return {
        "box": list(region.box),
        "polygons": [[list(point) for point in polygon] for polygon in region.polygons],
        "mask_height": height,
        "mask_width": width,
        "mask_counts": counts,
    }


def _phrase(row: Row) -> Phrase:
    regions = tuple(_region(region) for region in row["regions"])
    return Phrase(row["id"], row["type"], _spans(row["spans"]), regions, row["image_index"])


def _region(row: Row) -> Region:
    x1, y1, x2, y2 = row["box"]
    polygons = tuple(tuple(_point(point) for point in polygon) for polygon in row["polygons"])
    counts = row["mask_counts"]
    return Region((x1, y1, x2, y2), polygons, counts and (row["mask_height"], row["mask_width"], counts))


def _pairs(spans: Sequence[Span]) -> list[list[int]]:
    return [[begin, end] for begin, end in spans]


def _spans(pairs: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    return tuple((begin, end) for begin, end in pairs)


def _point(pair: Sequence[float]) -> Point:
    x, y = pair
    return x, y
