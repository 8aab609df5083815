"""Short fine-tuning runs for tests, and what they leave."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import MDETR

from grounding.checkpoint import load_checkpoint
from grounding.finetune.module import FinetuneModule
from grounding.finetune.run import finetune
from grounding.finetune.settings import FinetuneSettings

torch.set_num_threads(1)  # with more, sums are split as threads happen to be free, and runs differ in the last bits

SIZES: dict[str, dict[str, Any]] = {
    "vilt-aligner": {"width": 24, "depth": 1, "heads": 2, "feed_forward": 24, "candidate_size": 32},
    "mdetr": {
        **{name: MDETR[name] for name in ("width", "heads", "feed_forward", "text_width", "text_heads")},
        **{"encoder_layers": 1, "decoder_layers": 2, "text_layers": 1, "queries": 6, "candidate_size": 32},
    },
}


def settings(model: str = "vilt-aligner", **changes: Any) -> FinetuneSettings:
    """Six steps over 32 miniature games."""
    values: dict[str, Any] = {
        "benchmark": "mini-game",
        "config": SIZES[model],
        "steps": 6,
        "batch_size": 8,
        "warmup": 2,
        "evaluate_every": 2,
        "limit_train": 32,
        "limit_dev": 4,
        "ema_decay": 0.5,
    }
    return FinetuneSettings(model=model, **{**values, **changes})


def tuned(out: Path, model: str = "vilt-aligner", **changes: Any) -> Path:
    """Fine-tune quietly on the CPU."""
    return finetune(settings(model, **changes), out, device="cpu")


def rows(out: Path) -> list[dict[str, str]]:
    """All rows of the CSV logs, oldest first."""
    files = sorted((out / "logs").rglob("metrics.csv"), key=lambda path: len(path.parts))
    return [row for path in files for row in csv.DictReader(path.read_text().splitlines())]


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint folder."""
    return load_checkpoint(out).model.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Break training off in the step after ``at`` steps."""
    step = FinetuneModule.training_step

    def breaking(self: FinetuneModule, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == at:
            raise ConnectionError("the power failed")
        return step(self, batch, index)

    monkeypatch.setattr(FinetuneModule, "training_step", breaking)
