"""A run as COCO's ground truth and results, which pycocotools and most viewers of boxes read.

An image is a candidate of an example. A category is the number of a phrase in its caption ("phrase 1", ...), so that
COCOeval compares the box of a phrase with the regions of that phrase, and with no other's. A result is the best box of
a phrase; of a heatmap, the box round its peak. A run stores no scores of boxes: those of a heatmap are its highest
share, all others 1, so that recall says what it should and the order of average precision is that of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from extract.export import WRITTEN, Exported, Picture, known, pictures
from grounding.examples import Box, Example, Region
from grounding.folders import of_run

if TYPE_CHECKING:
    from extract.reader import Run

GROUND_TRUTH, RESULTS = WRITTEN["coco"]
_BOX = ("x1", "y1", "x2", "y2")


def write_coco(
    run: Run, folder: Path, to: str, examples: Mapping[str, Example], progress: Callable[[int, int], None]
) -> Exported:
    """Write ``annotations.json`` and ``results.json``. Arguments are those of ``extract.export.export``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    left_out = []
    phrases = dict(iter(run.phrases.groupby("example", sort=False)))
    regions = dict(iter(run.regions[run.regions["phrase"] >= 0].groupby("phrase", sort=False)))
    most = 0
    for found in pictures(run, folder, examples, progress):
        if isinstance(found, tuple):
            left_out.append(found)
            continue
        record = run.examples.iloc[found[0].row]
        numbered = {picture.index: len(images) + 1 + place for place, picture in enumerate(found)}
        images += [_image(numbered[picture.index], picture, record, folder) for picture in found]
        own = phrases.get(found[0].row, run.phrases.iloc[:0])
        most = max(most, len(own))
        for number, (row, phrase) in enumerate(own.iterrows(), start=1):
            about = {"category_id": number, "phrase_id": phrase["id"], "phrase": phrase["text"]}
            for box, region in _regions(regions.get(row), examples[record["id"]], phrase["id"]):
                picture = found[int(phrase["image_index"])]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": numbered[picture.index], **about, "type": phrase["type"],
                     "tokens_positive": json.loads(phrase["spans"]), "iscrowd": 0, **_place(box, region, picture)}
                )  # fmt: skip
            if phrase["predicted_image_index"] >= 0:
                picture = found[int(phrase["predicted_image_index"])]
                best: Box = tuple(float(phrase[f"predicted_{name}"]) for name in _BOX)  # type: ignore[assignment]
                figures = {name: known(phrase[name]) for name in ("iou", "pointing")}
                placed = {"bbox": _pixels(best, picture), "score": _score(run, int(row))}  # type: ignore[arg-type,call-overload]
                results.append({"image_id": numbered[picture.index], **about, **placed, **figures})
    content = {
        "info": {"description": "phrases and their regions, written by probe export", "run": of_run(run.manifest)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": f"phrase {number}", "supercategory": "phrase"}
                       for number in range(1, most + 1)],
    }  # fmt: skip
    for name, value in ((GROUND_TRUTH, content), (RESULTS, results)):
        (folder / name).write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    truth, found_boxes = folder / GROUND_TRUTH, folder / RESULTS
    note = f'truth = COCO("{truth}"); COCOeval(truth, truth.loadRes("{found_boxes}"), "bbox")'
    rows = {"images": len(images), "annotations": len(annotations), "results": len(results)}
    return Exported((str(truth), str(found_boxes)), rows, tuple(left_out), note)


def _image(number: int, picture: Picture, record: pd.Series, folder: Path) -> dict[str, Any]:
    inside = picture.file.is_relative_to(folder)
    name = picture.file.relative_to(folder).as_posix() if inside else str(picture.file)
    about = {"id": number, "file_name": name, "width": picture.width, "height": picture.height}
    about |= {"caption": record["caption"], "example_id": record["id"], "image_index": picture.index}
    if record["task"] == "game" and record["n_images"] > 1:
        about |= {"target": bool(record["target_index"] == picture.index)}
        about |= {"chosen": bool(record["answer_index"] == picture.index)}
    return about


def _regions(table: pd.DataFrame | None, example: Example, phrase_id: str) -> list[tuple[Box, Region | None]]:
    """A phrase's boxes as stored, each with the region that it is of, where the benchmark has it in that order."""
    if table is None:
        return []
    boxes = [tuple(box) for box in table[list(_BOX)].to_numpy(float)]
    given = next((phrase.regions for phrase in example.phrases if phrase.id == phrase_id), ())
    return list(zip(boxes, given if len(given) == len(boxes) else [None] * len(boxes), strict=True))  # type: ignore[arg-type]


def _place(box: Box, region: Region | None, picture: Picture) -> dict[str, Any]:
    """Box, area and outline in pixels."""
    bbox = _pixels(box, picture)
    place: dict[str, Any] = {"bbox": bbox, "area": bbox[2] * bbox[3]}
    if region is not None and region.mask_rle is not None and region.mask_rle[:2] == (picture.height, picture.width):
        place["segmentation"] = {"size": list(region.mask_rle[:2]), "counts": region.mask_rle[2]}
    elif region is not None and region.polygons:
        place["segmentation"] = [
            [length for x, y in polygon for length in (x * picture.width, y * picture.height)]
            for polygon in region.polygons
        ]
    return place


def _pixels(box: Box, picture: Picture) -> list[float]:
    """A relative xyxy box as COCO's x, y, width, height in pixels."""
    x1, y1, x2, y2 = box
    return [x1 * picture.width, y1 * picture.height, (x2 - x1) * picture.width, (y2 - y1) * picture.height]


def _score(run: Run, row: int) -> float:
    heatmap = run.heatmap(row)
    return 1.0 if heatmap is None else float(heatmap.max())
