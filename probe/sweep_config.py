"""A sweep from a small YAML file, whose keys are the fields of SweepSettings, ``runs`` and ``out``.

runs: [runs/vilt-task, runs/vilt-grounded]
questions: [alignment, localisation]
probes: [linear]
controls: [labels, concatenation]
seeds: [0, 1, 2]
out: runs/compared
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from grounding.errors import BadInput, unknown_choice
from grounding.yaml_text import read_mapping
from probe.settings import SweepSettings

SUFFIXES = (".yaml", ".yml")
_WORDS = ("runs", "questions", "probes", "controls", "sites", "measures")
_NUMBERS = {"seeds": int, "linear_strengths": float, "mlp_strengths": float}
_SINGLE = {"out": str, "group": str, "device": str, "folds": int, "rank": int, "resamples": int, "iou": float}
ACCEPTED = ("runs", "out", *(field.name for field in fields(SweepSettings)))


def read_config(path: Path) -> dict[str, Any]:
    """What the file says, by those keys: lists as lists, paths (from the present folder) as text.

    Raises BadInput for a file that is not such a mapping, an unknown key, and a value of another kind.
    """
    what = f"config {str(path)!r}"
    said = read_mapping(path, what, f"keys {', '.join(ACCEPTED)}")
    return {key: checked(what, key, value) for key, value in said.items()}


def checked(where: str, key: Any, value: Any) -> Any:
    """The value of a key of such a mapping; one where a list belongs becomes a list of it.

    Raises BadInput, beginning with ``where``, for an unknown key and for a value of another kind.
    """
    if key not in ACCEPTED:
        raise unknown_choice(f"{where}: key", key, ACCEPTED)
    if key in _SINGLE:
        if not _is(value, _SINGLE[key]):
            raise BadInput(f"{where}: {key} is {value!r}; accepted: {_SINGLE[key].__name__}")
        return value
    kind = str if key in _WORDS else _NUMBERS[key]
    values = value if isinstance(value, list) else [value]
    if not values or not all(_is(one, kind) for one in values):
        raise BadInput(f"{where}: {key} is {value!r}; accepted: a list of {kind.__name__}")
    return values


def _is(value: Any, kind: type) -> bool:
    """An integer serves for a float; True and False are no numbers."""
    return type(value) is kind or (kind is float and type(value) is int)
