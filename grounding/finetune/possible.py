"""Whether what is asked of a run can be learned from its examples, and measured on dev."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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


def check_monitored(
    dev: Sequence[Example], dropped_phrases: Collection[tuple[str, str]], settings: FinetuneSettings
) -> None:
    """Raise BadInput where the best is to be found by what dev lacks: annotated phrases, or a task.

    dropped_phrases: (example id, phrase id) of those that a caption's tokens do not hold.
    """
    if settings.monitored == "dev/accuracy" and not any(example.has_task for example in dev):
        raise BadInput(
            f"monitor 'dev/accuracy' needs a task, but none of the {len(dev)} examples of split 'dev' has candidates "
            "to choose from; accepted: dev/pointing or dev/loss, or a dev with some"
        )
    by_phrases = settings.monitored == "dev/pointing" or not settings.task
    if by_phrases and not any(
        phrase.regions and (example.id, phrase.id) not in dropped_phrases
        for example in dev
        for phrase in example.phrases
    ):
        others = "dev/accuracy or dev/loss, or " if settings.task else ""
        raise BadInput(
            f"monitor {settings.monitored!r} needs annotated phrases, but the {len(dev)} examples of split 'dev' have "
            f"none; accepted: {others}a dev (--limit-dev) with some"
        )
