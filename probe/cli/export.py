"""``probe export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probe.cli.options import AsJson, Root, progress_bar, show

NAME = "export"
EPILOG = "Example: probe export runs/vilt --to coco --out runs/vilt-coco"
# Written out, because help is shown without importing what it is about; a test compares.
KINDS = "coco, fiftyone, csv, parquet"


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run made by probe extract.")],
    to: Annotated[str, typer.Option(help=f"Format: {KINDS}.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """A run's phrases, regions and the model's boxes for other tools: COCO's JSON, FiftyOne, CSV or Parquet."""
    from dataclasses import asdict

    from extract.export import export
    from extract.from_checkpoint import examples_of
    from extract.reader import Run
    from extract.store import MANIFEST
    from grounding.errors import BadInput
    from grounding.evaluation_files import SUMMARY

    if (run / SUMMARY).is_file() and not (run / MANIFEST).is_file():
        raise BadInput(
            f"{str(run)!r} is an evaluation, whose tables are CSV and Parquet already; accepted: a run of probe "
            "extract. Ranked boxes for COCO's tools: probe evaluate --export-predictions FILE"
        )
    opened = Run.open(run)
    with progress_bar("exporting", as_json) as progress:
        examples = {} if to in ("csv", "parquet") else examples_of(opened, root=root)
        exported = export(opened, to, out, examples, progress)
    lines = [*exported.files, ", ".join(f"{count} {name}" for name, count in exported.rows.items())]
    if exported.left_out:
        first, why = exported.left_out[0]
        lines.append(f"{len(exported.left_out)} examples left out; first, {first}: {why}")
    show(asdict(exported), as_json, "\n".join([*lines, f"To open it: {exported.note}"]))
