"""Time of a training step beside the bare one of the same module: ``python perf/finetune.py [--help]``.

Bare: forward pass, losses, backward pass, clipping and optimiser, on batches that are ready. Ours: the whole loop of
``probe finetune``: batches made from examples that were drawn before, Lightning, averaged weights, logs. The two take
turns; the median over rounds of each round's ratio of median steps is reported, by the clock and by processor time,
which other programs disturb less. And how long a batch takes to make as a share of a bare step, first, when its scenes
are drawn, and later; with ``--workers 1`` another process makes batches meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from grounding.benchmarks.miniature import MiniatureGame
from grounding.finetune.data import make_loader
from grounding.finetune.module import FinetuneModule
from grounding.finetune.objectives import objective_for
from grounding.finetune.recipes import RECIPES, settings_from
from grounding.finetune.start import starting_model
from grounding.finetune.trainer import Machine, best_kept, make_trainer

Times = list[tuple[float, float]]  # by the clock, of the processor


class Clock(Callback):
    """When steps end."""

    def __init__(self) -> None:
        self.ends: Times = []

    def on_train_batch_end(self, *_: Any) -> None:
        """A step ended."""
        self.ends.append(now())


def now() -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="a round of each; the first two are not counted")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*no `val_dataloader`")  # which is meant
    print(f"fp32, {options.threads} CPU threads, torch {torch.__version__}")
    print("| model | bare ms | ours ms | ratio, clock | ratio, processor time | first batches / step | later / step |")
    print("|---|---|---|---|---|---|---|")
    for name in ("mini-game-vilt-aligner", "mini-game-mdetr"):
        print(f"| {measured(name, options)} |", flush=True)


def measured(name: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    settings = settings_from(RECIPES[name], name)
    examples = MiniatureGame().load("train", settings.batch_size * options.steps)
    model = starting_model(settings)([])
    loader = make_loader(examples, model.preprocessor, settings.batch_size, seed=0, train=True, workers=0)
    first = batch_time(loader)
    module = FinetuneModule(model, objective_for(settings), settings, options.steps)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    rows = []
    for number in range(options.rounds):
        steps = {}
        for kind in ("bare", "ours") if number % 2 else ("ours", "bare"):
            module.load_state_dict(start)
            steps[kind] = (bare if kind == "bare" else ours)(module, loader, options.steps)
        rows.append([steps[kind][part] for kind in ("bare", "ours") for part in (0, 1)])
    later = batch_time(loader)
    ratios = [median(row[2 + part] / row[part] for row in rows) for part in (0, 1)]
    clock = [1000 * median(row[column] for row in rows) for column in (0, 2)]
    shares = [seconds / median(row[0] for row in rows) for seconds in (first, later)]
    values = [f"{value:.0f}" for value in clock] + [f"{value:.3f}" for value in (*ratios, *shares)]
    return " | ".join([name, *values])


def bare(module: FinetuneModule, loader: DataLoader, steps: int) -> tuple[float, float]:
    """Median step of the plain loop on batches that are ready."""
    batches = list(loader)
    parameters = [p for p in module.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=module.settings.learning_rate, betas=(0.9, 0.98), fused=True)
    module.model.train()
    ends = [now()]
    for inputs, targets in batches[:steps]:
        loss = torch.stack(list(module.objective(module.model(inputs), inputs, targets).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, module.settings.clip)
        optimiser.step()
        ends.append(now())
    return median_step(ends)


def ours(module: FinetuneModule, loader: DataLoader, steps: int) -> tuple[float, float]:
    """Median step of the loop that ``probe finetune`` runs."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine("cpu", 1, 1, 0, ("csv", "tensorboard"))
        best = best_kept(module.settings, Path(folder))
        trainer = make_trainer(module.settings, steps, Path(folder), best, machine, lambda *told: None, 0)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.limit_val_batches = 0
        trainer.fit(module, loader)
    return median_step(clock.ends)


def median_step(ends: Times) -> tuple[float, float]:
    """Medians of the differences, the first two left out."""
    pairs = list(pairwise(ends))[2:]
    return median(b[0] - a[0] for a, b in pairs), median(b[1] - a[1] for a, b in pairs)


def batch_time(loader: DataLoader) -> float:
    """Seconds a batch takes to make, by the clock."""
    start = time.perf_counter()
    made = sum(1 for _ in loader)
    return (time.perf_counter() - start) / made


if __name__ == "__main__":
    main()
