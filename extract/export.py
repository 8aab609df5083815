"""A finished run for other tools: COCO's JSON, a FiftyOne dataset, or tables as CSV or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import ExifTags, Image

from extract.inspect_run import is_run
from extract.store import TABLES
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, ImageSource
from grounding.folders import check_folder, make_folder, of_run, read_note, refuse_another
from grounding.images import opened, read_image

if TYPE_CHECKING:
    from extract.reader import Run

KINDS = ("coco", "fiftyone", "csv", "parquet")
DESCRIPTION, IMAGES = "export.json", "images"
WRITTEN = {
    "coco": ("annotations.json", "results.json"),
    "fiftyone": ("metadata.json", "samples.json"),
    "csv": tuple(f"{name}.csv" for name in TABLES),
    "parquet": tuple(f"{name}.parquet" for name in TABLES),
}


@dataclass(frozen=True)
class Exported:
    """files: what was written, images left out. rows: how many of each thing. left_out: (example id, why) of examples
    without a readable image, which formats with pixels cannot hold. note: how to open it."""

    files: tuple[str, ...]
    rows: Mapping[str, int]
    left_out: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A candidate image of an example. row: of the example; index: of the candidate; file: where its pixels are."""

    row: int
    index: int
    file: Path
    width: int
    height: int


def export(
    run: Run,
    to: str,
    out: Path | str,
    examples: Mapping[str, Example] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write a run's examples, phrases, regions and the model's own grounding into the folder ``out``.

    to: of ``KINDS``. ``csv`` and ``parquet``: the tables ``examples``, ``phrases`` and ``regions``, which name each
    other by ids. ``coco``: ``annotations.json`` and ``results.json`` (``extract.export_coco``). ``fiftyone``: a dataset
    in FiftyOne's own format (``extract.export_fiftyone``; needs the extra ``fiftyone``).
    examples: id -> example, for the pixels, which tables do without. Images that are files stay where they are and are
    referred to; others are written to ``images``. progress: called with (examples done, examples in all).
    Raises BadInput for an unknown kind, an empty run, and where ``out`` cannot be a folder, is a run's, or holds the
    export of another run, or files of those names that no export wrote.
    """
    if to not in KINDS:
        raise unknown_choice("to", to, KINDS)
    if not len(run.examples):
        raise BadInput("the run holds no examples: there is nothing to export")
    check_folder(out)
    if is_run(out):
        raise BadInput(f"out {str(out)!r} holds a run; accepted: another folder, or a new one inside it")
    if (there := read_note(Path(out) / DESCRIPTION, "run", "an exported run")) is not None:
        refuse_another(out, "another run", there, of_run(run.manifest))
    elif taken := [name for name in WRITTEN[to] if (Path(out) / name).exists()]:
        raise BadInput(f"out {str(out)!r} holds another {taken[0]}; accepted: a folder without, or this run's export")
    if to in ("csv", "parquet"):
        writer: Callable[..., Exported] = _write_tables
    elif to == "coco":
        from extract.export_coco import write_coco as writer
    else:
        from extract.export_fiftyone import require_fiftyone
        from extract.export_fiftyone import write_fiftyone as writer

        require_fiftyone()
    folder = make_folder(out)
    exported = writer(run, folder, to, examples or {}, progress or (lambda done, total: None))
    description = {"run": of_run(run.manifest), **asdict(exported)}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return exported


def tables_of(run: Run) -> dict[str, pd.DataFrame]:
    """The run's tables by name, ids in the place of row numbers: examples, phrases, regions."""
    ids, phrase_ids = run.examples["id"].to_numpy(), run.phrases["id"].to_numpy()
    phrases = run.phrases.rename(columns={"example": "example_id"})
    phrases["example_id"] = ids[run.phrases["example"].to_numpy()]
    regions = run.regions.rename(columns={"example": "example_id", "phrase": "phrase_id"})
    regions["example_id"] = ids[run.regions["example"].to_numpy()]
    owner = run.regions["phrase"].to_numpy()
    regions["phrase_id"] = [phrase_ids[row] if row >= 0 else "" for row in owner]
    return {"examples": run.examples, "phrases": phrases, "regions": regions}


def _write_tables(run: Run, folder: Path, to: str, examples: Any, progress: Any) -> Exported:
    tables = tables_of(run)
    for name, table in tables.items():
        if to == "csv":
            table.to_csv(folder / f"{name}.csv", index=False)
        else:
            table.to_parquet(folder / f"{name}.parquet", index=False)
    read = "read_csv" if to == "csv" else "read_parquet"
    note = f'pandas.{read}("{folder / f"phrases.{to}"}")'
    files = tuple(str(folder / f"{name}.{to}") for name in tables)
    return Exported(files, {name: len(table) for name, table in tables.items()}, note=note)


def pictures(
    run: Run, folder: Path, examples: Mapping[str, Example], progress: Callable[[int, int], None]
) -> Iterator[list[Picture] | tuple[str, str]]:
    """Of each example in turn its candidate images, which exist as files then, or (id, why) where one cannot be read.

    Images that are no files are written to ``folder / "images"`` as PNG.
    """
    for row, record in enumerate(run.examples.to_dict("records")):
        example = examples.get(record["id"])
        try:
            if example is None or len(example.images) < record["n_images"]:
                raise BadInput("the example's images were not given")
            sources = example.images[: record["n_images"]]
            yield [_picture(source, row, index, folder) for index, source in enumerate(sources)]
        except BadInput as error:
            yield str(record["id"]), str(error)
        progress(row + 1, len(run.examples))


def _picture(source: ImageSource, row: int, index: int, folder: Path) -> Picture:
    if isinstance(source, (str, Path)):
        with opened(Path(source), f"image {source}") as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # a quarter, which readers undo
            width, height = image.size[::-1] if turned else image.size
        return Picture(row, index, Path(source).absolute(), width, height)
    pixels = read_image(source)
    file = make_folder(folder / IMAGES) / f"{row:06d}-{index}.png"
    Image.fromarray(pixels).save(file)
    return Picture(row, index, file, pixels.shape[1], pixels.shape[0])


def known(value: Any) -> float | None:
    """A figure as JSON has it: None for one that is not known."""
    return float(value) if np.isfinite(value) else None
