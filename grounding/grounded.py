"""When an example counts as grounded."""

from __future__ import annotations

from grounding.errors import BadInput

GROUNDED_AT = 0.5  # mean IoU of its phrases from which on it does


def check_grounded_at(threshold: float) -> None:
    """Raise BadInput unless an example can count as grounded from that value on."""
    if not 0 < threshold <= 1:
        raise BadInput(f"grounded-at {threshold:g} cannot be; accepted: above 0, at most 1")
