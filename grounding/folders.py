"""Folders that results are written to: whether one can be there, told before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from grounding.errors import BadInput


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
