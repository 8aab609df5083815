"""What decides what a fine-tuning run learns, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grounding.errors import BadInput, unknown_choice
from grounding.metrics.boxes import MODES

PRECISIONS = ("fp32", "bf16", "fp16")
POSITION_GRID = "position_grid"  # the one field of a configuration that may differ from the checkpoint's
LEAST = {
    **dict.fromkeys(("steps", "batch_size", "evaluate_every", "limit_train", "limit_dev"), 1),
    **dict.fromkeys(("warmup", "seed"), 0),
}


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides what a run learns; a resumed run must have the same.

    task, grounding: which losses are on; losses: ``paper`` gives them the originals' defects (docs/differences.md).
    init: checkpoint to start from (its sizes and tokenizer are kept).
    config: fields of the model's configuration that differ from the named size; with init, ``position_grid`` alone.
    train_split: ``pretrain`` for grounding pre-training on the miniature. evaluate_every: steps between validations,
    at which the best is kept by ``monitor`` (accuracy of the task, or pointing: share of phrases put inside one of
    their boxes). skip_bad: leave out broken examples and list them in the checkpoint, instead of stopping at the first.
    """

    model: str
    benchmark: str
    root: str | None = None
    benchmark_options: Mapping[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    size: str = "miniature"
    config: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    tokenizer: str | None = None
    task: bool = True
    grounding: bool = True
    losses: str = "corrected"
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 200
    ema_decay: float = 0.998
    evaluate_every: int = 500
    limit_train: int | None = None
    limit_dev: int | None = 500
    precision: str = "fp32"
    seed: int = 0
    data_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise BadInput(f"{name} {value} is too small; accepted: {least} or more")
        fixed = [name for name in self.config if name != POSITION_GRID]
        if self.init is not None and fixed:
            given = ", ".join(fixed)
            raise BadInput(f"config {given}: init {self.init!r} brings its own; accepted: {POSITION_GRID} or none")
        if not self.task and not self.grounding:
            raise BadInput("task and grounding are both off: nothing to learn; accepted: one of them or both on")
        if self.losses not in MODES:
            raise unknown_choice("losses", self.losses, MODES)
        if self.learning_rate <= 0:
            raise BadInput(f"learning_rate {self.learning_rate} is not above 0")
        if not 0 <= self.ema_decay < 1:
            raise BadInput(f"ema_decay {self.ema_decay} is outside 0..1")
        if self.precision not in PRECISIONS:
            raise unknown_choice("precision", self.precision, PRECISIONS)

    @property
    def monitor(self) -> str:
        """The figure of dev by which the best weights are chosen."""
        return "dev/accuracy" if self.task else "dev/pointing"
