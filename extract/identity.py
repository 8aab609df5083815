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

from extract.loading import shard_range
from extract.store import MANIFEST, read_manifest, read_records
from grounding.errors import BadInput
from grounding.examples import Example
from grounding.folders import differences, differences_told
from grounding.image_hash import image_hash
from grounding.models.base import GroundingModel


def run_identity(
    given: Mapping[str, Any], model: GroundingModel, examples: Sequence[Example], **settings: Any
) -> dict[str, Any]:
    """The identity of a run, JSON values only: the caller's facts, the model's configuration, examples with their
    images by shard, settings, of which ``shard_size`` is one.
    """
    config = getattr(model, "config", None)
    sizes = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    whole = {**given, "model": {"name": getattr(config, "model", type(model).__name__), **sizes}}
    whole |= {"examples": _examples_hash(examples), "examples_count": len(examples)}
    if images := _image_hashes(examples, settings["shard_size"]):
        whole["images"] = images
    return json.loads(json.dumps(whole | settings))


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


def weights_of(identity: Mapping[str, Any]) -> str | None:
    """Whose states a run holds: the content of its checkpoint, or which fresh weights in its place; None if unknown."""
    content, fresh = identity.get("checkpoint"), identity.get("fresh_weights")
    return content if fresh is None else f"fresh weights {fresh} of {content}"


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


def with_mended_images(out: Path, there: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the run in ``out`` with its images as ``facts`` has them, but for shards that are written.

    An image that stopped a run may have been mended since. Where no shard is written, nothing tells that the other
    images are the same, and the manifest stays as it is.
    """
    before, now = (identity.get("images", {}) for identity in (there["identity"], facts))
    if before == now or not (written := {_shard_name(record.shard) for record in read_records(out)}):
        return there
    images = {shard: told for shard, told in now.items() if shard not in written}
    images |= {shard: told for shard, told in before.items() if shard in written}
    identity = {**there["identity"], "images": images}
    return {**there, "identity": identity, "identity_hash": identity_hash(identity)}


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
        phrases = [(p.id, p.type, p.spans, p.image_index, [r.box for r in p.regions]) for p in example.phrases]
        groups = sorted(example.groups.items())
        digest.update(repr((example.id, example.caption, example.task, groups, phrases)).encode())
    return digest.hexdigest()


def _image_hashes(examples: Sequence[Example], shard_size: int) -> dict[str, str]:
    """Shard -> the beginning of ``image_hash`` of its examples, without shards whose images are drawn on demand."""
    count, found = len(examples), {}
    for shard in range(-(-count // shard_size)):
        told = image_hash(examples[i] for i in shard_range(shard, shard_size, count))
        if told is not None:
            found[_shard_name(shard)] = told[:16]
    return found


def _shard_name(shard: int) -> str:
    return f"shard {shard}"


def _version() -> str:
    try:
        return metadata.version("phrase-grounding-probe")
    except metadata.PackageNotFoundError:
        return "not installed"
