"""Speed of probes over scikit-learn's, as ratios taken in one run: ``python perf/probe.py [--help]``.

Sites hold vectors whose columns are correlated, with a latent vector in them that is louder from site to site; labels
are drawn from a softmax of it. Every seed holds out a fifth of the rows, ``--examples`` are trained on. Ours trains all
sites, strengths and seeds together, its standardisation included; scikit-learn's estimators get standardised float32
rows ready, and fit every strength at one site and seed a round. They take turns; a ratio is scikit-learn's time a fit
over ours, the median over rounds. Accuracy is compared on the rows held out, fit by fit. OMP_NUM_THREADS is the number
of threads of both (2). With more than one, numpy's wait busily while other programs run, and that is counted: on a
machine that is not idle, trust the processor time of one thread.

Memory (``--memory``): pairs of phrases and regions are written as a run's shards, float16; another process then fits
the bilinear probe and one epoch of the MLP at all sites together from disk, and tells the most it had resident.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "2")  # of torch and of numpy
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from extract.reader import Run
from extract.store import TABLES, ShardWriter, read_shards
from probe.estimators import (
    BilinearProbe,
    LogisticProbe,
    MLPClassifierProbe,
    MLPProbe,
    Task,
    VectorClassifier,
    fit_grid,
    fit_together,
)
from probe.features import PairFeatures
from probe.stored import StoredRows

FOLDS = 5
STRENGTHS = (0.1, 0.01, 0.001, 0.0001, 0.00001)
LATENT = 16
AIMS = {"binary": 6, "10-way": 6, "mlp": 4}
PHRASES, REGIONS, SHARD = 4, 12, 1024  # of an example; examples of a shard
PAIRS = PHRASES * REGIONS
STREAMED = {
    "bilinear, rank 8, 3 steps": BilinearProbe(rank=8, max_iter=3, tol=1e-9),
    "MLP, one epoch": MLPProbe(batch_blocks=64, max_epochs=1, aligned=False),
}


@dataclass(frozen=True)
class Data:
    """Rows of every site ``[n, D]``, labels ``[n]``, and for each seed the rows that are trained on."""

    sites: list[np.ndarray]
    labels: np.ndarray
    train: list[np.ndarray]

    @classmethod
    def draw(cls, classes: int, options: argparse.Namespace) -> Data:
        random = np.random.default_rng(classes)
        count = options.examples * FOLDS // (FOLDS - 1)
        latent = random.standard_normal((count, LATENT), dtype=np.float32)
        scores = latent @ random.standard_normal((LATENT, classes)) * (3 / LATENT**0.5)
        labels = (scores + random.gumbel(size=scores.shape)).argmax(1)
        size = np.arange(1, options.width + 1, dtype=np.float32) ** -0.6
        sites = []
        for signal in np.geomspace(0.02, 0.2, options.sites).astype(np.float32):
            axes = np.linalg.qr(random.standard_normal((options.width, options.width)))[0].astype(np.float32)
            rows = random.standard_normal((count, options.width), dtype=np.float32) * size
            rows[:, :LATENT] += signal * latent[:, random.permutation(LATENT)] * size[0]
            rows[:, -LATENT:] += signal * latent
            sites.append(rows @ axes)
        folds = random.permutation(count) % FOLDS
        return cls(sites, labels, [folds != seed % FOLDS for seed in range(options.seeds)])


def main() -> None:
    """Print the tables of ratios."""
    options = _options()
    if options.child:
        print(json.dumps(_stream(options)))
        return
    if options.memory:
        _memory(options)
        return
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(
        f"{options.examples:,} rows of {options.width}, {options.sites} sites, {len(STRENGTHS)} strengths, "
        f"{options.seeds} seeds; {options.rounds} rounds; {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if set(options.parts) & set(AIMS):
        print("| fit | ours, ms | scikit-learn, ms | ratio, clock | ratio, processor | aim | accuracy apart, points |")
        print("|---|---|---|---|---|---|---|", flush=True)
    for part in options.parts:
        if part in AIMS:
            _compare(part, options)
        else:
            _jobs(options)


def _compare(part: str, options: argparse.Namespace) -> None:
    """The line of the table for one kind of fit."""
    data = Data.draw(10 if part == "10-way" else 2, options)
    sites = data.sites[-options.mlp_sites :] if part == "mlp" else data.sites
    hidden, epochs = (options.hidden,), options.epochs
    ours: VectorClassifier = MLPClassifierProbe(hidden, max_epochs=epochs) if part == "mlp" else LogisticProbe()
    fits = len(sites) * options.seeds * len(STRENGTHS)
    tasks = [Task(data.labels, train, seed=seed) for seed, train in enumerate(data.train)]
    times, apart = [], []
    for turn in range(options.rounds):
        found, together = _timed(partial(fit_grid, ours, sites, tasks, STRENGTHS))
        site, seed = turn % len(sites), turn % options.seeds
        train = data.train[seed]
        mean, scale = sites[site][train].mean(0), sites[site][train].std(0)
        rows, labels = (sites[site][train] - mean) / scale, data.labels[train]
        alone = []
        for strength, probe in zip(STRENGTHS, found[site][seed], strict=True):
            reference = _reference(part, strength, len(labels), options)
            alone.append(_timed(partial(reference.fit, rows, labels))[1])
            held_out, truth = sites[site][~train], data.labels[~train]
            score = reference.score((held_out - mean) / scale, truth)
            apart.append(100 * (probe.score(held_out, truth) - score))
        times.append([(together[kind] / fits, np.mean([t[kind] for t in alone])) for kind in (0, 1)])
    clock, processor = (
        [median(column) for column in zip(*[(a, b, b / a) for a, b in kind], strict=True)]
        for kind in zip(*times, strict=True)
    )
    name = f"{part}, {hidden[0]} units, {epochs} epochs" if part == "mlp" else part
    print(
        f"| {name}, {fits} fits | {1e3 * clock[0]:.1f} ({1e3 * processor[0]:.1f}) | {1e3 * clock[1]:.0f} "
        f"({1e3 * processor[1]:.0f}) | **{clock[2]:.1f}** | **{processor[2]:.1f}** | {AIMS[part]} | "
        f"{np.mean(apart):+.2f} ({min(apart):+.2f} to {max(apart):+.2f}) |",
        flush=True,
    )


def _reference(part: str, strength: float, count: int, options: argparse.Namespace) -> Any:
    """scikit-learn's estimator of the same penalty."""
    if part == "mlp":  # its penalty is divided by the rows of a batch and goes through Adam: only near ours
        return MLPClassifier((options.hidden,), batch_size=200, max_iter=options.epochs, alpha=strength, random_state=0)
    return LogisticRegression(C=1 / (strength * count), max_iter=1000)


def _jobs(options: argparse.Namespace) -> None:
    """How time grows with the number of problems."""
    data = Data.draw(2, options)
    print("| sites x seeds x strengths | fits | ms, clock (processor) | ms a fit | over the first, a fit |")
    print("|---|---|---|---|---|")
    first = 0.0
    for sites, seeds, strengths in ((1, 1, 1), (1, 1, 5), (1, 3, 5), (4, 3, 5), (13, 3, 5)):
        tasks = [Task(data.labels, data.train[seed]) for seed in range(min(seeds, options.seeds))]
        shape = min(sites, options.sites), len(tasks), strengths
        fits = shape[0] * shape[1] * shape[2]
        run = partial(fit_grid, LogisticProbe(), data.sites[: shape[0]], tasks, STRENGTHS[:strengths])
        runs = [_timed(run)[1] for _ in range(options.rounds)]
        clock, processor = (1e3 * median(column) for column in zip(*runs, strict=True))
        first = first or processor / fits
        print(
            f"| {' x '.join(map(str, shape))} | {fits} | {clock:.0f} ({processor:.0f}) | "
            f"{clock / fits:.0f} ({processor / fits:.0f}) | **{processor / fits / first:.2f}** |",
            flush=True,
        )


def _memory(options: argparse.Namespace) -> None:
    """The table of streaming."""
    total = options.pairs // PAIRS * PAIRS
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        size = _write_pairs(Path(folder), options)
        print(
            f"{total:,} pairs x {options.sites} sites of width {options.width}, {size:.1f} GiB of float16 on disk; "
            f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
        )
        print("| probe | most resident, GiB (of it, mapped files) | aim | s, clock (processor) | accuracy, last site |")
        print("|---|---|---|---|---|", flush=True)
        for name in STREAMED:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name, "--out", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {name} | **{found['peak']:.2f}** ({found['mapped']:.2f}) | 4 | {found['clock']:.0f} "
                f"({found['processor']:.0f}) | {found['accuracy']:.3f} |",
                flush=True,
            )


def _write_pairs(folder: Path, options: argparse.Namespace) -> float:
    """Shards of examples of 4 phrases and 12 regions, of which the first 4 are the phrases'; GiB."""
    random = np.random.default_rng(0)
    names = [f"block.{number}" for number in range(options.sites)]
    columns = {(name, view): options.width for name in names for view in ("phrase", "region")}
    order = random.permutation(options.width)
    total = options.pairs // PAIRS
    for shard, begin in enumerate(range(0, total, SHARD)):
        count = min(SHARD, total - begin)
        writer = ShardWriter(folder, shard, "perf", columns)
        region = random.standard_normal((count, REGIONS, options.width), dtype=np.float32)
        noise = random.standard_normal((count, PHRASES, options.width), dtype=np.float32)
        for number, name in enumerate(names):
            phrase = noise + (number + 1) / options.sites * region[:, :PHRASES, order]
            writer.append(name, "phrase", phrase.reshape(-1, options.width).astype(np.float16))
            writer.append(name, "region", region.reshape(-1, options.width).astype(np.float16))
        writer.commit(begin, begin + count, dict.fromkeys(TABLES, 1), {table: {"id": np.arange(1)} for table in TABLES})
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**30


def _stream(options: argparse.Namespace) -> dict[str, float]:
    """Fit one probe from disk; GiB at most resident, seconds, and accuracy on the pairs of the first 500 examples."""
    views = ("phrase", "region")
    sites = [
        {"name": f"block.{n}", "stage": "block", "layer": n, "streams": views, "width": options.width, "views": views}
        for n in range(options.sites)
    ]
    run = Run(Path(options.out), {"sites": sites}, read_shards(Path(options.out)))
    example, pair = np.divmod(np.arange(options.pairs // PAIRS * PAIRS), PAIRS)
    phrase, region = np.divmod(pair, REGIONS)
    places = example * PHRASES + phrase, example * REGIONS + region, example
    features = [PairFeatures(*(StoredRows(run, site["name"], view) for view in views), *places) for site in sites]
    probe = STREAMED[options.child]
    probes = [clone(probe) for _ in sites]
    watch = _Watch()
    _, (clock, processor) = _timed(partial(fit_together, probes, features, phrase == region))
    first = example < 500
    accuracy = probes[-1].score(features[-1][first], (phrase == region)[first])
    return {**watch.stop(), "clock": clock, "processor": processor, "accuracy": accuracy}


class _Watch:
    """The most that this process has resident, looked at twenty times a second."""

    def __init__(self) -> None:
        self.peak = {"peak": 0.0, "mapped": 0.0}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(0.05):
            _, resident, mapped, *_ = Path("/proc/self/statm").read_text().split()
            for name, pages in (("peak", resident), ("mapped", mapped)):
                self.peak[name] = max(self.peak[name], int(pages) * os.sysconf("SC_PAGESIZE") / 2**30)

    def stop(self) -> dict[str, float]:
        self.ended.set()
        self.thread.join()
        return self.peak


def _timed(run: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What a function gives, and its seconds by the clock and of the processor (all threads)."""
    clock, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, (time.perf_counter() - clock, time.process_time() - processor)


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000, help="rows that are trained on")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sites", type=int, default=13)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=[*AIMS, "jobs"], choices=[*AIMS, "jobs"])
    parser.add_argument("--hidden", type=int, default=100, help="units of the MLP's layer")
    parser.add_argument("--epochs", type=int, default=5, help="of the MLP")
    parser.add_argument(
        "--mlp-sites", type=int, default=1, help="the last ones: sites of this width are trained one by one"
    )
    parser.add_argument("--memory", action="store_true", help="measure streaming from disk, and nothing else")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="of --memory")
    parser.add_argument("--out", default=None, help="folder for the temporary store of --memory")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="2,000 rows of 128, 3 sites, one round; 50,000 pairs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.examples, options.width, options.sites, options.rounds, options.pairs = 2_000, 128, 3, 1, 50_000
    return options


if __name__ == "__main__":
    main()
