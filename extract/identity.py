"""What a run is of, the facts that its activations depend on; and what is in a folder before it is written to."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torchvision

from extract.store import MANIFEST, read_manifest
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.folders import differences, differences_told
from grounding.models.base import GroundingModel


def run_identity(
    given: Mapping[str, Any], model: GroundingModel, examples: Sequence[Example], **settings: Any
) -> dict[str, Any]:
    """The identity of a run, JSON values only: the caller's facts, the model's configuration, examples, settings."""
    config = getattr(model, "config", None)
    sizes = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    whole = {**given, "model": {"name": getattr(config, "model", type(model).__name__), **sizes}}
    whole |= {"examples": _examples_hash(examples), "examples_count": len(examples), **settings}
    return json.loads(json.dumps(whole))


def identity_hash(identity: Mapping[str, Any]) -> str:
    """sha256 of an identity, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def made_with(batch_size: int, compression: str, device: torch.device) -> dict[str, Any]:
    """What equal bytes depend on beside the identity."""
    return {
        "batch_size": batch_size,
        "compression": compression,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {
            "phrase-grounding-probe": _version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
            "captum": metadata.version("captum"),
            "h5py": h5py.__version__,
            "hdf5": h5py.version.hdf5_version,
        },
    }


def manifest_there(out: Path) -> dict[str, Any] | None:
    """The manifest of the run in ``out``; None where there is nothing yet.

    Raises BadInput where ``out`` is a file or holds something that is no run.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"out {str(out)!r} is a file; accepted: a folder, new or of this run")
    if not out.exists() or all(path.name.startswith(f"{MANIFEST}.tmp-") for path in out.iterdir()):
        return None  # another worker may be about to begin the same run
    if not (out / MANIFEST).is_file():
        raise BadInput(f"out {str(out)!r} holds files that are not a run; accepted: a folder, new or of this run")
    return read_manifest(out)


def same_means(out: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Warn where a run is resumed with another batch size, device or version: its bytes may differ."""
    if changed := differences(there, here):
        warnings.warn(f"{out}: resumed with other means, bytes may differ: {differences_told(changed)}", stacklevel=4)


def command_line() -> list[str]:
    """How this process was started."""
    return [os.path.basename(sys.argv[0]), *sys.argv[1:]]


def _examples_hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        phrases = [(p.id, p.spans, p.image_index, [r.box for r in p.regions]) for p in example.phrases]
        digest.update(repr((example.id, example.caption, example.task, phrases)).encode())
    return digest.hexdigest()


def _version() -> str:
    try:
        return metadata.version("phrase-grounding-probe")
    except metadata.PackageNotFoundError:
        return "not installed"
