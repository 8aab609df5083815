"""Checkpoint folders: ``config.json``, ``model.safetensors``, ``tokenizer.json``; nothing is ever executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grounding.errors import BadInput, unknown_choice
from grounding.models import MODELS, GroundingModel, ModelConfig, build_model
from grounding.models.text import CaptionTokenizer, load_tokenizer

BUNDLED = Path(__file__).parent / "bundled"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what is known about it.

    content: sha256 over weights, configuration and the tokenizer in use. info: everything in config.json but the sizes:
    ``threshold`` (value, split it was tuned on), ``training`` (recipe and figures).
    """

    path: Path
    model: GroundingModel
    content: str
    info: Mapping[str, Any] = field(default_factory=dict)


def bundled_checkpoints() -> list[str]:
    """Names of the miniature checkpoints that come with the package."""
    return sorted(config.parent.name for config in BUNDLED.glob(f"*/{CONFIG}"))


def save_checkpoint(folder: Path, model: GroundingModel, info: Mapping[str, Any]) -> None:
    """Write a checkpoint folder; each file is complete before it gets its name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial)
    partial.replace(folder / WEIGHTS)
    tokenizer = model.preprocessor.tokenizer  # type: ignore[union-attr]
    tokenizer.save(folder / TOKENIZER)  # type: ignore[operator, union-attr]
    content = {"model": model.config.model, "config": asdict(model.config), **info}
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG)


def find_checkpoint(source: str | Path) -> Path:
    """Folder of a checkpoint given by path or by the name of a bundled one. Raises BadInput."""
    path = Path(source)
    if not path.exists() and str(source) in bundled_checkpoints():
        path = BUNDLED / str(source)
    if not path.exists():
        raise BadInput(
            f"checkpoint {str(source)!r} is neither a folder nor bundled; bundled: {', '.join(bundled_checkpoints())}"
        )
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise BadInput(f"checkpoint {str(source)!r} has no {name}; accepted: a folder with {CONFIG} and {WEIGHTS}")
    return path


def load_checkpoint(
    source: str | Path,
    device: torch.device | str = "cpu",
    model: str | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Load a checkpoint in eval mode.

    model: raise BadInput unless the checkpoint is for it. tokenizer: file, folder or name to use instead of its own.
    """
    folder = find_checkpoint(source)
    content = read_json_object(folder / CONFIG)
    name = content.pop("model", None)
    if name not in MODELS:
        raise unknown_choice(f"{folder / CONFIG}: model", name, MODELS)
    if model is not None and name != model:
        raise BadInput(f"checkpoint {str(source)!r} is for model {name!r}, not {model!r}")
    config = config_from_json(name, content.pop("config", {}), folder / CONFIG)
    own = folder / TOKENIZER
    if tokenizer is None and not own.is_file():
        raise BadInput(f"checkpoint {str(source)!r} has no {TOKENIZER}; give one with --tokenizer")
    captions = load_tokenizer(tokenizer or own, config.max_text)  # type: ignore[attr-defined]
    built = build_model(config, captions)
    _load_weights(built, folder / WEIGHTS)
    built.to(device).eval()
    return Checkpoint(folder, built, _content_hash(folder, None if tokenizer is None else captions), content)


def config_from_json(model: str, values: Mapping[str, Any], where: Path | str) -> ModelConfig:
    """A model's configuration from plain values. Raises BadInput naming an unknown field, or one of the wrong type."""
    kind = MODELS[model][0]
    defaults = {f.name: f.default for f in fields(kind)}
    if not isinstance(values, Mapping):
        raise BadInput(f"{where}: config is {values!r}; accepted: an object with {', '.join(defaults)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in given.items():
        if key not in defaults:
            raise unknown_choice(f"{where}: field", key, defaults)
        if not _like(value, defaults[key]):
            raise BadInput(f"{where}: field {key!r} is {value!r}; accepted: a value like {defaults[key]!r}")
    return kind(**given)


def _like(value: Any, default: Any) -> bool:
    """Whether a value from JSON has the type of a default, and a list its length; an integer serves for a float."""
    if isinstance(default, tuple):
        return type(value) is tuple and len(value) == len(default) and all(map(_like, value, default))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises BadInput naming the file if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds a {type(content).__name__}; accepted: a JSON object")
    return content


def _load_weights(model: GroundingModel, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems += [
        f"{name} has non-finite values"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise BadInput(f"{path} does not fit its configuration: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(tensors)


def _content_hash(folder: Path, other: CaptionTokenizer | None) -> str:
    """Hash of the files of a checkpoint; ``other`` is a tokenizer used in place of its own."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    digest.update((folder / TOKENIZER).read_bytes() if other is None else other.backend.to_str().encode())
    digest.update((folder / WEIGHTS).read_bytes())
    return digest.hexdigest()
