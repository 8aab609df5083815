"""Forward hooks for the length of a ``with``: removed in every case."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks(ABC):
    """Context manager whose ``_attach`` hooks modules; inside it, forward passes run through them."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def _attach(self) -> None:
        """Hook what is to be seen, by ``_add``."""

    def __enter__(self) -> Self:
        try:
            self._attach()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _add(self, module: nn.Module, hook: Any) -> None:
        self._handles.append(module.register_forward_hook(hook))

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()
