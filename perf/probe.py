"""Speed of probes over scikit-learn's, as ratios taken in one run: ``python perf/probe.py [--help]``.

Sites hold vectors whose columns are correlated, with a latent vector in them that is louder from site to site; labels
are drawn from a softmax of it. Every seed holds out a fifth of the rows, ``--examples`` are trained on. Ours trains all
sites, strengths and seeds together, its standardisation included; scikit-learn's estimators get standardised float32
rows ready, and fit every strength at one site and seed a round. They take turns; a ratio is scikit-learn's time a fit
over ours, the median over rounds. Accuracy is compared on the rows held out, fit by fit. OMP_NUM_THREADS is the number
of threads of both (2). With more than one, numpy's wait busily while other programs run, and that is counted: on a
machine that is not idle, trust the processor time of one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
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
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from probe.estimators import LogisticProbe, MLPClassifierProbe, Task, VectorClassifier, fit_grid

FOLDS = 5
STRENGTHS = (0.1, 0.01, 0.001, 0.0001, 0.00001)
LATENT = 16
AIMS = {"binary": 6, "10-way": 6, "mlp": 4}


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
    parser.add_argument("--epochs", type=int, default=10, help="of the MLP")
    parser.add_argument("--mlp-sites", type=int, default=2, help="the last ones; each site is trained by itself")
    parser.add_argument("--quick", action="store_true", help="2,000 rows of 128, 3 sites, one round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.examples, options.width, options.sites, options.rounds, options.epochs = 2_000, 128, 3, 1, 3
    return options


if __name__ == "__main__":
    main()
