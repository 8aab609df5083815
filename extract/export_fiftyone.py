"""A run as a FiftyOne dataset: a sample for each candidate image, with the phrases' regions and the model's boxes.

FiftyOne is an optional extra, imported only here. What ``--to coco`` writes needs none, and FiftyOne imports that too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from extract.export import Exported, Picture, known, pictures
from grounding.errors import BadInput
from grounding.examples import Example

if TYPE_CHECKING:
    from extract.reader import Run

_BOX = ("x1", "y1", "x2", "y2")


def require_fiftyone() -> Any:
    """The package. Raises BadInput where it is not installed."""
    try:
        import fiftyone
    except ImportError:
        raise BadInput(
            "to 'fiftyone' needs the package fiftyone: pip install 'phrase-grounding-probe[fiftyone]'; or export to "
            "'coco', which FiftyOne imports too"
        ) from None
    return fiftyone


def write_fiftyone(
    run: Run, folder: Path, to: str, examples: Mapping[str, Example], progress: Callable[[int, int], None]
) -> Exported:
    """Write a dataset in FiftyOne's own format. Arguments are those of ``extract.export.export``."""
    fiftyone = require_fiftyone()
    dataset = fiftyone.Dataset()
    left_out, samples = [], []
    phrases = dict(iter(run.phrases.groupby("example", sort=False)))
    regions = dict(iter(run.regions[run.regions["phrase"] >= 0].groupby("phrase", sort=False)))
    for found in pictures(run, folder, examples, progress):
        if isinstance(found, tuple):
            left_out.append(found)
            continue
        own = phrases.get(found[0].row, run.phrases.iloc[:0])
        samples += [_sample(fiftyone, run, picture, own, regions) for picture in found]
    dataset.add_samples(samples)
    dataset.export(export_dir=str(folder), dataset_type=fiftyone.types.FiftyOneDataset, export_media=False)
    note = f'fiftyone.Dataset.from_dir("{folder}", dataset_type=fiftyone.types.FiftyOneDataset)'
    return Exported((str(folder),), {"samples": len(samples)}, tuple(left_out), note)


def _sample(fiftyone: Any, run: Run, picture: Picture, phrases: pd.DataFrame, regions: Mapping[Any, Any]) -> Any:
    record = run.examples.iloc[picture.row]
    true, found = [], []
    for row, phrase in phrases.iterrows():
        about = {"label": phrase["text"], "phrase_id": phrase["id"], "phrase_type": phrase["type"]}
        if phrase["image_index"] == picture.index and row in regions:
            true += [fiftyone.Detection(**about, bounding_box=_relative(box))
                     for box in regions[row][list(_BOX)].to_numpy(float)]  # fmt: skip
        if phrase["predicted_image_index"] == picture.index:
            box = [float(phrase[f"predicted_{name}"]) for name in _BOX]
            figures = {name: known(phrase[name]) for name in ("iou", "pointing")}
            found.append(fiftyone.Detection(**about, **figures, bounding_box=_relative(box)))
    return fiftyone.Sample(
        filepath=str(picture.file.absolute()),
        tags=[str(record["split"])],
        example_id=record["id"],
        image_index=picture.index,
        caption=record["caption"],
        ground_truth=fiftyone.Detections(detections=true),
        predictions=fiftyone.Detections(detections=found),
        **_task(fiftyone, record, picture.index),
    )


def _task(fiftyone: Any, record: pd.Series, index: int) -> dict[str, Any]:
    """What was asked and answered: whether this candidate is the target, or where the target is."""
    figures = {"task_correct": bool(record["task_correct"]), "task_score": known(record["task_score"])}
    if record["task"] == "game":
        picked = {"target": bool(record["target_index"] == index), "chosen": bool(record["answer_index"] == index)}
        return picked | figures if record["n_images"] > 1 else {}
    points = {name: [known(record[f"{name}_x"]), known(record[f"{name}_y"])] for name in ("target", "answer")}
    return figures | {
        f"{name}_point": fiftyone.Keypoints(keypoints=[fiftyone.Keypoint(label=name, points=[tuple(point)])])
        for name, point in points.items()
        if None not in point
    }


def _relative(box: Any) -> list[float]:
    """An xyxy box as FiftyOne's x, y, width, height, all relative."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
