"""Speed and memory of the metrics, as one table: ``python perf/evaluate.py [--rounds N]``.

Boxes: 10,000 phrases with 100 ranked boxes each, under all protocols and ranks. Heatmaps: 2,000 maps of 56 x 56 against
masks of 640 x 480 under 100 thresholds, all at once, against each threshold on the full-size map in turn; the results
are compared exactly, and the second way is timed on fewer maps. Bootstrap: 10,000 resamples of 20,000 values in 5,000
images. Memory: the peak of a process that scores 400 heatmaps, made when needed, against one that scores 100. Times are
by the clock, with the processor time of all threads in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch

from grounding.evaluate import score
from grounding.examples import Example, Phrase, PhrasePrediction, Prediction, ReferenceGame, Region
from grounding.metrics.boxes import PROTOCOLS, ranked_ious
from grounding.metrics.heatmaps import THRESHOLDS, resize_published, threshold_ious
from grounding.metrics.intervals import bootstrap_mean
from grounding.metrics.measure import PhraseItem
from grounding.metrics.phrases import phrase_table
from grounding.metrics.sensitivity import sensitivity_table

CANVAS = (480, 640)  # height and width of the masks
BLOCK = 16  # heatmaps at full size that are held at a time


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heatmaps", type=int, default=2000)
    parser.add_argument(
        "--in-turn", type=int, default=64, help="heatmaps that are also evaluated threshold by threshold"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(_peak_of(options.child)))
        return
    rows = [*_boxes(options.rounds), *_heatmaps(options), *_bootstrap(options.rounds), *_memory()]
    print(f"{options.threads} threads, median of {options.rounds} rounds\n| what | value | asked |\n|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def _boxes(rounds: int) -> Iterator[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    items = [_boxed(rng, number) for number in range(10_000)]
    predicted = np.stack([item.prediction.boxes for item in items])
    truth = np.stack([[region.box for region in item.phrase.regions] for item in items])
    times = _timed(lambda: [ranked_ious(predicted, truth, protocol) for protocol in PROTOCOLS], rounds)
    yield "IoU of 10,000 x 100 boxes, three protocols", times.told(), ""
    times = _timed(lambda: (phrase_table(items), sensitivity_table(items)), rounds)
    yield "**the same as tables, every protocol and rank**", f"**{times.told()}**", "3 s"


def _boxed(rng: np.random.Generator, number: int) -> PhraseItem:
    def draw(count: int) -> np.ndarray:
        return np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)

    phrase = Phrase(f"p{number}", "", ((0, 1),), tuple(Region(tuple(box)) for box in draw(3).tolist()))
    example = Example(f"e{number}", "dev", ("",), "a", (phrase,), ReferenceGame(0), {"image": f"i{number // 2}"})
    grounding = PhrasePrediction(phrase.id, draw(100).astype(np.float32), np.zeros(100, np.int64))
    return PhraseItem(example, phrase, grounding)


def _heatmaps(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    maps, boxes = _maps(options.heatmaps)
    few = min(options.in_turn, options.heatmaps)
    ours = _timed(lambda: _all_at_once(maps, boxes), options.rounds)
    theirs = _timed(lambda: _in_turn(maps[:few], boxes[:few]), options.rounds)
    comparing = _timed(lambda: _in_turn(maps[:few], boxes[:few], resize_once=True), options.rounds)
    equal = torch.equal(_all_at_once(maps[:few], boxes[:few]), _in_turn(maps[:few], boxes[:few]))
    yield f"{options.heatmaps:,} heatmaps, 100 thresholds at once", ours.told(), ""
    yield f"{few:,} of them, each threshold in turn", theirs.told(), ""
    yield "**ratio, a heatmap**", _ratio(theirs, ours, len(maps) / few), "20 or more"
    yield "the same where each map is resized once", _ratio(comparing, ours, len(maps) / few), ""
    yield f"exactly equal ({few} heatmaps)", str(equal), "True"


def _ratio(slow: _Times, fast: _Times, share: float) -> str:
    """How many times as long, by the clock and of the processor; share: times as many heatmaps in ``fast``."""
    clock, processor = (one / other * share for one, other in zip(slow, fast, strict=True))
    return f"**{clock:.1f}** ({processor:.1f})"


def _maps(count: int) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    corners = np.sort(np.random.default_rng(0).random((count, 2, 2)), axis=1) * [CANVAS[1], CANVAS[0]]
    return torch.rand(count, 56, 56, generator=generator), corners.reshape(count, 4).round().astype(int)


def _masks(boxes: np.ndarray) -> torch.Tensor:
    masks = torch.zeros(len(boxes), *CANVAS, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def _all_at_once(maps: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """IoU ``[P, 100]`` of full-size heatmaps, blocks of them at a time."""
    found = []
    for begin in range(0, len(maps), BLOCK):
        full = resize_published(maps[begin : begin + BLOCK], CANVAS)[:, None]
        here = torch.zeros(len(full), dtype=torch.long)
        found.append(threshold_ious(full, here, _masks(boxes[begin : begin + BLOCK])[:, None])[:, 0])
    return torch.cat(found)


def _in_turn(maps: torch.Tensor, boxes: np.ndarray, resize_once: bool = False) -> torch.Tensor:
    """The same, as it is written down: resize, divide, compare and count for each threshold.

    resize_once: only compare and count for each.
    """
    found = []
    for heatmap, truth in zip(maps, _masks(boxes), strict=True):
        ious = []
        for threshold in THRESHOLDS:
            if not (resize_once and ious):
                full = resize_published(heatmap[None], CANVAS)[0]
                relative = full / full.max()
            above = relative > threshold
            ious.append((above & truth).sum().double() / (above | truth).sum().double())
        found.append(torch.stack(ious))
    return torch.stack(found)


def _bootstrap(rounds: int) -> Iterator[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    values, images = rng.random(20_000), pd.Series(rng.integers(5_000, size=20_000)).astype(str).to_numpy()
    times = _timed(lambda: bootstrap_mean(values, images, resamples=10_000), rounds)
    yield "**bootstrap, 10,000 resamples over 5,000 images**", f"**{times.told()}**", "2 s"


def _memory() -> Iterator[tuple[str, str, str]]:
    peaks = {}
    for count in (100, 400):
        command = [sys.executable, __file__, "--child", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[count] = json.loads(done.stdout)
        yield f"peak memory, {count:,} heatmaps of 10 x 112 x 112", f"{peaks[count]:.0f} MiB", ""
    yield "**memory, 400 over 100**", f"**{peaks[400] / peaks[100]:.3f}**", "1 (flat)"


def _peak_of(count: int) -> float:
    """Peak resident memory (Linux) of scoring heatmaps batch by batch, as ``evaluate`` does."""
    rng = np.random.default_rng(0)
    for number in range(count):
        item = _boxed(rng, number)
        example = Example(**{**vars(item.example), "images": ("",) * 10})
        heatmap = rng.random((10, 112, 112), dtype=np.float32)
        grounding = (PhrasePrediction(item.phrase.id, heatmap=heatmap),)
        score([example], [Prediction(example.id, 0, 1.0, True, grounding)], 0.5)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class _Times(NamedTuple):
    """Seconds by the clock, and of all threads together, which other programs disturb less."""

    clock: float
    processor: float

    def told(self) -> str:
        return f"{self.clock:.2f} s ({self.processor:.2f} s)"


def _timed(run: Callable[[], object], rounds: int) -> _Times:
    """Medians, after a round that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return _Times(*(median(values) for values in zip(*times[1:], strict=True)))


if __name__ == "__main__":
    main()
