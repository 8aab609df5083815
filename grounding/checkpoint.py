"""Checkpoints: our own folders (``config.json``, ``model.safetensors``, ``tokenizer.json``), and those of others.

Nothing in a file is ever executed; every weight is accounted for (``grounding.released``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import save_file

from grounding.config_files import config_from_json, read_json_object
from grounding.errors import BadInput, unknown_choice
from grounding.folders import check_folder, make_folder, name_of
from grounding.models import MODELS, GroundingModel
from grounding.models.hf import HfConfig
from grounding.models.hf.captions import word_tokenizer
from grounding.models.text import CaptionTokenizer, load_tokenizer
from grounding.released import ACCEPTED, LoadReport, Stored, load_strictly, open_released
from grounding.released.automatic import load_automatic, needs_automatic
from grounding.released.formats import read_safetensors
from grounding.released.fresh import fresh_any_model, fresh_model
from grounding.released.hub import download, may_be_on_the_hub
from grounding.released.hugging_face import has_adapter, load_hugging_face, open_hugging_face
from grounding.released.strict import Weights

BUNDLED = Path(__file__).parent / "bundled"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


class Loading(TypedDict, total=False):
    """What may be said about a checkpoint when it is loaded, for every function that takes one.

    tokenizer: file, folder or name to use instead of its own; released files have none. weights: ``ema`` or ``raw``
    where the file has both; None takes EMA then, else what there is. config: fields of the configuration that shall not
    be read off the file.
    """

    tokenizer: str | Path | None
    weights: str | None
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what is known about it.

    content: sha256 over weights, configuration and the tokenizer in use. info: everything in config.json but the sizes:
    ``threshold`` (value, split it was tuned on), ``training`` (recipe and figures). format, chosen: as ``Stored`` has
    them. report: what became of every weight.
    """

    path: Path
    model: GroundingModel
    content: str
    format: str
    chosen: str
    report: LoadReport
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, found by loading it strictly.

    parameters: their number; buffers are not counted. model: it runs if it was inspected as ``runnable``.
    """

    stored: Stored
    report: LoadReport
    parameters: int
    model: GroundingModel


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
    """File or folder of a checkpoint given by path, by the name of a bundled one or by a hub's. Raises BadInput."""
    path = Path(source)
    if not path.exists() and str(source) in bundled_checkpoints():
        path = BUNDLED / str(source)
    if not path.exists() and may_be_on_the_hub(source):
        path = download(str(source))
    if not path.exists():
        raise BadInput(
            f"checkpoint {str(source)!r} is neither a file, a folder nor bundled; bundled: "
            f"{', '.join(bundled_checkpoints())}; accepted: {ACCEPTED}"
        )
    if path.is_dir() and not (path / CONFIG).is_file():
        raise BadInput(f"checkpoint {str(source)!r} has no {CONFIG}; accepted: {ACCEPTED}")
    return path


def open_stored(source: str | Path, weights: str | None = None, config: Mapping[str, Any] | None = None) -> Stored:
    """Find the weights and sizes of a checkpoint of any accepted format, without making a model.

    weights: ``ema`` or ``raw`` where the file has both; None takes EMA then, else what there is. config: fields of the
    configuration that shall not be read off the file. Raises BadInput.
    """
    path = find_checkpoint(source)
    if path.is_dir() and "model_type" not in read_json_object(path / CONFIG):
        return _open_own(source, path, weights, config or {})
    if path.is_dir() and has_adapter(path):
        return open_hugging_face(path, weights, config)
    return open_released(path, weights, config)


def load_checkpoint(
    source: str | Path,
    device: torch.device | str = "cpu",
    model: str | None = None,
    tokenizer: str | Path | None = None,
    weights: str | None = None,
    config: Mapping[str, Any] | None = None,
    adapted: bool = True,
    fresh_weights: int | None = None,
) -> Checkpoint:
    """Load a checkpoint of any accepted format in eval mode.

    model: raise BadInput unless the checkpoint is for it. tokenizer: file, folder or name to use instead of its own;
    released files have none. weights, config: as in ``open_stored``. adapted: False also takes Hugging Face
    folders of models without an adapter, as an ``AnyModel``. fresh_weights: a seed; the model then has weights drawn
    with it, as before any training, and ``content`` stays that of the checkpoint whose architecture it is.
    """
    if not adapted and needs_automatic(path := find_checkpoint(source)):
        said = {"tokenizer": tokenizer, "weights": weights, "config": config}
        if given := [f"--{option}" for option, value in said.items() if value]:
            raise BadInput(f"{path} is a Hugging Face folder, which says what it holds itself; leave {given[0]} out")
        whole, report, content = load_automatic(path)
        if fresh_weights is not None:
            whole, report = fresh_any_model(whole, fresh_weights)
        return Checkpoint(path, whole.to(device), content, "Hugging Face without an adapter", "only", report)
    stored = open_stored(source, weights, config)
    name = stored.config.model
    if model is not None and name != model:
        raise BadInput(f"checkpoint {str(source)!r} is for model {name!r}, not {model!r}")
    captions = _captions(source, stored, tokenizer)
    if fresh_weights is not None:
        built, report = fresh_model(stored.config, captions, fresh_weights)
    else:
        built, report = _build(stored, captions)
    return Checkpoint(
        stored.path,
        built.to(device),
        _content_hash(stored, captions),
        stored.format,
        stored.chosen,
        report,
        stored.info,
    )


def inspect_checkpoint(
    source: str | Path,
    weights: str | None = None,
    config: Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    runnable: bool = False,
) -> Inspection:
    """Load a checkpoint strictly, and say what it holds. Raises BadInput as loading does.

    runnable: with a tokenizer, its own or the one given; without, none is needed and the model cannot run.
    """
    stored = open_stored(source, weights, config)
    model, report = _build(stored, _captions(source, stored, tokenizer) if runnable else None)
    return Inspection(stored, report, sum(parameter.numel() for parameter in model.parameters()), model)


def convert_checkpoint(
    source: str | Path,
    out: Path | str,
    tokenizer: str | Path | None = None,
    weights: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write a checkpoint of any accepted format as one of our folders, ``out``, which gets its name when complete.

    Raises BadInput for an ``out`` that is there and not an empty folder, and as ``load_checkpoint`` does.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"out {str(out)!r} exists; accepted: a new folder, or an empty one")
    check_folder(out)
    if isinstance(open_stored(source, weights, config).config, HfConfig):
        raise BadInput(f"checkpoint {str(source)!r} is a Hugging Face folder, which every command takes as it is")
    loaded = load_checkpoint(source, tokenizer=tokenizer, weights=weights, config=config)
    origin = {
        "file": name_of(loaded.path),
        "format": loaded.format,
        "weights": loaded.chosen,
        "content": loaded.content,
        "missing": sorted(set(loaded.report.missing.values())),
    }
    make_folder(target.parent, "folder of out")
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        save_checkpoint(partial, loaded.model, {**loaded.info, "converted": origin})
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return loaded


def _open_own(source: str | Path, folder: Path, weights: str | None, config: Mapping[str, Any]) -> Stored:
    """A folder that ``save_checkpoint`` wrote."""
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"checkpoint {str(source)!r} has no {WEIGHTS}; accepted: {ACCEPTED}")
    if weights is not None:
        raise BadInput(f"checkpoint {str(source)!r} holds one set of weights; leave --weights {weights} out")
    content = read_json_object(folder / CONFIG)
    name = content.pop("model", None)
    if name not in MODELS:
        raise unknown_choice(f"{folder / CONFIG}: model", name, MODELS)
    sizes = content.pop("config", {})
    given = {**sizes, **config} if isinstance(sizes, Mapping) else sizes
    without_query = isinstance(sizes, Mapping) and sizes.get("task_query") is False
    tokenizer = folder / TOKENIZER
    return Stored(
        path=folder,
        format="checkpoint folder",
        chosen="only",
        config=config_from_json(name, given, folder / CONFIG),
        weights=Weights(read_safetensors(folder / WEIGHTS), complete=not without_query),
        files=(folder / CONFIG, folder / WEIGHTS),
        tokenizer=tokenizer if tokenizer.is_file() else None,
        info=content,
    )


def _captions(source: str | Path, stored: Stored, tokenizer: str | Path | None) -> CaptionTokenizer:
    """The tokenizer given, else the checkpoint's own; plain words for a model that reads no text."""
    config: Any = stored.config
    if isinstance(config, HfConfig) and not config.reads_text:
        if tokenizer is not None:
            raise BadInput(f"checkpoint {str(source)!r} reads no text; leave --tokenizer {str(tokenizer)!r} out")
        return word_tokenizer(config.max_text)
    if tokenizer is None and stored.tokenizer is None:
        needed = f"the one it was trained with, {stored.trained_with}," if stored.trained_with else "one"
        raise BadInput(f"checkpoint {str(source)!r} has no {TOKENIZER}; give {needed} with --tokenizer")
    padding = config.pad_id if isinstance(config, HfConfig) else None
    return load_tokenizer(tokenizer or stored.tokenizer or "", config.max_text, padding)


def _build(stored: Stored, tokenizer: CaptionTokenizer | None) -> tuple[GroundingModel, LoadReport]:
    if isinstance(stored.config, HfConfig):
        return load_hugging_face(stored, tokenizer)
    return load_strictly(stored.config, stored.weights, tokenizer, stored.files[-1])


def _content_hash(stored: Stored, tokenizer: CaptionTokenizer) -> str:
    """Hash of what the model is made of: the choices, the tokenizer and the files."""
    digest = hashlib.sha256(json.dumps([stored.chosen, asdict(stored.config)]).encode())
    digest.update(tokenizer.backend.to_str().encode())
    for file in stored.files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
