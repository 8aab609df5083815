"""Plain values that a user gives, compared with the default that they replace."""

from __future__ import annotations

from typing import Any


def like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default, and a tuple its length; an integer serves for a float.

    >>> like(2.5, 10), like(True, 10), like(1, 0.5), like((12, 4), (24, 4))
    (False, False, True, True)
    """
    if isinstance(default, tuple):
        return type(value) is tuple and len(value) == len(default) and all(map(like, value, default))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)
