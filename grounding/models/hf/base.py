"""What all adapters share: a transformers model behind the toolkit's protocol, one image at a time.

A game's candidates are taken off the canvas, run as images of their own, and their tokens put back in raster order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from grounding.examples import Example
from grounding.models.base import Batch, GroundingModel, Site, TokenLayout
from grounding.models.hf.attention import TAPPED, attach_taps, register
from grounding.models.hf.config import HfConfig
from grounding.models.hf.images import Candidates, SquarePreprocessor
from grounding.models.layouts import first, image_only, text_only
from grounding.models.text import CaptionTokenizer


class HfModel(GroundingModel):
    """Base of the adapters: ``network`` is the untouched transformers model.

    An adapter names the transformers class (``architecture``), says how many pixels and tokens a side of its image has
    (``image_size``) and how many tokens a caption (``text_limit``), lists its ``sites`` and computes ``forward``.
    full_text: captions are padded to the limit, as the model was trained. attention: transformers' name of the
    attention function; ``eager`` where modules look none up. reads_text: whether it needs a tokenizer.
    Text states of a model that reads both are those of the pass over the image that the phrases are annotated in,
    since the regions that probes compare lie there; answers never use that choice.
    """

    architecture: ClassVar[str]
    full_text: ClassVar[bool] = False
    attention: ClassVar[str] = TAPPED
    reads_text: ClassVar[bool] = True
    config: HfConfig
    preprocessor: SquarePreprocessor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: HfConfig, tokenizer: CaptionTokenizer | None, network: Any = None):
        super().__init__()
        self.config = config
        settings = config.transformers_config if network is None else network.config
        self.settings = settings
        self.network = self.fresh_network(settings) if network is None else network
        self.preprocessor = self.fitting_preprocessor(tokenizer)
        self.register_buffer("image_mean", 255 * torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", 255 * torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self._candidates: Candidates | None = None
        for path in dict.fromkeys(site.attention_path for site in self.sites()):
            if path is not None:
                self.tap(self.get_submodule(path))

    def fitting_preprocessor(self, tokenizer: CaptionTokenizer | None) -> Any:
        """How examples become batches; None for a model that will not read captions."""
        size, cells = self.image_size(self.settings, self.config.size)
        return SquarePreprocessor(
            None if tokenizer is None else self.reading(tokenizer),  # type: ignore[arg-type]
            candidate_size=size,
            multiple=size,
            stride=max(1, size // cells),
            pad_text_to=self.text_limit(self.settings) if self.full_text else None,
            cells=cells,
            resample=Image.Resampling(self.config.resample),
        )

    @classmethod
    def fresh_network(cls, settings: Any) -> Any:
        """The transformers model with fresh weights, its attention tapped."""
        import transformers

        register()
        settings._attn_implementation = cls.attention
        return getattr(transformers, cls.architecture)(settings).eval()

    @staticmethod
    def image_size(settings: Any, size: int | None) -> tuple[int, int]:
        """Pixels and image tokens along the side of an image; ``size``: what the image processor says."""
        vision = settings.vision_config
        return vision.image_size, vision.image_size // vision.patch_size

    @staticmethod
    def text_limit(settings: Any) -> int:
        """Most tokens of a caption."""
        return settings.text_config.max_position_embeddings

    @classmethod
    def text_room(cls, settings: Any, size: int | None) -> int:
        """Most tokens of a caption beside an image; ``size`` as in ``image_size``."""
        return cls.text_limit(settings)

    @staticmethod
    def vocabulary(settings: Any) -> int:
        """Tokens that the model has embeddings for."""
        text = settings.get_text_config()
        return int(text.vocab_size) + getattr(text, "additional_vocab_size", 0)

    def reading(self, tokenizer: CaptionTokenizer) -> CaptionTokenizer:
        """The tokenizer as the model wants captions: in a prompt, or in lower case."""
        return tokenizer

    @staticmethod
    def tap(module: Any) -> None:
        """Give the attention module of a site its taps."""
        attach_taps(module)

    def preprocess(self, examples: Sequence[Example]) -> Batch:
        """Every image becomes a square of the model's own size; see ``SquarePreprocessor``."""
        return self.preprocessor.collate([self.preprocessor.encode(example) for example in examples])

    def take(self, batch: Batch) -> tuple[Candidates, Tensor]:
        """The images of a batch, and their pixel values ``[M, 3, S, S]`` as the image processor gives them."""
        candidates = self.images_of(batch)
        self._candidates = candidates  # the hooks of this pass put tokens where they belong
        pixels = (candidates.images - self.image_mean) / self.image_std
        return candidates, pixels.to(next(self.network.parameters()).dtype)

    def images_of(self, batch: Batch) -> Candidates:
        """The images of a batch, off their canvases."""
        return Candidates.of(batch, self.preprocessor.candidate_size)

    @property
    def candidates(self) -> Candidates:
        """Those of the latest pass."""
        assert self._candidates is not None, "a site is read outside a forward pass"
        return self._candidates

    @property
    def passes(self) -> int:
        """One for each candidate of the largest game."""
        return self.candidates.real.shape[1]

    @contextmanager
    def showing(self, number: int) -> Iterator[None]:
        """Candidate ``number`` (the last of a game that has fewer) in the place of the example's own image."""
        own = self.candidates
        self._candidates = own.showing(number)
        try:
            yield
        finally:
            self._candidates = own

    def layers(self, path: str) -> list[str]:
        """Paths of the modules in the list at ``path``."""
        return [f"{path}.{k}" for k in range(len(self.get_submodule(path)))]  # type: ignore[arg-type]

    def image_site(
        self, name: str, path: str, stage: str, layer: int, width: int, *, skip: int = 0, **others: Any
    ) -> Site:
        """A site with the tokens of each image ``[M, skip + cells, D]``, the first ``skip`` of them classes."""

        def to_tokens(output: Any) -> Tensor:
            return self.candidates.on_canvas(first(output)[:, skip : skip + self.cells])

        return Site(name, path, stage, layer, ("image",), width, image_only, to_tokens, **others)

    def map_site(self, name: str, path: str, stage: str, layer: int, width: int, **others: Any) -> Site:
        """A site whose module gives a feature map of each image ``[M, D, rows, columns]``."""

        def to_tokens(output: Tensor) -> Tensor:
            return self.candidates.on_canvas(output.flatten(2).transpose(1, 2))

        return Site(name, path, stage, layer, ("image",), width, image_only, to_tokens, **others)

    def text_site(
        self, name: str, path: str, stage: str, layer: int, width: int, *, rows: str = "examples", **others: Any
    ) -> Site:
        """A site with text tokens, of a pass over the captions (rows ``examples``) or M images (``candidates``)."""

        def to_tokens(output: Any) -> Tensor:
            states = first(output)
            return states[self.candidates.own] if rows == "candidates" else states[: len(self.candidates.own)]

        return Site(name, path, stage, layer, ("text",), width, text_only, to_tokens, **others)

    def joint_site(self, name: str, path: str, stage: str, layer: int, width: int, **others: Any) -> Site:
        """A site of a pass over M images with text first and patches last: ``[M, T + others + cells, D]``."""
        patches = slice(-self.cells, None)

        def to_tokens(output: Any) -> Tensor:
            states, candidates = first(output), self.candidates
            text = states[candidates.own, : candidates.text_tokens]
            return torch.cat([text, candidates.on_canvas(states[:, patches])], dim=1)

        looks: Any = {"to_attention": self.own_attention(patches), "attention_layout": crossed}
        return Site(name, path, stage, layer, ("text", "image"), width, text_then_image, to_tokens, **looks, **others)

    @property
    def cells(self) -> int:
        """Image tokens of an image."""
        return self.preprocessor.cells**2

    def own_attention(self, image: slice) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """For ``Site.to_attention``: queries and keys of the pass over each example's own image.

        image: the image tokens among that pass's keys. On the canvas the other candidates' keys are masked: the
        phrase's states were computed without them.
        """

        def to_attention(query: Tensor, key: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            candidates = self.candidates
            if bias is None:
                bias = key.new_zeros(1, 1, 1, key.shape[2])
            bias = bias.expand(len(key), *bias.shape[1:])
            columns = bias.flatten(1, 2)[..., None]  # [M, heads * N, L, 1]: its keys are where those of key are
            placed = candidates.own_keys(columns, image, -torch.inf)[..., 0].unflatten(1, bias.shape[1:3])
            return query[candidates.own], candidates.own_keys(key, image), placed

        return to_attention


def text_then_image(batch: Batch) -> TokenLayout:
    """The caption's tokens, then the image tokens of all candidates."""
    tokens = batch.input_ids.shape[1]
    return TokenLayout(text=slice(0, tokens), image=slice(tokens, tokens + batch.grid[0] * batch.grid[1]))


def crossed(batch: Batch) -> TokenLayout:
    """For ``Site.attention_layout``: captions look at images, as ``HfModel.own_attention`` arranges both."""
    return TokenLayout(text=slice(0, batch.input_ids.shape[1]), image=slice(0, batch.grid[0] * batch.grid[1]))
