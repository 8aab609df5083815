"""Plain values: those that a user gives, and those that go to others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default, and a tuple its length; an integer serves for a float.

    >>> like(2.5, 10), like(True, 10), like(1, 0.5), like((12, 4), (24, 4))
    (False, False, True, True)
    """
    if isinstance(default, tuple):
        return type(value) is tuple and len(value) == len(default) and all(map(like, value, default))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


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
