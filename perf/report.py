"""Speed, size and memory of the report: ``python perf/report.py RUN [--count 1000] [--show 5000]``.

RUN is a finished extraction of the miniature with attention, of at least ``--count`` examples. Each report is written
in a process of its own, whose processor time and most resident memory are printed; a quarter of the examples beside it
shows what grows. Then the larger report is opened in headless Chromium (``--chromium``), its index repeated under other
ids to ``--show`` examples: the first view and filters are timed in the page itself, by ``performance.now``, and beside
it by the processor time of the page's main thread, which other programs lengthen less.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from extract.from_checkpoint import examples_of
from extract.reader import Run
from visualize.report import Subject, write_report
from visualize.report.pack import write_chunk

VIEW, FILTER = 1000, 100  # ms, aims
FILTERS = (
    "quadrant=wrong_not_grounded", "q=triangle", "grounding=0.2..0.4", "phrases=3..4&sort=-score", "sort=grounding"
)  # fmt: skip
ROUNDS = 7


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--show", type=int, default=5000, help="examples of the report that is opened")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        _write(options.run, options.count, options.write)
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| examples | processor | clock | MB | MB a 1,000 (aim 30) | most resident |\n|---|---|---|---|---|---|")
        for count in (options.count // 4, options.count):
            out = Path(folder) / str(count)
            found = _in_process(options.run, count, out)
            print(
                f"| {count} | {found['processor']:.1f} s | {found['clock']:.1f} s | {found['bytes'] / 1e6:.1f} | "
                f"{found['bytes'] / 1e3 / count:.1f} | {found['resident'] / 2**20:.0f} MiB |",
                flush=True,
            )
        _repeat(out, options.show)
        _browse(out, options.chromium, options.show)


def _in_process(run: Path, count: int, out: Path) -> dict:
    command = [sys.executable, __file__, str(run), "--count", str(count), "--write", str(out)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _write(path: Path, count: int, out: Path) -> None:
    """Write a report of the first ``count`` examples, and print what it took; imports and opening do not count."""
    run = Run.open(path)
    examples = examples_of(run)
    run.examples, run.phrases = run.examples.iloc[:count], run.phrases[run.phrases["example"] < count]
    run.regions = run.regions[run.regions["example"] < count]
    clock, processor = time.perf_counter(), time.process_time()
    written = write_report([Subject(run, path.name)], out, examples)
    found = {
        "processor": time.process_time() - processor,
        "clock": time.perf_counter() - clock,
        "bytes": written.bytes,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))


def _repeat(folder: Path, count: int) -> None:
    """Make the index of a report one of ``count`` examples: the same again, under other ids."""
    path = folder / "data" / "index.js"
    index = json.loads(path.read_text().partition(",")[2].removesuffix(");\n"))
    for columns in (index["table"], *index["outcomes"]):
        for name, values in columns.items():
            columns[name] = [values[place % len(values)] for place in range(count)]
    index["table"]["id"] = [f"{name}/{place}" for place, name in enumerate(index["table"]["id"])]
    write_chunk(path.parent, "index", index)


def _browse(folder: Path, chromium: str, count: int) -> None:
    """Time the first view of the overview and of the gallery, and filters."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[tuple[float, float]]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(ROUNDS):
            for view in ("overview", "gallery"):
                page = browser.new_page()
                meter = page.context.new_cdp_session(page)
                meter.send("Performance.enable", {"timeDomain": "threadTicks"})
                page.goto(f"{folder.resolve().as_uri()}/index.html#/{view}")
                shown = page.evaluate(SHOWN)
                times.setdefault(f"first view: {view}", []).append((shown, _busy(meter)))
                for name in FILTERS if view == "gallery" else ():
                    before = _busy(meter)
                    taken = page.evaluate(CHOSEN, f"/gallery?{name}")
                    times.setdefault(f"filter {name}", []).append((taken, _busy(meter) - before))
                page.close()
        browser.close()
    print(
        f"\n| {count} examples in headless Chromium | processor, median of {ROUNDS} | clock | aim |\n|---|---|---|---|"
    )
    for name, pairs in times.items():
        clock, busy = (median(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {busy:.0f} ms | {clock:.0f} ms | {VIEW if 'view' in name else FILTER} ms |")


def _busy(meter) -> float:
    """Milliseconds of processor time of the page's main thread so far."""
    found = {each["name"]: each["value"] for each in meter.send("Performance.getMetrics")["metrics"]}
    return 1000 * found["TaskDuration"]


# From the start of navigation to the first frame that holds the page; and from a choice to the frame that shows it.
SHOWN = """
() => new Promise((done) => {
  const look = () => {
    const [shown] = performance.getEntriesByName('probe-report-shown');
    if (shown) done(shown.startTime); else setTimeout(look, 10);
  };
  look();
})
"""
CHOSEN = """
(route) => new Promise((done) => {
  const begin = performance.now();
  history.replaceState(null, '', '#' + route);
  dispatchEvent(new PopStateEvent('popstate'));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
})
"""

if __name__ == "__main__":
    main()
