"""Where results are to go, checked before the work is done, so that none of it is lost for want of a place."""

from __future__ import annotations

import os
from pathlib import Path

from grounding.errors import BadInput


def check_folder(path: Path | str | None, name: str = "out") -> None:
    """Raise BadInput where ``path`` neither is a folder that may be written to nor can be made; None is fine.

    name: of the parameter, for the message.
    """
    if path is None:
        return
    if Path(path).exists() and not Path(path).is_dir():
        raise BadInput(f"{name} {str(path)!r} is not a folder; accepted: a folder, or a path that is free for one")
    _check_place(Path(path), path, name)


def check_file(path: Path | str | None, name: str = "out") -> None:
    """Raise BadInput where ``path`` is no place for a file: a folder, or below something else than one."""
    if path is None:
        return
    if Path(path).is_dir():
        raise BadInput(f"{name} {str(path)!r} is a folder; accepted: a file, or a path that is free for one")
    _check_place(Path(path).absolute().parent, path, name)


def _check_place(folder: Path, given: Path | str, name: str) -> None:
    """The nearest folder that is there must take what comes below it."""
    place = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not place.is_dir():
        raise BadInput(f"{name} {str(given)!r} lies below {place}, which is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise BadInput(f"{name} {str(given)!r} cannot be written: no permission in {place}")
