"""Whether what is asked of a run can be learned from its examples."""

from __future__ import annotations

from collections.abc import Sequence

from grounding.errors import BadInput
from grounding.examples import Example
from grounding.finetune.settings import FinetuneSettings


def check_task(train: Sequence[Example], settings: FinetuneSettings) -> None:
    """Raise BadInput where the task is on and no training example has one: single pictures are right by themselves."""
    if settings.task and not any(example.has_task for example in train):
        raise BadInput(
            f"task is on, but no example of split {settings.train_split!r} of {settings.benchmark!r} has candidates to "
            "choose from; accepted: grounding alone (--no-task)"
        )
