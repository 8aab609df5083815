"""Settings that are said by hand, and that the others make meaningless."""

from __future__ import annotations

from collections.abc import Collection

from grounding.errors import BadInput
from grounding.finetune.settings import FinetuneSettings

_OF_MDETR = ("learning_rate_backbone", "learning_rate_text", "auxiliary")
_OF_GROUNDING = (
    "grounding_weight",
    "grounding_fraction",
    "budget_by",
    "budget",
    "jitter_iou",
    "drop_rate",
    "swap_rate",
)


def check_heeded(said: Collection[str], settings: FinetuneSettings) -> None:
    """Raise BadInput for a setting among ``said`` that changes nothing, naming the one that makes it so.

    A recipe may hold such settings, for where they apply; one that is said for this run is a mistake.
    """
    reasons: dict[str, str] = {}
    if settings.init is not None:
        reasons["size"] = f"init {settings.init!r} brings its own"
    if settings.model != "mdetr":
        reasons |= dict.fromkeys(_OF_MDETR, f"it is of mdetr, and model is {settings.model!r}")
    if not settings.grounding:
        reasons |= dict.fromkeys(_OF_GROUNDING, "the grounding loss is off")
    if not settings.task:
        reasons["task_weight"] = "the task is off"
    if settings.epochs is not None:
        reasons["steps"] = f"epochs {settings.epochs} says how long"
    for name, reason in reasons.items():
        if name in said:
            raise BadInput(f"{name} {getattr(settings, name)!r} has no effect: {reason}; accepted: without it")
