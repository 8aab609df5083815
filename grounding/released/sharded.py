"""Weights of one model in several safetensors files, as Hugging Face writes what is large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from grounding.config_files import read_json_object
from grounding.errors import BadInput

INDEX = "model.safetensors.index.json"


def read_sharded(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], list[Path]]:
    """Tensors by name, and the files that they are in. read: reads one of them.

    Raises BadInput for an index that names no files beside it, and for a file whose tensors are not those that the
    index says.
    """
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, Mapping) or not places or not all(isinstance(place, str) for place in places.values()):
        raise BadInput(f"{index} has no weight_map; accepted: an object with the file of every weight")
    tensors: dict[str, Tensor] = {}
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise BadInput(f"{index} names {file.name}, which is not in its folder; copy or download it again")
        held = read(file)
        wanted = {name for name, place in places.items() if place == file.name}
        if odd := sorted(wanted ^ set(held)):
            raise BadInput(f"{file} does not fit {index.name}: {odd[0]} is in one of them only")
        tensors |= held
    return tensors, files
