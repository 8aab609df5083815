"""What an adapter must know of a Hugging Face model beside its weights: the settings of both encoders and of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from grounding.config_files import read_json_object
from grounding.errors import BadInput
from grounding.models.base import ModelConfig

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class HfConfig(ModelConfig):
    """A transformers model and how it wants images.

    model_type: the key of ``ADAPTERS``. settings: of ``config.json``, as transformers would write them. mean, std: of
    the pixels in 0..1, by channel. size: pixels a side that the image processor aims at, for models that take any.
    longest: the most it allows a side; where a processor limits the pixels of an image instead (Qwen's), size and
    longest are their least and most.
    resample: PIL's filter that images are resized with. pad_id: of the padding token; None leaves it to the tokenizer.
    """

    model: ClassVar[str] = "hf"
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    size: int | None = None
    longest: int | None = None
    resample: int = int(Image.Resampling.BICUBIC)
    pad_id: int | None = None

    @property
    def transformers_config(self) -> Any:
        """The settings as transformers' own object, a new one each time. Raises BadInput."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        given = {name: value for name, value in self.settings.items() if name != "model_type"}
        try:
            return AutoConfig.for_model(self.model_type, **given)
        except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
            raise BadInput(f"settings of a {self.model_type!r} model: {' '.join(str(error).split())}") from None

    @property
    def max_text(self) -> int:
        """Most tokens of a caption."""
        from grounding.models.hf import adapter

        return adapter(self.model_type).text_room(self.transformers_config, self.size)

    @property
    def vocabulary(self) -> int:
        """Tokens that the model has embeddings for."""
        from grounding.models.hf import adapter

        return adapter(self.model_type).vocabulary(self.transformers_config)

    @property
    def reads_text(self) -> bool:
        """Whether the model needs a tokenizer."""
        from grounding.models.hf import adapter

        return adapter(self.model_type).reads_text


def read_config(folder: Path) -> HfConfig:
    """Settings of a folder's ``config.json`` and, where it has them, of its image processor and its tokenizer.

    Raises BadInput naming the file and the value.
    """
    settings = read_json_object(folder / "config.json")
    kind = settings.get("model_type")
    return HfConfig(
        model_type=str(kind),
        settings={name: value for name, value in settings.items() if name not in ("transformers_version", "dtype")},
        **_image_settings(folder, str(kind)),
        pad_id=_padding_token(folder, settings),
    )


def _image_settings(folder: Path, kind: str) -> dict[str, Any]:
    """Mean, standard deviation, size and filter of an image processor, of a model of that kind."""
    path = folder / (PREPROCESSOR if _has(folder, PREPROCESSOR) else PROCESSOR)
    if not path.is_file():
        raise BadInput(f"{folder} has no {PREPROCESSOR}, which tells the mean and the standard deviation of pixels")
    given: Any = read_json_object(path)
    given = _with_defaults(given if path.name == PREPROCESSOR else given.get("image_processor", {}), kind)
    chosen = _normalisation(given, path)
    resample = given["resample"]
    if resample not in list(Image.Resampling):
        raise BadInput(f"{path}: resample {resample!r}; accepted: {min(Image.Resampling)} to {max(Image.Resampling)}")
    size = given.get("size", {name: given.get(name) for name in ("min_pixels", "max_pixels")})
    edges = size if isinstance(size, Mapping) else {"height": size}
    least = next((edges[name] for name in ("shortest_edge", "height", "min_pixels") if name in edges), None)
    longest = next((edges[name] for name in ("longest_edge", "max_pixels") if name in edges), None)
    for pixels in (least, longest):
        if pixels is not None and not (isinstance(pixels, int) and pixels > 0):
            raise BadInput(f"{path}: size {size!r}; accepted: pixels, as shortest_edge and longest_edge, or height")
    return {**chosen, "size": least, "longest": longest, "resample": int(resample)}


def _with_defaults(given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What an image processor's file leaves out has the value that transformers' own class has."""
    from transformers import CONFIG_MAPPING, IMAGE_PROCESSOR_MAPPING

    classes: Any = IMAGE_PROCESSOR_MAPPING[CONFIG_MAPPING[kind]]
    usual = classes["torchvision"]
    names = ("image_mean", "image_std", "resample", "do_normalize", "do_rescale", "rescale_factor")
    said = {name: value for name, value in given.items() if value is not None}
    return {**{name: getattr(usual, name) for name in names}, **said}


def _normalisation(given: Mapping[str, Any], path: Path) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of pixels in 0..1 that do what the image processor does to values.

    RT-DETR's files give ImageNet's, and say that values are not normalised. Raises BadInput.
    """
    factor = given["rescale_factor"] if given["do_rescale"] else 1
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise BadInput(f"{path}: rescale_factor {factor!r}; accepted: a number over 0, such as 1 / 255")
    chosen = {}
    for theirs, ours, unused in (("image_mean", "mean", 0.0), ("image_std", "std", 1.0)):
        values = given[theirs] if given["do_normalize"] else [unused] * 3
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
            raise BadInput(f"{path}: {theirs} {values!r}; accepted: three numbers")
        chosen[ours] = tuple(value / (255 * factor) for value in values)
    return chosen


def _padding_token(folder: Path, settings: Mapping[str, Any]) -> int | None:
    """Id of the padding token that the tokenizer's settings name; else the one that the model's settings number."""
    from tokenizers import Tokenizer

    named = read_json_object(folder / TOKENIZER_CONFIG).get("pad_token") if _has(folder, TOKENIZER_CONFIG) else None
    token = named.get("content") if isinstance(named, Mapping) else named
    if token is not None and _has(folder, "tokenizer.json"):
        return Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(str(token))
    text = settings.get("text_config")
    number = (text if isinstance(text, Mapping) else settings).get("pad_token_id")
    return number if isinstance(number, int) and number >= 0 else None


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()
