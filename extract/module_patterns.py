"""``PATH…[1]=MEANING``: which modules of a model are meant, which part of their output, and how its tokens lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from grounding.errors import BadInput

_FORM = re.compile(r"(?P<path>[^\[\]=/]+)(?P<picks>(?:\[[^\[\]=/]+\])*)(?:=(?P<meaning>[^\[\]=]+))?")
_ACCEPTED = "PATH, PATH[0] or PATH[name] for a part of the output, each with =MEANING or without"
_NAMED = 3  # names that an error suggests


@dataclass(frozen=True)
class ModulePattern:
    """A ``--module``: the path with wildcards, the parts to pick from outputs, and the meaning, if it is given.

    >>> ModulePattern.parse("encoder.*.attn[0]=1+image")
    ModulePattern(path='encoder.*.attn', picks=('0',), meaning='1+image')
    """

    path: str
    picks: tuple[str, ...] = ()
    meaning: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModulePattern:
        """Read one. Raises BadInput."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise BadInput(f"--module {text!r} cannot be read; accepted: {_ACCEPTED}")
        picks = re.findall(r"\[([^\]]+)\]", found["picks"])
        return cls(found["path"].strip("."), tuple(pick.strip("'\" ") for pick in picks), found["meaning"])

    @property
    def picked(self) -> str:
        """The picks as they are written."""
        return "".join(f"[{pick}]" for pick in self.picks)

    def find(self, model: nn.Module) -> list[str]:
        """Paths of the modules that match, in the model's order. Raises BadInput where none does."""
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        found = [name for name in names if _matches(name, self.path)]
        if not found:
            raise BadInput(f"--module {self.path!r} matches none of the {len(names)} modules{_close(self.path, names)}")
        return found

    def select(self, output: Any, what: str) -> Tensor:
        """The tensor meant: what the picks lead to, of a tuple its first element. Raises BadInput.

        A pick is a place in a tuple, list or ModelOutput, or a name in a mapping, ModelOutput or named tuple.
        """
        for pick in self.picks:
            output = _pick(output, pick, what)
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            output = output[0]
        if not isinstance(output, Tensor):
            raise BadInput(f"{what} gives {_told(output)}; name the part, as in PATH{_example(output)}")
        if not output.is_floating_point():
            raise BadInput(f"{what} gives {output.dtype} numbers; accepted: real ones")
        return output


def _matches(name: str, pattern: str) -> bool:
    """Component by component, so that ``*`` stands for one.

    >>> _matches("blocks.0.mlp", "blocks.*.mlp"), _matches("blocks.0.mlp", "blocks.*")
    (True, False)
    """
    names, patterns = name.split("."), pattern.split(".")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _close(path: str, names: Sequence[str]) -> str:
    """Modules of nearly that name, numbers in a list taken as the wildcard."""
    general = {re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name): None for name in names}
    close = get_close_matches(path, [*general, *names], _NAMED, 0.5)
    close = list(dict.fromkeys(close)) or list(dict.fromkeys(name.partition(".")[0] for name in names))
    return f"; close ones: {', '.join(close[:_NAMED])}" if close else ""


def _pick(output: Any, pick: str, what: str) -> Any:
    if re.fullmatch(r"-?\d+", pick):
        values = list(output.values()) if isinstance(output, Mapping) else output
        if isinstance(values, (tuple, list)) and -len(values) <= int(pick) < len(values):
            return values[int(pick)]
    elif isinstance(output, Mapping):
        if pick in output:
            return output[pick]
    elif not isinstance(output, Tensor) and hasattr(output, pick):
        return getattr(output, pick)
    raise BadInput(f"{what} gives {_told(output)}, which has no [{pick}]")


def _told(output: Any) -> str:
    """An output in a few words, with the shapes in it."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    parts: list[tuple[str, Any]] = []
    if isinstance(output, Mapping):
        parts = [(str(name), value) for name, value in output.items()]
    elif isinstance(output, (tuple, list)):
        parts = [(str(place), value) for place, value in enumerate(output)]
    listed = ", ".join(
        f"[{name}] {list(value.shape) if isinstance(value, Tensor) else type(value).__name__}" for name, value in parts
    )
    return f"{type(output).__name__} ({listed})" if listed else type(output).__name__


def _example(output: Any) -> str:
    named = output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, tuple) else ()
    return next((f"[{name}]" for name, value in named if isinstance(value, Tensor)), "[0]")
