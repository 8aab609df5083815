"""``probe report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probe.cli.options import AsJson, Root, progress_bar, show

if TYPE_CHECKING:
    from visualize.report.subject import Subject, Words

NAME = "report"
EPILOG = "Example: probe report runs/vilt-task runs/vilt-grounded --out report"


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of probe extract, of the same examples.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report; a report that is there is replaced.")],
    budget_mb: Annotated[
        float | None,
        typer.Option(help="Size in MB, which chooses the layers and heads that go in; default: 30 for 1,000 examples."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder of probe evaluate, shown on the overview; repeatable.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the report; default: the names of the runs.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write runs as a folder of pages to look through, which opens from a file with no server and no network.

    Sweeps and heads are taken from the folders sweep and heads in each run, where they are.
    """
    from extract.from_checkpoint import examples_of
    from visualize.report.write import check_out, write_report

    check_out(out)
    subjects = read_subjects(runs)
    words = [read_evaluation(folder) for folder in evaluation or ()]
    with progress_bar("writing", as_json) as progress:
        written = write_report(subjects, out, examples_of(subjects[0].run, root), budget_mb, words, title, progress)
    result = {
        "page": str(written.page), "examples": written.examples, "bytes": written.bytes,
        "missing_images": written.missing_images, "left_out": written.left_out,
    }  # fmt: skip
    lines = [f"{written.page}: {written.examples} examples, {written.bytes / 1e6:.1f} MB"]
    if written.missing_images:
        lines.append(f"{written.missing_images} images are missing: their places say why")
    lines += [f"{name}, left out: {line}" for name, left_out in written.left_out.items() for line in left_out]
    show(result, as_json, "\n".join([*lines, "Open it in a browser."]))


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Runs with the sweep and the heads that lie in them. Raises BadInput as ``Run.open`` and ``read_sweep`` do."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [_subject(folder, name) for folder, name in zip(folders, names, strict=True)]


def _subject(folder: Path, name: str) -> Subject:
    from extract.reader import Run
    from probe.heads.tables import read_heads
    from probe.tables import read_items, read_measures, read_sweep
    from visualize.report.subject import Subject, Words

    run = Run.open(folder)
    sweep = read_sweep(folder / "sweep", run, required=False)
    heads = read_heads(folder / "heads", run, required=False)
    summaries = {"What can be read off": folder / "sweep", "What heads look at": folder / "heads"}
    words = [
        Words(title, (place / "summary.md").read_text(encoding="utf-8"))
        for title, place in summaries.items()
        if (place / "summary.md").is_file()
    ]
    items = None if sweep is None else read_items(folder / "sweep", run)
    measures = read_measures(folder / "sweep", run)
    return Subject(run, name, sweep, items, heads, measures, words)


def read_evaluation(folder: Path) -> Words:
    """The summary and charts of an evaluation. Raises BadInput where there is none."""
    from grounding.errors import BadInput
    from visualize.report.subject import Words

    summary = next((folder / name for name in ("summary.md", "differences.md") if (folder / name).is_file()), None)
    if summary is None:
        raise BadInput(f"evaluation {str(folder)!r} holds no summary; accepted: a folder that probe evaluate wrote")
    charts = sorted((folder / "figures").glob("*.png")) or sorted(folder.glob("*.png"))
    return Words(f"Evaluation {folder.name}", summary.read_text(encoding="utf-8"), charts)
