"""Writing a report: examples one chunk after the other, so that memory does not grow with their number."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.folders import check_folder
from visualize.report.budget import MOST_EXAMPLES, Choice, choose, default_budget
from visualize.report.content import Content
from visualize.report.images import ImageFolder
from visualize.report.overview import write_overview
from visualize.report.pack import to_script_json, write_chunk
from visualize.report.page import render_page
from visualize.report.subject import Subject, Words, match_runs

DESCRIPTION = "report.json"
FOLDERS = ("data", "images", "figures")
SAMPLE = 8  # examples whose sizes tell those of all


@dataclass(frozen=True)
class Written:
    """A report on disk. bytes: of all its files. left_out: a line for what the budget did not allow, by run."""

    page: Path
    examples: int
    bytes: int
    missing_images: int
    left_out: Mapping[str, tuple[str, ...]]


def write_report(
    subjects: Sequence[Subject],
    out: Path | str,
    examples: Mapping[str, Example],
    budget_mb: float | None = None,
    words: Sequence[Words] = (),
    title: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    views: Sequence[str] | None = None,
) -> Written:
    """Write runs of the same examples as a folder of pages; open its ``index.html``, no server is needed.

    out: the folder; a report that is there is replaced once the new one is whole. examples: id -> example, for images
    and polygons; one that is absent, or whose image cannot be read, is shown with a note. budget_mb: size of the report
    in megabytes, which chooses the maps that go in; default 30 for 1,000 examples. words: summaries of all runs (an
    evaluation). progress: called with (examples done, examples in all). views: maps that may go in beside the model's
    own (``attention``, ``relevance.METHOD``, ``probe``); None for all.
    Raises BadInput, before anything is written, for no runs, runs of different examples, a budget that is not above 0,
    and an ``out`` that holds something else.
    """
    check_out(Path(out), budget_mb)
    content = Content(subjects, match_runs(subjects), examples)
    budget = default_budget(content.count) if budget_mb is None else budget_mb * 1e6
    with _in_place(Path(out)) as folder:
        writer = _Writer(content, folder)
        writer.write(budget, words, title, progress, views)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    left_out = {s.name: c.left_out for s, c in zip(subjects, writer.choices, strict=True) if c.left_out}
    return Written(Path(out) / "index.html", content.count, size, writer.missing, left_out)


def check_out(out: Path, budget_mb: float | None = None) -> None:
    """BadInput where ``out`` cannot be a folder, or holds anything but a report, which would be lost; and for a budget
    that is not above 0."""
    if budget_mb is not None and not budget_mb > 0:
        raise BadInput(f"budget-mb {budget_mb} is not a size; accepted: above 0")
    check_folder(out)
    if out.is_dir() and any(out.iterdir()) and not (out / DESCRIPTION).is_file():
        raise BadInput(f"out {str(out)!r} holds other files, and no report; accepted: an empty or new folder, a report")


@contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, or vanishes if something fails."""
    out = Path(os.path.abspath(out))  # one that is given as "." can be renamed by its name alone
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        before = folder.with_name(f"{folder.name}.before")
        if out.is_dir():
            out.rename(before)
        folder.rename(out)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Writer:
    """What is needed while a report is written into a folder."""

    def __init__(self, content: Content, folder: Path):
        self.content, self.folder = content, folder
        for name in FOLDERS:
            (folder / name).mkdir()
        self.images = ImageFolder(folder / "images")
        self.choices: list[Choice] = []
        self.missing = 0  # images that cannot be shown

    def write(
        self,
        budget: float,
        words: Sequence[Words],
        title: str | None,
        progress: Callable[[int, int], None] | None,
        views: Sequence[str] | None,
    ) -> None:
        """Charts and words first, whose size is then known; then examples and maps; at last the index and the page."""
        content, data = self.content, self.folder / "data"
        overview = write_overview(content.subjects, words, self.folder / "figures")
        self.choices = self._choose(budget, views)
        for begin in range(0, content.count, MOST_EXAMPLES):
            self._write_examples(begin, min(begin + MOST_EXAMPLES, content.count))
            if progress is not None:
                progress(min(begin + MOST_EXAMPLES, content.count), content.count)
        for number, choice in enumerate(self.choices):
            for held in choice.held:
                for chunk in range(-(-content.count // held.chunk)):
                    write_chunk(data, f"maps-{number}-{held.view}-{chunk}", content.maps(number, held, chunk))
                content.subjects[number].run.release()
        index = content.index(title, overview, self.choices, MOST_EXAMPLES, self.missing)
        write_chunk(data, "index", index)
        (self.folder / "index.html").write_text(render_page(index["title"]), encoding="utf-8")
        about = {
            "made_by": f"phrase-grounding-probe {version('phrase-grounding-probe')}",
            "runs": [{"name": s.name, "identity_hash": s.run.manifest.get("identity_hash")} for s in content.subjects],
        }
        (self.folder / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _choose(self, budget: float, views: Sequence[str] | None) -> list[Choice]:
        """The maps that go in, by the sizes of a sample; its images are written on the way."""
        count = self.content.count
        sample = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).round().astype(int))
        records = sum(len(to_script_json(self._record(int(place)))) for place in sample)
        drawn = sum(file.stat().st_size for file in (self.folder / "figures").iterdir())
        fixed = drawn + (records + self.images.bytes) * count / len(sample) + 100_000
        return choose(self.content.subjects, [rows[sample] for rows in self.content.rows], count, budget, fixed, views)

    def _record(self, place: int) -> dict[str, Any]:
        return self.content.record(place, self.images.add(*self.content.example(place)))

    def _write_examples(self, begin: int, end: int) -> None:
        records = []
        for place in range(begin, end):
            record = self._record(place)
            self.content.add_to_index(place, record)
            self.missing += sum("missing" in image for image in record["images"])
            records.append(record)
        write_chunk(self.folder / "data", f"examples-{begin // MOST_EXAMPLES}", records)
