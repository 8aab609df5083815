"""Where the weights are in a file or a folder that others made, and what else it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grounding.config_files import checked_fields, config_from_json, read_json_object
from grounding.errors import BadInput, unknown_choice
from grounding.models import ModelConfig, model_config
from grounding.models.hf import ADAPTERS
from grounding.released.names import kind_of, our_weights, without_wrapper
from grounding.released.pickles import read_pickle
from grounding.released.sharded import INDEX, read_sharded
from grounding.released.sizes import sizes_of
from grounding.released.strict import Weights

ACCEPTED = (
    "a folder of probe finetune or probe convert (config.json, model.safetensors), a Lightning .ckpt of the study or "
    "of ViLT, an MDETR .pth, a Hugging Face folder (ViLT, or a model with an adapter) or its name on the hub, a state "
    "dict (.pt, .pth, .safetensors)"
)
CHOICES = ("ema", "raw")
TRAINING = "state of training, not a weight"
TOKENIZERS = {"vilt-aligner": "bert-base-uncased", "mdetr": "roberta-base"}
HUGGING_FACE_WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")


@dataclass(frozen=True)
class Stored:
    """Weights on disk, not yet in a model: tensors may still be mapped from the file.

    format: what kind of file or folder. chosen: ``ema`` or ``raw``, or ``only`` where there is no choice.
    tokenizer: file or folder of the one that came with them; trained_with: the name of the one that is needed.
    files: whose bytes say what it is. info: what our own folders store beside the sizes.
    """

    path: Path
    format: str
    chosen: str
    config: ModelConfig
    weights: Weights
    files: tuple[Path, ...]
    tokenizer: Path | None = None
    trained_with: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """State dicts of a file; ``sizes``: fields of the configuration that shapes do not tell."""

    format: str
    raw: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    rest: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    tokenizer: Path | None = None


def open_released(path: Path, weights: str | None = None, config: Mapping[str, Any] | None = None) -> Stored:
    """Find the weights of a file, or of a Hugging Face folder.

    weights: ``ema`` or ``raw``; None takes the averaged weights (EMA) where the file has them. config: fields of the
    configuration that shall not be read off the shapes. Raises BadInput for whatever cannot be used, in one line.
    """
    if weights not in (None, *CHOICES):
        raise unknown_choice("weights", weights, CHOICES)
    found = _folder(path) if path.is_dir() else _file(path)
    if weights == "ema" and found.ema is None:
        raise BadInput(f"{path} ({found.format}) has no averaged weights (EMA); accepted: --weights raw")
    chosen = "only" if found.ema is None else weights or "ema"
    tensors = found.ema if chosen == "ema" and found.ema is not None else found.raw
    rest = dict(found.rest)
    if found.ema is not None:
        rest["raw weights" if chosen == "ema" else "EMA weights"] = f"another set of weights; {chosen} was chosen"
    tensors = without_wrapper(tensors)
    kind = kind_of(tensors)
    if kind is None:
        raise BadInput(f"{path} holds no weights of a model that is known here; accepted: {ACCEPTED}")
    model = "mdetr" if kind == "mdetr" else "vilt-aligner"
    ours = our_weights(kind, tensors, path)
    known = checked_fields(asdict(model_config(model, "base")), {**found.sizes, **(config or {})}, path)
    return Stored(
        path=path,
        format=found.format,
        chosen=chosen,
        config=config_from_json(model, sizes_of(model, ours.tensors, known, path), path),
        weights=Weights(ours.tensors, ours.renamed, {**rest, **ours.ignored}),
        files=found.files,
        tokenizer=found.tokenizer,
        trained_with=TOKENIZERS[model],
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, mapped from it. Raises BadInput."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None


def _file(path: Path) -> _Found:
    if path.suffix == ".safetensors":
        return _Found("safetensors state dict", read_safetensors(path), files=(path,))
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise BadInput(f"{path} holds a {type(content).__name__}; accepted: {ACCEPTED}")
    if "state_dict" in content:
        return _lightning(path, content)
    if isinstance(content.get("model"), Mapping):
        return _mdetr(path, content)
    return _Found("state dict", _state_dict(content, path), files=(path,))


def _lightning(path: Path, content: Mapping[str, Any]) -> _Found:
    averaged: Any = content
    for name in ("callbacks", "EMA", "ema_state_dict"):
        averaged = averaged.get(name) if isinstance(averaged, Mapping) else None
    return _Found(
        "Lightning checkpoint",
        _state_dict(content["state_dict"], path),
        ema=_optional(averaged, path),
        rest={name: TRAINING for name in map(str, content) if name != "state_dict"},
        files=(path,),
    )


def _mdetr(path: Path, content: Mapping[str, Any]) -> _Found:
    arguments = vars(content["args"]) if hasattr(content.get("args"), "__dict__") else {}
    _require_known_arguments(arguments, path)
    fields = {"nheads": "heads", "dropout": "dropout", "backbone": "backbone"}
    return _Found(
        "MDETR checkpoint",
        _state_dict(content["model"], path),
        ema=_optional(content.get("model_ema"), path),
        sizes={ours: arguments[theirs] for theirs, ours in fields.items() if theirs in arguments},
        rest={name: TRAINING for name in map(str, content) if name not in ("model", "model_ema")},
        files=(path,),
    )


def _require_known_arguments(arguments: Mapping[str, Any], path: Path) -> None:
    """Options of MDETR that change what it computes and leave no trace in the weights' names and shapes."""
    accepted: dict[str, tuple[Any, ...]] = {
        "position_embedding": ("sine", "v2"),
        "pass_pos_and_query": (True,),
        "dilation": (False,),
        "text_encoder_type": ("roberta-base", "roberta-large", "distilroberta-base"),
    }
    for name, values in accepted.items():
        if name in arguments and arguments[name] not in values:
            known = ", ".join(map(str, values))
            raise BadInput(f"{path} was trained with {name} {arguments[name]!r}; accepted: {known}")


def _folder(path: Path) -> _Found:
    content = read_json_object(path / "config.json")
    kind = content.get("model_type")
    if kind != "vilt":
        accepted = ", ".join(sorted({"vilt", *ADAPTERS}))
        raise BadInput(
            f"{path} is a Hugging Face folder with model_type {kind!r}; accepted: {accepted}; probe extract "
            "--module takes others too"
        )
    for name, value in (("qkv_bias", True), ("hidden_act", "gelu"), ("num_channels", 3)):
        if content.get(name, value) != value:
            raise BadInput(f"{path / 'config.json'}: {name} {content[name]!r} is not supported; accepted: {value!r}")
    tensors, files = _folder_weights(path)
    own_tokenizer = any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return _Found(
        "Hugging Face ViLT",
        tensors,
        sizes=_hugging_face_sizes(content),
        files=(path / "config.json", *files),
        tokenizer=path if own_tokenizer else None,
    )


def _folder_weights(path: Path) -> tuple[Mapping[str, Tensor], tuple[Path, ...]]:
    file = next((path / name for name in HUGGING_FACE_WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise BadInput(f"{path} has no weights; accepted: {', '.join(HUGGING_FACE_WEIGHTS)}")
    if file.name == INDEX:
        tensors, shards = read_sharded(file, read_safetensors)
        return tensors, (*shards, file)
    if file.suffix == ".safetensors":
        return read_safetensors(file), (file,)
    return _state_dict(read_pickle(file), file), (file,)


def _hugging_face_sizes(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a ViLT's config.json gives; weights of other sizes are then refused."""
    fields = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "feed_forward",
        "vocab_size": "vocabulary",
        "max_position_embeddings": "max_text",
        "patch_size": "patch",
    }
    sizes = {ours: content[theirs] for theirs, ours in fields.items() if theirs in content}
    image, patch = content.get("image_size"), content.get("patch_size")
    if isinstance(image, int) and isinstance(patch, int) and patch > 0:
        sizes["position_grid"] = (image // patch, image // patch)
    return sizes


def _optional(content: Any, path: Path) -> Mapping[str, Tensor] | None:
    return _state_dict(content, path) if content else None


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{path} holds no state dict where one belongs; accepted: {ACCEPTED}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BadInput(
                f"{path} holds {name!r} of type {type(value).__name__} where a weight belongs; accepted: {ACCEPTED}"
            )
    return content
