"""A function that takes another one's arguments, without listing them again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def arguments_of(prepare: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Decorator: the function has the parameters of ``prepare``, for type checkers and for ``help``."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        own, signature = inspect.signature(function), inspect.signature(prepare)
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=own.return_annotation
        )
        return function

    return decorate
