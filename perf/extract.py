"""Speed and memory of extraction, as ratios taken in one run: ``python perf/extract.py [--help]``.

Speed: every site with the views phrase, region and attention, and with tokens too, written to disk, against the bare
forward pass of the same model over the same batches in the same precision; with opening and tokenising included in
both; and what others do instead, which is to keep every state in memory: plain hooks, and a trace of nnsight where that
is installed. The variants take turns, and the median over rounds of each round's ratio is reported. Memory: what is
resident while a process extracts the last 1,000 of 10,000 examples against the first 1,000, and its peak against
that of a process that extracts 1,000.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import resource

import torch

from extract.run import extract
from extract.shards import PRECISIONS
from grounding.benchmarks import open_benchmark
from grounding.examples import Example
from grounding.models import build_model, model_config
from grounding.models.base import Batch, GroundingModel
from grounding.models.text import train_tokenizer

VIEWS = ("phrase", "region", "attention")
COUNTS = (1_000, 10_000)  # examples whose memory is compared
Preprocess = Callable[[Sequence[Example]], Batch]


def main() -> None:
    """Print the table of ratios."""
    options = _options()
    if options.child:
        print(json.dumps(_child(options)))
        return
    torch.set_num_threads(options.threads)
    lines = [f"{options.model} {options.size}, {options.precision}, batch {options.batch_size}, {_machine(options)}"]
    lines += ["| what | value |", "|---|---|", *_speed(options)]
    if options.memory:
        lines += _memory(options)
    print("\n".join(lines))


def _speed(options: argparse.Namespace) -> list[str]:
    examples = _examples(options, options.examples)
    model = _model(options, examples)
    chunks = [examples[i : i + options.batch_size] for i in range(0, len(examples), options.batch_size)]
    ready = {chunk[0].id: model.preprocess(chunk) for chunk in chunks}
    opened = model.preprocess

    def bare(preprocess: Preprocess) -> Callable[[], None]:
        return lambda: _forward(model, chunks, preprocess, options)

    def kept(preprocess: Preprocess, views: Sequence[str] = VIEWS) -> Callable[[], None]:
        return lambda: _extract(model, examples, preprocess, options, views)

    def at_hand(chunk: Sequence[Example]) -> Batch:
        return ready[chunk[0].id]

    variants = {
        "bare": bare(at_hand),
        "extraction": kept(at_hand),
        "extraction, tokens too": kept(at_hand, (*VIEWS, "tokens")),
        "plain hooks, all states in memory": lambda: _hooked(model, chunks, at_hand, options),
        "bare, with opening images": bare(opened),
        "extraction, with opening images": kept(opened),
    }
    if find_spec("nnsight"):
        variants["nnsight, all states in memory"] = _traced(model, chunks, at_hand, options)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(options.rounds + 1):  # the first round warms up
        for name, run in variants.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            if turn:
                times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    lines = []
    for name, values in times.items():
        clock, processor = (median(column) / len(examples) * 1000 for column in zip(*values, strict=True))
        lines.append(f"| {name} | {clock:.2f} ms an example ({processor:.2f} of processor time, all threads) |")
    for over in variants:
        under = "bare, with opening images" if over.endswith("opening images") else "bare"
        lines += _ratios(times, over, under) if over != under else []
    return lines


def _ratios(times: dict[str, list[tuple[float, float]]], over: str, under: str) -> list[str]:
    """Ratio of each round, by the clock and by processor time, which other programs disturb less."""
    lines = []
    for kind, name in enumerate(("clock", "processor time")):
        ratios = sorted(a[kind] / b[kind] for a, b in zip(times[over], times[under], strict=True))
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} rounds"
        lines.append(f"| **{over} / {under}, {name}** | **{median(ratios):.3f}** ({spread}) |")
    return lines


def _memory(options: argparse.Namespace) -> list[str]:
    found = {}
    for count in COUNTS:
        arguments = [sys.executable, __file__, *sys.argv[1:], "--child", str(count)]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        found[count] = json.loads(done.stdout.splitlines()[-1])
    few, many = (found[count] for count in COUNTS)
    return [
        f"| resident at the first 1,000 of 10,000 examples, and at the last | {_mebibytes(many, 'first', 'last')} |",
        f"| **last / first** | **{many['last'] / many['first']:.3f}** |",
        f"| 1,000 examples: their list and the model; peak | {_mebibytes(few, 'before', 'peak')} |",
        f"| 10,000 examples: their list and the model; peak | {_mebibytes(many, 'before', 'peak')} |",
        f"| **peak of 10,000 / peak of 1,000** | **{many['peak'] / few['peak']:.3f}** |",
    ]


def _mebibytes(found: dict[str, float], *names: str) -> str:
    return ", ".join(f"{found[name]:.0f} MiB" for name in names)


def _child(options: argparse.Namespace) -> dict[str, float]:
    """Of a run: peak memory before and after; the median of what was resident at its first and last 1,000 examples."""
    torch.set_num_threads(options.threads)
    examples = _examples(options, options.child)
    model = _model(options, examples[:500])
    before, resident = _peak(), {}

    def look(done: int, total: int) -> None:
        resident[done] = _resident()

    _extract(model, examples, model.preprocess, options, progress=look)
    first = median(size for done, size in resident.items() if done <= COUNTS[0])
    last = median(size for done, size in resident.items() if done > len(examples) - COUNTS[0])
    return {"before": before, "peak": _peak(), "first": first, "last": last}


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _forward(
    model: Callable[[Batch], Any], chunks: list[list[Example]], preprocess: Preprocess, options: argparse.Namespace
) -> None:
    dtype = PRECISIONS[options.precision]
    precision = nullcontext() if dtype is None else torch.autocast(options.device, dtype=dtype)
    with torch.inference_mode(), precision:
        for chunk in chunks:
            model(preprocess(chunk).to(options.device, non_blocking=True))
    if options.device == "cuda":
        torch.cuda.synchronize()


def _hooked(
    model: GroundingModel, chunks: list[list[Example]], preprocess: Preprocess, options: argparse.Namespace
) -> None:
    """The output of every site's module, moved to the CPU and kept until the end."""
    states: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).to("cpu", copy=True))

    handles = [model.get_submodule(site.module_path).register_forward_hook(keep) for site in model.sites()]
    try:
        _forward(model, chunks, preprocess, options)
    finally:
        for handle in handles:
            handle.remove()


def _traced(
    model: GroundingModel, chunks: list[list[Example]], preprocess: Preprocess, options: argparse.Namespace
) -> Callable[[], None]:
    """The same states by ``nnsight.NNsight(model).trace``."""
    from nnsight import NNsight, save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of submodules that nnsight renames
        network = NNsight(model)
    paths = [site.module_path for site in model.sites()]

    def run() -> None:
        states: list[Any] = []

        def trace(batch: Batch) -> None:
            with network.trace(batch):
                kept = save([network.get(path).output for path in paths])
            states.append(kept)

        _forward(trace, chunks, preprocess, options)

    return run


def _extract(
    model: GroundingModel,
    examples: list[Example],
    preprocess: Preprocess,
    options: argparse.Namespace,
    views: Sequence[str] = VIEWS,
    **settings: Any,
) -> None:
    model.preprocess = preprocess  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        extract(
            model, examples, Path(folder) / "run", identity={}, views=views, batch_size=options.batch_size,
            precision=options.precision, dtype=options.dtype, device=options.device, threshold=0.5, **settings,
        )  # fmt: skip


def _examples(options: argparse.Namespace, count: int) -> list[Example]:
    return list(open_benchmark(options.benchmark, root=options.root).load("train", limit=count))


def _model(options: argparse.Namespace, examples: Sequence[Example]) -> GroundingModel:
    config: Any = model_config(options.model, options.size)
    tokenizer = train_tokenizer([example.caption for example in examples], config.max_text)
    config = replace(config, vocabulary=max(config.vocabulary, tokenizer.vocabulary_size))
    torch.manual_seed(0)
    return build_model(config, tokenizer).to(options.device).eval()


def _machine(options: argparse.Namespace) -> str:
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads"
    return f"{name}, torch {torch.__version__}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vilt-aligner", choices=["vilt-aligner", "mdetr"])
    parser.add_argument("--size", default="miniature", choices=["miniature", "base"])
    parser.add_argument("--benchmark", default="mini-game")
    parser.add_argument("--root", default=None)
    parser.add_argument("--examples", type=int, default=256, help="examples a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--dtype", default="float16", help="of storage; random weights at full size overflow float16")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", action="store_true", help="measure memory too (some minutes)")
    parser.add_argument("--out", default=None, help="folder to write runs in (a temporary one, removed)")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
