"""Hugging Face folders of the models that have an adapter: strictly, from safetensors, nothing of theirs executed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from grounding.config_files import read_json_object
from grounding.errors import BadInput
from grounding.models.hf import ADAPTERS, HfConfig, HfModel, adapter, build_adapted, read_config
from grounding.models.hf.attention import register
from grounding.models.text import CaptionTokenizer
from grounding.released.formats import Stored
from grounding.released.sharded import INDEX, shards_of
from grounding.released.strict import POSITIONS, LoadReport, Weights

WEIGHTS = "model.safetensors"
NUMBERS = "the numbers 0, 1, 2, ..., which the model makes itself"
ANOTHER = "another form there, or the same weight as another here; transformers knows which"
UNUSED = "not in the file: fresh values, which transformers says that nothing uses"
LEFT_OUT = "not in the model, or in another form there; transformers says so"

_Row = tuple[tuple[int, ...], Tensor]  # shape and first row of a weight


def has_adapter(folder: Path) -> bool:
    """Is the folder for an adapter? A ViLT is where it has the retrieval head; others go to our own ViLT-Aligner."""
    settings = read_json_object(folder / "config.json")
    kind, classes = settings.get("model_type"), settings.get("architectures") or ()
    return kind in ADAPTERS and (kind != "vilt" or ADAPTERS["vilt"].architecture in classes)


def open_hugging_face(folder: Path, weights: str | None, config: Mapping[str, Any] | None) -> Stored:
    """Find what a folder holds; its weights are read by ``load_hugging_face``. Raises BadInput."""
    if weights is not None or config:
        given = "--weights" if weights is not None else "--config"
        raise BadInput(f"{folder} is a Hugging Face folder, which says what it holds itself; leave {given} out")
    found = read_config(folder)
    return Stored(
        path=folder,
        format=f"Hugging Face {found.model_type}",
        chosen="only",
        config=found,
        weights=Weights({}),
        files=(folder / "config.json", *_weight_files(folder)),
        tokenizer=folder if (folder / "tokenizer.json").is_file() else None,
    )


def load_hugging_face(stored: Stored, tokenizer: CaptionTokenizer | None) -> tuple[HfModel, LoadReport]:
    """The model in eval mode, fp32, on the CPU; transformers reads the weights, old names included.

    tokenizer: None for a model that will not be asked. Raises BadInput for a weight that is missing, unexpected,
    of another shape or not finite, and for a tokenizer with more tokens than the model has embeddings for.
    """
    config = stored.config
    assert isinstance(config, HfConfig)
    if tokenizer is not None and config.reads_text and tokenizer.vocabulary_size > config.vocabulary:
        raise BadInput(
            f"tokenizer has {tokenizer.vocabulary_size} tokens, more than the {config.vocabulary} that the model has "
            "embeddings for"
        )
    rows = _first_rows(stored.files[1:])
    network, told = _read(stored.path, config)
    require_sound(stored.path, adapter(config.model_type).architecture, network, told)
    own = network.state_dict()
    renamed, missing = _not_by_name(network, rows)
    ignored = {
        name: NUMBERS if name.endswith(POSITIONS) else LEFT_OUT
        for name in rows
        if name not in own and name not in renamed.values()
    }
    loaded = tuple(name for name in own if name not in missing)
    report = LoadReport(loaded, renamed, ignored, missing)
    return build_adapted(config, tokenizer, network), report


def require_sound(folder: Path, fits: str, network: Any, told: Mapping[str, Any]) -> None:
    """Raise BadInput for weights that are missing, unexpected, of another shape or not finite.

    fits: the name of the network's class. told: transformers' account of names.
    """
    own = network.state_dict()
    problems = [f"missing {name}" for name in sorted(told["missing_keys"])]
    problems += [f"unexpected {name}" for name in sorted(told["unexpected_keys"]) if not name.endswith(POSITIONS)]
    problems += [f"{name} is {list(there)}, not {list(here)}" for name, there, here in told["mismatched_keys"]]
    problems += [f"{name} has non-finite values" for name, tensor in own.items() if not tensor.isfinite().all()]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise BadInput(f"{folder} does not fit {fits}: {'; '.join(problems[:3])}{more}")


def _not_by_name(network: Any, rows: Mapping[str, _Row]) -> tuple[dict[str, str], dict[str, str]]:
    """Weights of the network that the files lack by name: those that came otherwise, and those that did not come."""
    own = network.state_dict()
    optional = [re.compile(pattern) for pattern in network._keys_to_ignore_on_load_missing or ()]
    lacking = [name for name in own if name not in rows]
    fresh = {name for name in lacking if any(pattern.search(name) for pattern in optional)}
    free = {name: row for name, row in rows.items() if name not in own}
    renamed = {name: _take(free, name, own[name]) for name in lacking if name not in fresh}
    return renamed, dict.fromkeys(sorted(fresh), UNUSED)


def _take(free: dict[str, _Row], name: str, tensor: Tensor) -> str:
    """The name that the files have a weight by, taken out of ``free``: same shape and first row, the longest same end.

    transformers renames while it reads, and does not tell.
    """
    first = tensor[:1] if tensor.ndim else tensor
    alike = [n for n, (shape, row) in free.items() if shape == tensor.shape and torch.equal(row.to(first), first)]
    if not alike:
        return ANOTHER
    found = max(alike, key=lambda other: _same_end(other, name))
    del free[found]
    return found


def _same_end(one: str, other: str) -> int:
    """How many last characters two names share."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder} has no weights; accepted: {WEIGHTS}, or shards of it with {INDEX}")
    return tuple(shards_of(folder / INDEX))


def _first_rows(files: Sequence[Path]) -> dict[str, _Row]:
    """Shape and first row of every weight, by the files' names."""
    rows: dict[str, _Row] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in list(opened.keys()):
                    part = opened.get_slice(name)
                    shape = tuple(part.get_shape())
                    rows[name] = shape, part[:1] if shape else opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file} cannot be read: {error}") from None
    return rows


def _read(folder: Path, config: HfConfig) -> tuple[Any, Mapping[str, Any]]:
    """The network, and transformers' account of names."""
    import transformers

    chosen = adapter(config.model_type)
    register()
    try:
        return getattr(transformers, chosen.architecture).from_pretrained(
            folder, config=config.transformers_config, attn_implementation=chosen.attention, dtype=torch.float32,
            local_files_only=True, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadInput(f"{folder} cannot be read: {str(error).strip().splitlines()[0]}") from None
