"""Throughput of two local workers over one, one thread each: ``python perf/workers.py [--help]``.

The workers are processes that share a run's shards, as those of ``probe extract --engine processes`` do. Each opens the
checkpoint and the examples first; the clock runs from when all are ready to when all have ended. One and two workers
take turns, and the median over rounds of each round's ratio is reported; by processor time too, which is what the ratio
would be if no other program took the cores away.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from extract.from_checkpoint import prepare_checkpoint


def main() -> None:
    """Print the table."""
    options = _options()
    if options.child is not None:
        _child(options)
        return
    rounds = [[_measure(options, workers) for workers in (1, options.workers)] for _ in range(options.rounds)]
    print(
        f"{options.ckpt}, {options.examples} examples of {options.benchmark}, one thread each, {os.cpu_count()} cores"
    )
    print("| workers | examples a second | by processor time |\n|---|---|---|")
    for place, workers in enumerate((1, options.workers)):
        rates = [options.examples / median(row[place][kind] for row in rounds) for kind in (0, 1)]
        print(f"| {workers} | {rates[0]:.1f} | {rates[1]:.1f} |")
    told = []
    for kind in (0, 1):
        ratios = sorted(one[kind] / many[kind] for one, many in rounds)
        told.append(f"**{median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds)")
    print(f"| **ratio** | {told[0]} | {told[1]} |")


def _measure(options: argparse.Namespace, workers: int) -> tuple[float, float]:
    """Seconds by the clock, and those of processor time a worker."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(Path(folder) / "run")]
        started = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(workers)
        ]
        for process in started:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit("a worker has failed")
        clock = time.perf_counter()
        for process in started:
            _go(process)
        used = [float(process.communicate()[0]) for process in started]
        return time.perf_counter() - clock, sum(used) / workers


def _go(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.write("go\n")
        process.stdin.flush()


def _child(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    extraction = prepare_checkpoint(
        options.ckpt, options.benchmark, "train", options.child, limit=options.examples, shard_size=options.shard_size
    )
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    extraction.run()
    print(time.process_time() - before)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ckpt", default="vilt-aligner-grounded")
    parser.add_argument("--benchmark", default="mini-game")
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--shard-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default=None, help="folder to write runs in (a temporary one, removed)")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
