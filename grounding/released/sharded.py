"""Weights of one model in several safetensors files, as Hugging Face writes what is large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from grounding.config_files import read_json_object
from grounding.errors import BadInput

INDEX = "model.safetensors.index.json"


def shards_of(index: Path) -> dict[Path, set[str]]:
    """The files that an index names, in order, and the weights in each.

    Raises BadInput for an index without any, and for one that names a file that is not beside it.
    """
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, Mapping) or not places or not all(isinstance(place, str) for place in places.values()):
        raise BadInput(f"{index} has no weight_map; accepted: an object with the file of every weight")
    shards: dict[Path, set[str]] = {index.parent / place: set() for place in sorted(set(places.values()))}
    for file in shards:
        if file.parent != index.parent or not file.is_file():
            raise BadInput(f"{index} names {file.name}, which is not in its folder; copy or download it again")
    for name, place in places.items():
        shards[index.parent / place].add(name)
    return shards


def read_sharded(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], list[Path]]:
    """Tensors by name, and the files that they are in. read: reads one of them.

    Raises BadInput as ``shards_of`` does, and for a file whose tensors are not those that the index says.
    """
    tensors: dict[str, Tensor] = {}
    shards = shards_of(index)
    for file, wanted in shards.items():
        held = read(file)
        if odd := sorted(wanted ^ set(held)):
            raise BadInput(f"{file} does not fit {index.name}: {odd[0]} is in one of them only")
        tensors |= held
    return tensors, list(shards)
