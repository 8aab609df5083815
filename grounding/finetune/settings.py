"""What decides what a fine-tuning run learns, checked before anything is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grounding.errors import BadInput, unknown_choice
from grounding.finetune.annotation_quality import AnnotationQuality
from grounding.finetune.budget import UNITS
from grounding.metrics.boxes import MODES

PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "linear")
MONITORS = ("dev/accuracy", "dev/pointing", "dev/loss")  # the last: lower is better
POSITION_GRID = "position_grid"  # the one field of a configuration that may differ from the checkpoint's
LEAST = {
    **dict.fromkeys(("steps", "batch_size", "evaluate_every", "limit_train", "limit_dev"), 1),
    **dict.fromkeys(("epochs", "accumulate", "patience"), 1),
    **dict.fromkeys(("warmup", "seed", "clip", "weight_decay"), 0),
}
LARGEST_SEED = 2**32 - 1  # that numpy takes


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides what a run learns; a resumed run must have the same.

    task, grounding: which losses are on, with task_weight (None: the model's own) and grounding_weight; losses:
    ``paper`` gives them the originals' defects (docs/differences.md); auxiliary: MDETR answers at every decoder layer,
    not at the last alone. grounding_fraction: share of the annotations that is learned from, by phrase or image
    (``grounding.finetune.budget``), budget ``paper`` for the study's own subsets; jitter_iou, drop_rate, swap_rate:
    annotations made worse (``grounding.finetune.annotation_quality``).
    init: checkpoint to start from (its sizes and tokenizer are kept).
    config: fields of the model's configuration that differ from the named size; with init, ``position_grid`` alone.
    train_split: ``pretrain`` for grounding pre-training on the miniature. epochs: instead of steps. accumulate: batches
    an optimiser step. learning_rate_backbone, learning_rate_text: of MDETR's backbone and text encoder, where they
    differ. warmup: steps, or below 1 a share of all. clip: largest norm of the gradient, 0 for none.
    evaluate_every: steps between validations, at which the best is kept by ``monitor`` (by default accuracy of the
    task, without one pointing: share of phrases put inside one of their boxes); patience: validations without a better
    one after which the run ends. skip_bad: leave out broken examples and list them in the checkpoint, instead of
    stopping at the first.
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
    auxiliary: bool = True
    task_weight: float | None = None
    grounding_weight: float = 1.0
    grounding_fraction: float = 1.0
    budget_by: str = "phrase"
    budget: str = "corrected"
    jitter_iou: float = 1.0
    drop_rate: float = 0.0
    swap_rate: float = 0.0
    steps: int = 4000
    epochs: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 5e-4
    learning_rate_backbone: float | None = None
    learning_rate_text: float | None = None
    weight_decay: float = 0.05
    beta2: float = 0.98
    schedule: str = "cosine"
    warmup: float = 200
    clip: float = 1.0
    ema_decay: float = 0.998
    evaluate_every: int = 500
    monitor: str | None = None
    patience: int | None = None
    limit_train: int | None = None
    limit_dev: int | None = 500
    precision: str = "fp32"
    seed: int = 0
    data_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (value := getattr(self, name)) is not None and not least <= value < math.inf:  # also of NaN
                fault = "too small" if value < least else "not finite"
                raise BadInput(f"{name} {value} is {fault}; accepted: {least} or more")
        if self.seed > LARGEST_SEED:
            raise BadInput(f"seed {self.seed} is too large; accepted: 0 to {LARGEST_SEED}")
        fixed = [name for name in self.config if name != POSITION_GRID]
        if self.init is not None and fixed:
            given = ", ".join(fixed)
            raise BadInput(f"config {given}: init {self.init!r} brings its own; accepted: {POSITION_GRID} or none")
        if not self.task and not self.grounding:
            raise BadInput("task and grounding are both off: nothing to learn; accepted: one of them or both on")
        for name, accepted in (
            ("losses", MODES), ("budget", MODES), ("budget_by", UNITS), ("schedule", SCHEDULES),
            ("monitor", MONITORS), ("precision", PRECISIONS),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value not in accepted:
                raise unknown_choice(name, value, accepted)
        for name in ("learning_rate", "learning_rate_backbone", "learning_rate_text"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:  # also of NaN
                raise BadInput(f"{name} {value} is not above 0 and finite")
        for loss in ("task", "grounding"):
            weight = getattr(self, f"{loss}_weight")
            if weight is not None and not 0 < weight < math.inf:
                raise BadInput(f"{loss}_weight {weight} is not above 0 and finite; without that loss: --no-{loss}")
        if not 0 <= self.grounding_fraction <= 1:
            raise BadInput(f"grounding_fraction {self.grounding_fraction} is outside 0..1")
        if self.grounding and not self.grounding_fraction:
            raise BadInput("grounding_fraction 0 keeps none, but the grounding loss is on; accepted: --no-grounding")
        if self.monitor == "dev/accuracy" and not self.task:
            raise BadInput("monitor 'dev/accuracy' needs the task, which is off; accepted: dev/pointing, dev/loss")
        _ = self.quality
        for name in ("ema_decay", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name} {getattr(self, name)} is outside 0..1")

    @property
    def monitored(self) -> str:
        """The figure of dev by which the best weights are chosen."""
        return self.monitor or ("dev/accuracy" if self.task else "dev/pointing")

    @property
    def quality(self) -> AnnotationQuality:
        """How the annotations are spoilt. Raises BadInput for impossible rates."""
        return AnnotationQuality(self.jitter_iou, self.drop_rate, self.swap_rate)


def stored_settings(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that a checkpoint says it was fine-tuned with; empty where it does not say."""
    return (info.get("training") or {}).get("settings") or {}
