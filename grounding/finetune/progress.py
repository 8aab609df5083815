"""What a run tells of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

# Called with (done, of how many where that is known, what is being done).
Progress = Callable[[int, int | None, str], None]


class StepProgress(Callback):
    """Tells of every step, of all steps, with the latest figures."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """One step more is done."""
        figures = [f"{name} {value:.3f}" for name, value in trainer.progress_bar_metrics.items()]
        self.progress(trainer.global_step, trainer.max_steps, ", ".join(figures))

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The steps wait."""
        self.progress(trainer.global_step, trainer.max_steps, "looking at dev")
