"""Speed, size and memory of the report: ``python perf/report.py RUN [--count 1000] [--show 5000]``.

RUN is a finished extraction of the miniature with attention, of at least ``--count`` examples. Each report is written
in a process of its own, whose processor time and most resident memory are printed; a quarter of the examples beside it
shows what grows. Then a report of ``--show`` examples, the run's repeated under other ids with images of the size that
the model sees, is opened in headless Chromium (``--chromium``): the first view and each filter are timed in the page
itself, by ``performance.now``. A count of 0 leaves out that part.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from extract.from_checkpoint import examples_of
from extract.reader import Run
from grounding.images import read_image
from visualize.report import Subject, write_report

AIMS = {"seconds": 60, "megabytes": 30, "view": 1000, "filter": 100}
FILTERS = (
    "quadrant=wrong_not_grounded",
    "q=triangle",
    "grounding=0.2..0.4",
    "phrases=3..4&sort=-score",
    "sort=grounding",
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--show", type=int, default=5000, help="examples of the report that is opened")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        _write(options.run, options.count, options.write, options.repeat)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.count:
            print(
                "| examples | processor | clock | MB | MB a 1,000 (aim 30) | most resident |\n|---|---|---|---|---|---|"
            )
        for count in (options.count // 4, options.count) if options.count else ():
            found = _in_process(options.run, count, Path(folder) / str(count))
            print(
                f"| {count} | {found['processor']:.1f} s | {found['clock']:.1f} s | {found['bytes'] / 1e6:.1f} | "
                f"{found['bytes'] / 1e3 / count:.1f} | {found['resident'] / 2**20:.0f} MiB |",
                flush=True,
            )
        if options.show:
            _in_process(options.run, options.show, Path(folder) / "show", "--repeat")
            _browse(Path(folder) / "show", options.chromium, options.show)


def _in_process(run: Path, count: int, out: Path, *more: str) -> dict:
    command = [sys.executable, __file__, str(run), "--count", str(count), "--write", str(out), *more]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _write(path: Path, count: int, out: Path, repeat: bool) -> None:
    """Write a report of ``count`` examples, and print what it took; imports and opening the benchmark do not count."""
    run = Run.open(path)
    examples = examples_of(run)
    if repeat:
        examples = {name: replace(e, images=tuple(map(read_image, e.images))) for name, e in examples.items()}
    run, examples = _sized(run, examples, count)
    clock, processor = time.perf_counter(), time.process_time()
    written = write_report([Subject(run, path.name)], out, examples)
    found = {
        "processor": time.process_time() - processor,
        "clock": time.perf_counter() - clock,
        "bytes": written.bytes,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))


def _sized(run: Run, examples: dict, count: int) -> tuple:
    """The first ``count`` examples of a run; past its end, the same again under other ids."""
    held = len(run.examples)
    rows = np.arange(count) % held
    names = run.examples["id"][rows]
    ids = [f"{name}/{turn}" if turn else name for name, turn in zip(names, np.arange(count) // held, strict=True)]
    table = run.examples.iloc[rows].assign(id=ids).reset_index(drop=True)
    known = {new: replace(examples[old], id=new) for new, old in zip(ids, names, strict=True)}
    owner = run.phrases["example"].to_numpy()
    of_example = pd.Series(np.arange(len(owner))).groupby(owner).apply(list)
    phrase_rows = np.concatenate([of_example.get(row, []) for row in rows]).astype(int)
    places = np.concatenate([[place] * len(of_example.get(row, [])) for place, row in enumerate(rows)]).astype(int)
    phrases = run.phrases.iloc[phrase_rows].assign(example=places).reset_index(drop=True)
    regions = run.regions[run.regions["phrase"] >= 0]
    of_phrase = regions.groupby("phrase").indices
    found = [(new, of_phrase.get(old, [])) for new, old in enumerate(phrase_rows)]
    region_rows = np.concatenate([rows for _, rows in found]).astype(int)
    owners = np.concatenate([[new] * len(rows) for new, rows in found]).astype(int)
    regions = regions.iloc[region_rows].assign(phrase=owners).reset_index(drop=True)
    return _Repeated(run, table, phrases, regions, phrase_rows), known


class _Repeated(SimpleNamespace):
    """A run whose tables name rows of another again: its maps are those of the other."""

    def __init__(
        self, run: Run, examples: pd.DataFrame, phrases: pd.DataFrame, regions: pd.DataFrame, rows: np.ndarray
    ):
        lengths = np.diff(run.cell_offsets)[rows]
        super().__init__(
            run=run, examples=examples, phrases=phrases, regions=regions, rows=rows, sites=run.sites, path=run.path,
            manifest=run.manifest, cell_offsets=np.concatenate([[0], np.cumsum(lengths)]), release=run.release,
        )  # fmt: skip

    def count(self, site: str, view: str) -> int:
        return int(self.cell_offsets[-1])

    def read(self, site: str, view: str, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        owner = np.searchsorted(self.cell_offsets, rows, side="right") - 1
        return self.run.read(site, view, rows - self.cell_offsets[owner] + self.run.cell_offsets[self.rows[owner]])

    def heatmap(self, row: int) -> np.ndarray | None:
        return self.run.heatmap(int(self.rows[row]))


def _browse(folder: Path, chromium: str, count: int) -> None:
    """Time the first view of the overview and of the gallery, and filters, over seven rounds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        views: dict[str, list[float]] = {"overview": [], "gallery": []}
        filters: dict[str, list[float]] = {name: [] for name in FILTERS}
        for _ in range(7):
            for view in views:
                page = browser.new_page()
                page.goto(f"{folder.resolve().as_uri()}/index.html#/{view}")
                page.wait_for_selector("h1")
                views[view].append(page.evaluate(FIRST_VIEW))
                if view == "gallery":
                    for name in FILTERS:
                        filters[name].append(page.evaluate(FILTER, f"/gallery?{name}"))
                page.close()
        browser.close()
    print(f"\n| {count} examples in headless Chromium | median of 7 | worst | aim |\n|---|---|---|---|")
    for name, times in views.items():
        print(f"| first view: {name} | {median(times):.0f} ms | {max(times):.0f} ms | {AIMS['view']} ms |")
    for name, times in filters.items():
        print(f"| filter {name} | {median(times):.0f} ms | {max(times):.0f} ms | {AIMS['filter']} ms |")


# From the start of navigation to the first frame that holds the page; and from a choice to the frame that shows it.
FIRST_VIEW = """
() => new Promise((done) => {
  const look = () => {
    const [shown] = performance.getEntriesByName('probe-report-shown');
    if (shown) done(shown.startTime); else setTimeout(look, 10);
  };
  look();
})
"""
FILTER = """
(route) => new Promise((done) => {
  const begin = performance.now();
  history.replaceState(null, '', '#' + route);
  dispatchEvent(new PopStateEvent('popstate'));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
})
"""

if __name__ == "__main__":
    main()
