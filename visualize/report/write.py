"""Writing a report: examples one chunk after the other, so that memory does not grow with their number."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.folders import check_folder
from visualize.report.budget import MOST_EXAMPLES, Choice, choose, default_budget
from visualize.report.images import ImageFolder
from visualize.report.index import Table, grounding_column, run_record
from visualize.report.maps import read_maps
from visualize.report.overview import write_charts, write_words
from visualize.report.pack import to_script_json, write_chunk
from visualize.report.page import render_page
from visualize.report.records import example_record, series_of
from visualize.report.subject import Subject, Words, match_runs
from visualize.style import PHRASE_COLOURS, heat_colours

if TYPE_CHECKING:
    from visualize.report.budget import Held

DESCRIPTION = "report.json"
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
) -> Written:
    """Write runs of the same examples as a folder of pages; open its ``index.html``, no server is needed.

    out: the folder; a report that is there is replaced once the new one is whole. examples: id -> example, for images
    and polygons; one that is absent, or whose image cannot be read, is shown with a note. budget_mb: size of the report
    in megabytes, which chooses the maps that go in; default 30 for 1,000 examples. words: summaries of all runs (an
    evaluation). progress: called with (examples done, examples in all).
    Raises BadInput, before anything is written, for no runs, runs of different examples, a budget that is not above 0,
    and an ``out`` that holds something else.
    """
    check_out(Path(out))
    if budget_mb is not None and not budget_mb > 0:
        raise BadInput(f"budget-mb {budget_mb} is not a size; accepted: above 0")
    rows = match_runs(subjects)
    with _in_place(Path(out)) as folder:
        writer = _Writer(subjects, rows, examples, folder)
        writer.write(budget_mb, words, title or _title(subjects), progress)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    left_out = {s.name: c.left_out for s, c in zip(subjects, writer.choices, strict=True) if c.left_out}
    return Written(Path(out) / "index.html", len(rows[0]), size, writer.missing, left_out)


def check_out(out: Path) -> None:
    """BadInput where ``out`` cannot be a folder, or holds anything but a report, which would be lost."""
    check_folder(out)
    if out.is_dir() and any(out.iterdir()) and not (out / DESCRIPTION).is_file():
        raise BadInput(f"out {str(out)!r} holds other files, and no report; accepted: an empty or new folder, a report")


@contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, or vanishes if something fails."""
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


def _title(subjects: Sequence[Subject]) -> str:
    return " and ".join(subject.name for subject in subjects) if len(subjects) < 3 else f"{len(subjects)} runs"


class _Writer:
    """What is needed while a report is written. rows: of each run, the row of every example."""

    def __init__(
        self, subjects: Sequence[Subject], rows: Sequence[np.ndarray], examples: Mapping[str, Example], folder: Path
    ):
        self.subjects, self.rows, self.examples, self.folder = subjects, rows, examples, folder
        for name in ("data", "images", "figures"):
            (folder / name).mkdir()
        self.images = ImageFolder(folder / "images")
        self.series = [series_of(subject.items) for subject in subjects]
        self.groundings = [grounding_column(subject) for subject in subjects]
        self.table = Table(len(subjects))
        self.choices: list[Choice] = []
        self.missing = 0  # images that cannot be shown

    @property
    def count(self) -> int:
        """Examples of the report."""
        return len(self.rows[0])

    def write(
        self,
        budget_mb: float | None,
        words: Sequence[Words],
        title: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Charts and words first, whose size is then known; then examples and maps; at last the index and the page."""
        charts = [write_charts(s, number, self.folder / "figures") for number, s in enumerate(self.subjects)]
        told = [write_words(s.words, number, self.folder / "figures") for number, s in enumerate(self.subjects)]
        shared = write_words(words, len(self.subjects), self.folder / "figures")
        budget = default_budget(self.count) if budget_mb is None else budget_mb * 1e6
        self.choices = self._choose(budget)
        for begin in range(0, self.count, MOST_EXAMPLES):
            self._write_examples(begin, min(begin + MOST_EXAMPLES, self.count))
            if progress is not None:
                progress(min(begin + MOST_EXAMPLES, self.count), self.count)
        for number, choice in enumerate(self.choices):
            for held in choice.held:
                self._write_maps(number, held)
        self._write_index(title, charts, told, shared)

    def _write_index(
        self,
        title: str,
        charts: Sequence[list[dict[str, Any]]],
        told: Sequence[list[dict[str, Any]]],
        shared: list[dict[str, Any]],
    ) -> None:
        """The index, the page, and what the report is of. charts, told: of each run. shared: summaries of all runs."""
        runs = [
            run_record(subject, series, choice.held, choice.left_out) | {"figures": figures, "words": summaries}
            for subject, series, choice, figures, summaries in zip(
                self.subjects, self.series, self.choices, charts, told, strict=True
            )
        ]
        index = {"title": title, "runs": runs, "words": shared, "chunk": MOST_EXAMPLES, "missing": self.missing}
        write_chunk(self.folder / "data", "index", index | look() | self.table.record())
        (self.folder / "index.html").write_text(render_page(title), encoding="utf-8")
        about = {
            "made_by": f"phrase-grounding-probe {version('phrase-grounding-probe')}",
            "runs": [{"name": s.name, "identity_hash": s.run.manifest.get("identity_hash")} for s in self.subjects],
        }
        (self.folder / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _choose(self, budget: float) -> list[Choice]:
        """The maps that go in, by the sizes of a sample; its images are written on the way."""
        sample = np.unique(np.linspace(0, self.count - 1, min(SAMPLE, self.count)).round().astype(int))
        records = sum(len(to_script_json(self._record(int(place)))) for place in sample)
        drawn = sum(file.stat().st_size for file in (self.folder / "figures").iterdir())
        fixed = drawn + (records + self.images.bytes) * self.count / len(sample) + 100_000
        rows = [rows[sample] for rows in self.rows]
        return choose(self.subjects, rows, self.count, budget, fixed)

    def _record(self, place: int) -> dict[str, Any]:
        own = [int(rows[place]) for rows in self.rows]
        table = self.subjects[0].columns["examples"]
        example = self.examples.get(table["id"][own[0]])
        images = self.images.add(example, int(table["n_images"][own[0]]))
        return example_record(self.subjects, own, self.series, example, images)

    def _write_examples(self, begin: int, end: int) -> None:
        records = []
        for place in range(begin, end):
            record = self._record(place)
            groundings = [column[rows[place]] for column, rows in zip(self.groundings, self.rows, strict=True)]
            self.table.add(record, groundings)
            self.missing += sum("missing" in image for image in record["images"])
            records.append(record)
        write_chunk(self.folder / "data", f"examples-{begin // MOST_EXAMPLES}", records)

    def _write_maps(self, number: int, held: Held) -> None:
        """Maps of one view of one run, a file for ``held.chunk`` examples."""
        subject, rows = self.subjects[number], self.rows[number]
        for begin in range(0, self.count, held.chunk):
            phrases = subject.phrase_rows(rows[begin : begin + held.chunk])
            flat = np.concatenate([*phrases, np.empty(0, np.int64)]).astype(np.int64)
            maps = read_maps(subject, held.view, flat, held.units)
            firsts = np.cumsum([0, *(len(each) for each in phrases)])[:-1].tolist()
            name = f"maps-{number}-{held.view}-{begin // held.chunk}"
            write_chunk(self.folder / "data", name, {"firsts": firsts} | maps.record())
        subject.run.release()


def look() -> dict[str, Any]:
    """Colours of the pages: those of the figures."""
    heat = (np.asarray(heat_colours()(np.arange(256)))[:, :3] * 255).round().astype(int).tolist()
    return {"heat": heat, "phraseColours": list(PHRASE_COLOURS)}
