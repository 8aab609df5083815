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
from grounding.models.text import load_tokenizer

BUNDLED = Path(__file__).parent / "bundled"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what is known about it.

    content: sha256 over weights, configuration and tokenizer. info: everything in config.json but the sizes:
    ``threshold`` (value, split it was tuned on), ``training`` (recipe and figures).
    """

    path: Path
    model: GroundingModel
    content: str
    info: Mapping[str, Any] = field(default_factory=dict)


def bundled_checkpoints() -> list[str]:
    """Names of the miniature checkpoints that come with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / CONFIG).is_file())


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
    content = _read_config(folder / CONFIG)
    name = content.pop("model", None)
    if name not in MODELS:
        raise unknown_choice(f"{folder / CONFIG}: model", name, MODELS)
    if model is not None and name != model:
        raise BadInput(f"checkpoint {str(source)!r} is for model {name!r}, not {model!r}")
    config = config_from_json(name, content.pop("config", {}), folder / CONFIG)
    own = folder / TOKENIZER
    if tokenizer is None and not own.is_file():
        raise BadInput(f"checkpoint {str(source)!r} has no {TOKENIZER}; give one with --tokenizer")
    built = build_model(config, load_tokenizer(tokenizer or own, config.max_text))  # type: ignore[attr-defined]
    _load_weights(built, folder / WEIGHTS)
    built.to(device).eval()
    return Checkpoint(folder, built, _content_hash(folder), content)


def config_from_json(model: str, values: Mapping[str, Any], where: Path | str) -> ModelConfig:
    """A model's configuration from plain values. Raises BadInput naming an unknown field."""
    kind = MODELS[model][0]
    names = [f.name for f in fields(kind)]
    for key in values:
        if key not in names:
            raise unknown_choice(f"{where}: field", key, names)
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None


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


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()
