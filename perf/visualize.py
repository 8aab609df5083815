"""Speed of drawing one example: ``python perf/visualize.py [--rounds N]``.

An example is a game of six candidates with three phrases, their heatmaps and attention, or a wide panorama with insets,
in memory. What is timed, in processor time and wall time, is making the figure, and writing it as a PNG of 100 dots an
inch (screens) and of 200 (the default). They take turns, and medians are reported; the ratio is the aim over the
processor time of the figure and its PNG of 100 dots, so that more is faster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fake_gallery import make_example, make_panorama, make_run
from matplotlib.figure import Figure

from grounding.examples import Example
from visualize.case import gather
from visualize.grid import draw_grid
from visualize.maps import read_layers, read_maps
from visualize.overlays import draw_example
from visualize.style import save

AIM = 0.3  # seconds an overlay of one example may take


def main() -> None:
    """Print the table of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"Seconds of processor time (wall time), median of {rounds} rounds; aim {AIM} s\n")
    print("| example | figure | PNG, 100 dpi | PNG, 200 dpi | ratio (figure and 100 dpi) |\n|---|---|---|---|---|")
    for name, example in {"game, three phrases": make_example(1), "panorama": make_panorama(0)}.items():
        _measure(name, example, rounds)


def _measure(name: str, example: Example, rounds: int) -> None:
    run = make_run([example], heatmaps=True)

    def page() -> Figure:
        case = gather(run, 0, {example.id: example})
        return draw_example(case, [read_maps(run, case)])

    def grid() -> Figure:
        case = gather(run, 0, {example.id: example})
        return draw_grid(case, read_layers(run, case))

    for title, draw in {name: page, f"{name}, grid of layers": grid}.items():
        times: dict[str, list[tuple[float, float]]] = {"figure": [], "100": [], "200": []}
        for _ in range(rounds + 1):  # the first fills caches of fonts
            with tempfile.TemporaryDirectory() as folder:
                figure = _timed(draw, times["figure"])
                for dpi in (100, 200):
                    _timed(lambda dpi=dpi, f=figure: save(f, Path(folder) / "x", ("png",), dpi), times[str(dpi)])
        cpu, wall = ({what: median(t[n] for t in all_[1:]) for what, all_ in times.items()} for n in (0, 1))
        cells = " | ".join(f"{cpu[what]:.3f} ({wall[what]:.3f})" for what in times)
        print(f"| {title} | {cells} | {AIM / (cpu['figure'] + cpu['100']):.1f} |")


def _timed(work: Callable, times: list[tuple[float, float]]) -> object:
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return result


if __name__ == "__main__":
    main()
