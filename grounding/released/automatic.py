"""Hugging Face folders without an adapter: transformers' Auto classes, offline, and no code of the folder's own.

Only what can be known is passed on: characters of tokens from the fast tokenizer, and the places of image tokens if the
image processor changes nothing but the values of pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from grounding.benchmarks.files import content_hash
from grounding.config_files import read_json_object
from grounding.errors import BadInput
from grounding.models.any_model import AnyModel, Inputs
from grounding.released.hugging_face import POSITIONS, has_adapter, require_sound
from grounding.released.strict import LoadReport

HEADS = "not in the model that transformers makes of the folder without its heads"
UNRESIZED = {"do_resize": False, "do_center_crop": False, "do_pad": False}
HASHED = (".json", ".safetensors", ".txt", ".model")
FALLBACK_SIZE = 224
_ODD = 97  # pixels a side of an image that no processor leaves as it is


def needs_automatic(folder: Path) -> bool:
    """Whether a folder is a Hugging Face one that nothing else here can load."""
    if not folder.is_dir():
        return False
    kind = read_json_object(folder / "config.json").get("model_type")
    return kind is not None and kind != "vilt" and not has_adapter(folder)


def load_automatic(folder: Path) -> tuple[AnyModel, LoadReport, str]:
    """The model in eval mode, fp32, on the CPU; what became of its weights; and the sha256 of the folder's files.

    Raises BadInput in one line for whatever cannot be had, and for weights that are missing or not finite.
    """
    network, report = _read_network(folder)
    tokenizer = _from("AutoTokenizer", folder)
    if not tokenizer.is_fast:
        raise BadInput(f"{folder} has no fast tokenizer (tokenizer.json), which knows the characters of its tokens")
    reader = PairReader.of(tokenizer, _from("AutoImageProcessor", folder), network)
    content = content_hash(sorted(path for path in folder.iterdir() if path.suffix in HASHED))
    chosen = getattr(reader.processor, "resample", None)
    resample = Image.Resampling.BICUBIC if chosen is None else Image.Resampling(chosen)
    return AnyModel(network, reader, reader.size, resample).eval(), report, content


@dataclass(frozen=True)
class PairReader:
    """Squares and captions to the inputs of a transformers model; the ``preprocess`` of ``AnyModel``.

    size: pixels of a side. options: of the image processor. grid: (rows, columns) of image tokens, None if not known.
    limit: most tokens of a caption. accepted: arguments that the model takes.
    """

    tokenizer: Any
    processor: Any
    size: int
    options: Mapping[str, bool]
    grid: tuple[int, int] | None
    limit: int
    accepted: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, processor: Any, network: nn.Module) -> PairReader:
        """Find size and grid by trying the image processor."""
        settings: Any = network.config
        size = _square_side(processor)
        keeps = size is not None and _keeps_places(processor, size)
        patch = next((p for part in _parts(settings) if isinstance(p := getattr(part, "patch_size", None), int)), None)
        grid = (size // patch, size // patch) if keeps and size and patch else None
        positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
        limit = min(int(tokenizer.model_max_length), int(positions or tokenizer.model_max_length))
        accepted = tuple(inspect.signature(network.forward).parameters)
        return cls(tokenizer, processor, size or FALLBACK_SIZE, UNRESIZED if keeps else {}, grid, limit, accepted)

    def __call__(self, images: list[np.ndarray], captions: list[str]) -> Inputs:
        """M squares and M captions, padded to the longest."""
        text = self.tokenizer(
            captions, padding=True, truncation=True, max_length=self.limit, return_offsets_mapping=True,
            return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        offsets = text.pop("offset_mapping")
        given = {**text, **self.processor(images=images, return_tensors="pt", **self.options)}
        arguments = {name: value for name, value in given.items() if name in self.accepted}
        return Inputs(arguments, offsets, text["attention_mask"].bool(), self.grid)


def _read_network(folder: Path) -> tuple[nn.Module, LoadReport]:
    """The model without heads, or, where it would lack weights, the class that the folder names."""
    import transformers

    settings = read_json_object(folder / "config.json")
    named = [getattr(transformers, str(name), None) for name in settings.get("architectures") or ()]
    kinds = [getattr(getattr(found, "config_class", None), "model_type", None) for found in named]
    fitting = [found for found, kind in zip(named, kinds, strict=True) if found and kind == settings["model_type"]]
    classes: list[Any] = [transformers.AutoModel, *fitting]
    failure: BadInput | None = None
    for choice in classes:
        try:
            network, told = _loaded(choice, folder)
            require_sound(folder, choice.__name__, network, {**told, "unexpected_keys": []})
        except BadInput as error:
            failure = failure or error
            continue
        left = {name: HEADS for name in sorted(told["unexpected_keys"]) if not name.endswith(POSITIONS)}
        return network, LoadReport(tuple(network.state_dict()), {}, left, {})
    assert failure is not None
    raise failure


def _loaded(choice: Any, folder: Path) -> tuple[Any, Mapping[str, Any]]:
    try:
        return choice.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise _unreadable(folder, "model", error) from None


def _from(kind: str, folder: Path) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise _unreadable(folder, {"AutoTokenizer": "tokenizer"}.get(kind, "image processor"), error) from None


def _unreadable(folder: Path, what: str, error: Exception) -> BadInput:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    accepted = "what its Auto classes load, without code of the folder's own; others in Python, as an AnyModel"
    return BadInput(f"{folder}: transformers makes no {what} of it ({reason}); accepted: {accepted}")


def _parts(settings: Any) -> list[Any]:
    """The settings that may tell the size of a patch: of the image encoder, else of the model."""
    return [part for name in ("vision_config", "image_config") if (part := getattr(settings, name, None))] + [settings]


def _pixels(processor: Any, image: np.ndarray, **options: bool) -> Tensor | None:
    """What an image processor makes of one image: ``[3, S, S]``; None for anything else."""
    try:
        values = processor(images=[image], return_tensors="pt", **options).get("pixel_values")
    except (ValueError, TypeError, RuntimeError, KeyError):
        return None
    square = isinstance(values, Tensor) and values.ndim == 4 and values.shape[:2] == (1, 3)
    return values[0].float() if square and values.shape[2] == values.shape[3] else None  # type: ignore[index]


def _square_side(processor: Any) -> int | None:
    pixels = _pixels(processor, np.zeros((_ODD, _ODD, 3), dtype=np.uint8))
    return None if pixels is None else int(pixels.shape[-1])


def _keeps_places(processor: Any, size: int) -> bool:
    """Whether squares of that size, told not to be resized, have all their pixels where they were."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    black, white, mixed = (
        _pixels(processor, image, **UNRESIZED) for image in (np.zeros_like(noise), np.full_like(noise, 255), noise)
    )
    if black is None or white is None or mixed is None or mixed.shape[-1] != size:
        return False
    expected = black + (white - black) * torch.from_numpy(noise).permute(2, 0, 1) / 255
    return bool(torch.allclose(mixed, expected, atol=1e-3))
