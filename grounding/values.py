"""Plain values: those that a user gives, and those that go to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from grounding.errors import BadInput


def like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default, and a tuple its length; an integer serves for a float.

    >>> like(2.5, 10), like(True, 10), like(1, 0.5), like((12, 4), (24, 4))
    (False, False, True, True)
    """
    if isinstance(default, tuple):
        return type(value) is tuple and len(value) == len(default) and all(map(like, value, default))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "example"), counted(1200, "phrase")
    ('1 example', '1200 phrases')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(count: int, whole: int) -> int:
    """A count in whole per cent, halves upwards, as browsers round.

    >>> percent(23, 40), f"{23 / 40:.0%}"
    (58, '57%')
    """
    return int(100 * count / whole + 0.5)


def without_folders(value: Any) -> Any:
    """JSON values with the last part alone of every path from the root or from home.

    >>> without_folders({"root": "/data/kilogram", "sizes": [1, "dev"]})
    {'root': 'kilogram', 'sizes': [1, 'dev']}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def check_counts(**counts: int | None) -> None:
    """Raise BadInput, with its name, for a number below 1; None is none."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise BadInput(f"{name} {count} is too small; accepted: 1 or more")


def check_kind(where: str, value: Any, hint: Any) -> None:
    """Raise BadInput, beginning with ``where``, for a value of a file that is not of a parameter's type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not any(_fits(value, kind) for kind in kinds):
        words = {type(None): "null", Sequence: "a list"}
        types = [get_origin(kind) or kind for kind in kinds if not _named(kind)]
        told = [words.get(kind, getattr(kind, "__name__", str(kind))) for kind in types]
        told += [repr(name) for kind in kinds for name in _named(kind)]
        raise BadInput(f"{where} is {value!r}; accepted: {' or '.join(told)}")


def _named(kind: Any) -> tuple[Any, ...]:
    """The values that a Literal names; none of another type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def _fits(value: Any, kind: Any) -> bool:
    if _named(kind):
        return value in _named(kind)
    items, kind = get_args(kind), get_origin(kind) or kind
    if kind is Sequence:
        return isinstance(value, (list, tuple)) and all(_fits(item, each) for each in items for item in value)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) or (kind is float and isinstance(value, int))
