"""Folders that results are written to: whether one can be there, and holds no other results, told before computing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grounding.errors import BadInput

_NAMED, _LONGEST = 3, 80  # differences that an error names, and characters of a value


def check_folder(out: Path | str | None, name: str = "out") -> None:
    """BadInput, naming the parameter, where ``out`` or what should hold it is a file or may not be written to; one that
    is not there is fine.
    """
    if out is None:
        return
    there = next(place for place in (Path(out), *Path(out).absolute().parents) if place.exists())
    if not there.is_dir():
        above = "" if there == Path(out) else f": {str(there)!r} is a file"
        raise BadInput(f"{name} {str(out)!r} is not a folder{above}; accepted: one, or a path that is free for it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{name} {str(out)!r} cannot be written: no permission in {str(there)!r}")


def name_of(folder: Path | str) -> str:
    """The last part of a path; of one that ends in ``.`` or ``..``, that of the folder which it means.

    >>> name_of("runs/vilt"), name_of("runs/vilt/figures/..")
    ('vilt', 'vilt')
    """
    return Path(os.path.abspath(folder)).name


def make_folder(out: Path | str, name: str = "out") -> Path:
    """The folder, made if need be. Raises BadInput, naming the parameter, where it cannot be made."""
    check_folder(out, name)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{name} {str(out)!r} cannot be made: {error.strerror}") from None
    return Path(out)


def check_file(out: Path | str | None, name: str = "out") -> None:
    """BadInput, naming the parameter, where a file cannot be written to ``out``; one that is there is replaced."""
    if out is None:
        return
    if Path(out).is_dir():
        raise BadInput(f"{name} {str(out)!r} is a folder; accepted: a file")
    check_folder(Path(out).parent, f"folder of {name}")


def read_note(path: Path, key: str, what: str) -> dict[str, Any] | None:
    """What the JSON file beside some results says, under ``key``, that they are of; None where there is no such file.

    Raises BadInput where it does not say so. what: the results in words, with an article.
    """
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} does not describe {what}; accepted: another folder") from None


def of_run(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What results of a run say that they are of, from the run's manifest."""
    return {name: manifest.get(name) for name in ("identity_hash", "identity")}


def refuse_another(out: Path | str, what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """BadInput naming the first differences, with both values, where ``out`` holds ``what`` of another identity."""
    if found := differences(there, here):
        raise BadInput(f"out {str(out)!r} holds {what}: {differences_told(found)}; choose another folder")


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested mappings, with both values.

    >>> differences({"split": "dev", "seed": 0}, {"split": "test", "seed": 0})
    ["split is 'dev' there and 'test' here"]
    """
    found = []
    for key in dict.fromkeys([*there, *here]):
        before, after = there.get(key), here.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} is {_short(before)} there and {_short(after)} here")
    return found


def differences_told(found: Sequence[str]) -> str:
    """The first of some ``differences``, and how many more there are."""
    more = f" (and {len(found) - _NAMED} more)" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
