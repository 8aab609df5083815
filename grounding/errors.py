"""Errors that a user can act on. The command turns them into one line and an exit code."""

from __future__ import annotations

from collections.abc import Iterable


class BadInput(ValueError):
    """Input that cannot be used: names what was given, its value and what is accepted (exit code 2)."""


def unknown_choice(parameter: str, value: object, accepted: Iterable[object]) -> BadInput:
    """Error for a value outside a closed list.

    >>> str(unknown_choice("split", "dve", ["train", "dev"]))
    "split 'dve' is unknown; accepted: train, dev"
    """
    return BadInput(f"{parameter} {value!r} is unknown; accepted: {', '.join(str(a) for a in accepted)}")


class RunFailed(RuntimeError):
    """A run that started well and could not go on (exit code 1)."""
