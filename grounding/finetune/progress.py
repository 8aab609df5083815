"""What a run tells of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from grounding.errors import RunFailed

# Called with (done, of how many where that is known, what is being done).
Progress = Callable[[int, int | None, str], None]


class StepProgress(Callback):
    """Tells of every step, of all steps, with the latest figures.

    A RunFailed that ``progress`` raises ends the run after that step, whose state is kept in the file ``last``. A
    step that a look at dev belongs to has that first: the run ends after the next.
    """

    def __init__(self, progress: Progress, last: Path):
        self.progress = progress
        self.last = last

    def on_train_batch_end(self, trainer: lightning.Trainer, *of_batch: Any) -> None:
        """One batch more is done, and perhaps a step."""
        step, batches = trainer.global_step, trainer.accumulate_grad_batches
        if (of_batch[-1] + 1) % batches:
            return
        figures = [f"{name} {value:.3f}" for name, value in trainer.progress_bar_metrics.items()]
        try:
            self.progress(step, trainer.max_steps, ", ".join(figures))
        except RunFailed:
            if step * batches % int(trainer.val_check_interval):
                trainer.save_checkpoint(self.last)
                raise

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The steps wait."""
        with suppress(RunFailed):
            self.progress(trainer.global_step, trainer.max_steps, "looking at dev")
