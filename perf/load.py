"""Time and memory of opening a released file of full size, as ratios: ``python perf/load.py [--model NAME]``.

Each measurement is a process of its own: torch.load of a .pth; load_file of a .safetensors, which maps it and reads no
weight, the same with a sum of every tensor, which reads them all, and with a copy of them; each against finding the
weights, checking every name, shape and value, and holding them in a model. The two take turns, and the median is
reported. Peak memory counts the pages of the file that are mapped, and leaves out what the imports alone take.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file, save_file

from grounding.checkpoint import open_stored
from grounding.models import build_model, model_config
from grounding.released import load_strictly
from grounding.released.strict import without_values

OURS = "open and load strictly"
PLAIN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "torch.load": ("pth", lambda path: torch.load(path, weights_only=True)),
    "load_file, which reads no weight": ("safetensors", load_file),
    "load_file and sum": ("safetensors", lambda path: [tensor.sum() for tensor in load_file(path).values()]),
    "load_file and copy": ("safetensors", lambda path: [tensor.clone() for tensor in load_file(path).values()]),
}


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mdetr")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(options.child[0], Path(options.child[1]))))
        return
    print("| what | wall s | CPU s | peak memory MB | wall, ratio | CPU, ratio | peak over file and model |")
    print("|---|---|---|---|---|---|---|")
    for plain, (suffix, _) in PLAIN.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"released.{suffix}"
            size = _write(options.model, path)
            command = [sys.executable, __file__, "--child"]
            rounds = [[_measured([*command, way, str(path)]) for way in (plain, OURS)] for _ in range(options.rounds)]
        for place, way in enumerate((plain, OURS)):
            wall, cpu, peak = (median(row[place][k] for row in rounds) for k in ("wall", "cpu", "peak"))
            ratios = [f"{median(row[place][k] / row[0][k] for row in rounds):.2f}" for k in ("wall", "cpu")]
            ratios.append(f"{peak / (2 * size):.2f}")
            name = f"{options.model} base, {size / 1e6:.0f} MB .{suffix}: {way}"
            print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak / 1e6:.0f} | {' | '.join(ratios)} |", flush=True)


def _measured(command: list[str]) -> dict[str, float]:
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def _write(model: str, path: Path) -> int:
    with without_values():
        shapes = build_model(model_config(model, "base"), None).state_dict()
    tensors = {n: torch.full(t.shape, 0.01) if t.is_floating_point() else t for n, t in shapes.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path.stat().st_size


def _child(way: str, path: Path) -> dict[str, float]:
    with without_values():  # what is imported and compiled on first use belongs to neither
        build_model(model_config("vilt-aligner", "miniature"), None)
        build_model(model_config("mdetr", "miniature"), None)
    before, memory = resource.getrusage(resource.RUSAGE_SELF), _peak()
    start = time.perf_counter()
    kept = (PLAIN[way][1] if way in PLAIN else _ours)(path)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    del kept
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak": _peak() - memory}


def _ours(path: Path) -> object:
    stored = open_stored(path)
    return load_strictly(stored.config, stored.weights, None, path)


def _peak() -> int:
    """Largest resident memory so far (Linux); unlike ru_maxrss it does not begin with the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
