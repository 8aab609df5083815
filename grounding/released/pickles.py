"""Pickled checkpoints without execution: torch's weights-only reader and a short list of plain objects."""

from __future__ import annotations

import argparse
import codecs
import pathlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from grounding.errors import BadInput


class _AsDict:
    """Stands for a class of mapping: what the file fills is a plain dictionary (torch fills no other kind)."""

    def __new__(cls, *args: object) -> Any:
        return {}


class _Named:
    """Stands for a class that old Lightning files name as a key, and that nobody needs."""


_NUMPY_TYPES = tuple(type(np.dtype(code)) for code in "?bhilqBHILQefd")
ALLOWED: list[Any] = [
    argparse.Namespace,
    (_AsDict, "collections.defaultdict"),
    *(dict, list, set, int, float),  # what a defaultdict makes
    (pathlib.PurePath, "pathlib.PosixPath"),
    (pathlib.PurePath, "pathlib.PurePosixPath"),
    (pathlib.PurePath, "pathlib._local.PosixPath"),
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *((kind, f"numpy.dtypes.{kind.__name__}") for kind in _NUMPY_TYPES),
    (_AsDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (_AsDict, "lightning.fabric.utilities.data.AttributeDict"),
    (_AsDict, "lightning_fabric.utilities.data.AttributeDict"),
    (_Named, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]

ADVICE = "save the weights alone where you trust the file: torch.save(model.state_dict(), 'weights.pth')"
PICKLE = b"\x80"  # how pickles of protocol 2 and later begin


def read_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, with tensors on the CPU, mapped from the file where its format permits.

    Nothing in the file is executed: an object outside ``ALLOWED`` and torch's own list ends the reading before it is
    made. Raises BadInput that names such an object, or says that the file is empty, truncated or no checkpoint.
    """
    if not path.stat().st_size:
        raise BadInput(f"{path} is empty; accepted: a file written by torch.save")
    mapped = zipfile.is_zipfile(path)
    with safe_globals(ALLOWED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old tensor storages and pickle protocols
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # damaged bytes make the reader raise anything
            refused = _refused(path, str(error))
            if refused:
                raise BadInput(
                    f"{path} holds {refused}, which is not on the list of plain objects, so it was not read; {ADVICE}"
                ) from None
            raise BadInput(_damage(path, error)) from None


def _refused(path: Path, message: str) -> str:
    """The objects in a file that are not allowed, by their full names."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip archive, or a damaged one: what the reader said is all there is
        names = re.findall(r"GLOBAL (\S+)", message)[:1]
    return ", ".join(sorted(names))


def _damage(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        begin = file.read(200)
    if _is_text(begin):
        return f"{path} is a text file (a git-lfs pointer, a web page?); accepted: a file written by torch.save"
    archive = begin.startswith(b"PK\x03\x04")
    if (archive and not zipfile.is_zipfile(path)) or "EOF" in f"{type(error).__name__} {error}":
        return f"{path} is truncated ({path.stat().st_size} bytes); copy or download it again"
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # behind advice that is not for users
    reason = (said.splitlines() or [""])[0][:80]
    told = f"{path} cannot be read as a file written by torch.save: {type(error).__name__} {reason}".rstrip()
    return f"{told}; {ADVICE}" if begin.startswith(PICKLE) else told


def _is_text(begin: bytes) -> bool:
    """Whether bytes are the beginning of a text in UTF-8, which may end within a character."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(begin)
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable()
