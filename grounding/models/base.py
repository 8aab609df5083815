"""The model protocol: preprocess, forward, sites; and what each of them exchanges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from grounding.benchmarks.base import Skipped
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Example, Prediction, validate

if TYPE_CHECKING:
    from grounding.models.inputs import Preprocessor


@dataclass(frozen=True)
class TokenLayout:
    """Where each stream sits along the token axis of a site's ``[B, N, D]`` states.

    Image tokens are in raster order over ``Batch.grid``; text tokens follow ``Batch.offsets``.
    """

    text: slice | None = None
    image: slice | None = None
    query: slice | None = None


@dataclass(frozen=True)
class Site:
    """A named place in a model where activations can be read or replaced.

    name: ``block.7``; module_path: the module whose output it is; stage and layer order the sites of a curve.
    streams: which of ``text``, ``image``, ``query`` it holds; width: channels of its states.
    to_tokens: module output -> states ``[B, N, D]``; layout: batch -> where the streams are in them.
    phrase_partner, region_partner: the site that supplies phrase or region states where this one lacks the stream.
    attention_path: the attention module (``grounding.models.attention``) whose weights belong to the site.
    to_attention: its query, key and bias -> those of the B examples; attention_layout: where phrases and patches are
    among the queries and the keys, if not where they are in the states (cross-attention).
    self_attention_path: of a decoder over the joint states, the attention among its queries that comes before it.
    query_boxes: whether the output has a box for each query (``boxes_xyxy``), by which a region chooses one.
    """

    name: str
    module_path: str
    stage: str
    layer: int
    streams: tuple[str, ...]
    width: int
    layout: Callable[[Batch], TokenLayout]
    to_tokens: Callable[[Any], Tensor] = lambda output: output
    phrase_partner: str | None = None
    region_partner: str | None = None
    attention_path: str | None = None
    to_attention: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]] = (
        lambda query, key, bias: (query, key, bias)
    )
    attention_layout: Callable[[Batch], TokenLayout] | None = None
    self_attention_path: str | None = None
    query_boxes: bool = True


@dataclass
class Batch:
    """Model inputs for B examples and P phrases (all phrases of the batch, concatenated).

    images: uint8 ``[B, 3, H, W]``, candidates stacked along the height, zero-padded at bottom and right.
    pixel_mask: bool ``[B, H, W]``, True on real pixels.
    input_ids, text_mask: ``[B, T]``. offsets: int64 ``[B, T, 2]``, caption characters ``[begin, end)`` of each
    token; (0, 0) for special and padding tokens.
    caption_tokens: bool ``[B, T]``, the tokens whose state answers the task.
    phrase_tokens: bool ``[P, T]``. phrase_example: int64 ``[P]``. phrase_ids: P strings.
    grid: (rows, columns) of image tokens on the padded canvas. valid: int64 ``[B, 2]`` real pixel height and width.
    dropped_phrases: phrases without tokens, or some of whose tokens are beyond the limit, or beyond the model's token
    slots: excluded, never guessed.
    """

    examples: tuple[Example, ...]
    images: Tensor
    pixel_mask: Tensor
    input_ids: Tensor
    text_mask: Tensor
    offsets: Tensor
    caption_tokens: Tensor
    phrase_tokens: Tensor
    phrase_example: Tensor
    phrase_ids: tuple[str, ...]
    grid: tuple[int, int]
    valid: Tensor
    dropped_phrases: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def asked_examples(self) -> Tensor:
        """The example of each phrase, then of each caption: int64 ``[P + B]``."""
        return torch.cat([self.phrase_example, torch.arange(len(self), device=self.phrase_example.device)])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by DataLoader)."""
        pinned = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)


@dataclass
class Output:
    """What a forward pass gives; each model adds its own fields.

    task_point: float ``[B, 2]``, (x, y) of the answer relative to the real (un-padded) canvas.
    phrase_point: float ``[P, 2]``, where each phrase is put: the peak of its map, or the centre of its best box.
    """

    task_point: Tensor
    phrase_point: Tensor


@dataclass(frozen=True)
class ModelConfig:
    """Base of the model configurations: plain values only, so that they are stored as JSON."""

    model: ClassVar[str]

    def require_multiple(self, name: str, unit: str) -> None:
        """Raise BadInput unless the size called ``name`` is a multiple of the one called ``unit``."""
        value, of = getattr(self, name), getattr(self, unit)
        for size, number in ((name, value), (unit, of)):
            if number < 1:
                raise BadInput(f"{self.model} configuration: {size} {number} is too small; accepted: 1 or more")
        if value % of:
            raise BadInput(f"{self.model} configuration: {name} {value} is not a multiple of {unit} {of}")


class GroundingModel(nn.Module, ABC):
    """A model that reads a caption over images, answers the task and grounds phrases.

    predicts: how it grounds them, ``boxes`` (ranked) or ``heatmap``. image_padding: why the padding of a batch with
    images of several sizes changes its states; None where it does not. answers_all: whether every example of a task has
    an answer; else its prediction may say that it has none. added_sites: further ones, which are modules chosen by path
    (``extract.modules``).
    """

    predicts: ClassVar[str]
    image_padding: ClassVar[str | None] = None
    answers_all: ClassVar[bool] = True
    added_sites: tuple[Site, ...] = ()
    config: ModelConfig
    preprocessor: Preprocessor

    @abstractmethod
    def preprocess(self, examples: Sequence[Example]) -> Batch:
        """Open images, tokenise captions, align phrases with tokens (CPU; equals collate of encode)."""

    def prepare(self, examples: Sequence[Example]) -> Batch:
        """``preprocess`` of examples that may come from anywhere: raises BadInput for impossible annotations."""
        for example in examples:
            validate(example)
        return self.preprocess(examples)

    def prepare_readable(self, examples: Sequence[Example]) -> tuple[Batch | None, list[Skipped]]:
        """``prepare`` of the examples that can be, None where there is none; and why the others cannot."""
        try:
            return self.prepare(examples), []
        except BadInput:
            good, skipped = [], []
            for example in examples:
                try:
                    self.prepare([example])
                except BadInput as error:
                    skipped.append(Skipped(example.id, str(error)))
                else:
                    good.append(example)
        return self.prepare(good) if good else None, skipped

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Run the model on a batch that is already on its device."""

    @abstractmethod
    def sites(self) -> list[Site]:
        """Every place where activations can be read, in order of computation."""

    @abstractmethod
    def predict(self, batch: Batch, output: Any) -> list[Prediction]:
        """Task answers and phrase groundings, one Prediction an example, in order."""

    def candidate_scores(self, batch: Batch, output: Any) -> Tensor:
        """How well the caption fits each candidate image of a game, higher is better: float ``[B, N]``.

        N: candidates of the largest game; what stands for candidates that a game lacks means nothing. Raises BadInput
        for a model that compares no candidates.
        """
        raise BadInput(f"{type(self).__name__} has no scores of candidates; accepted: a model that answers games")

    @property
    def passes(self) -> int:
        """Passes that the latest forward made over an example's text, one for each image; its sites show one."""
        return 1

    def showing(self, number: int) -> AbstractContextManager[None]:
        """Inside it, the sites show the states and the attention of the pass of that number instead."""
        return nullcontext()

    def begin_task(self) -> None:
        """Make a model that so far only grounds ready to learn the task: fresh weights get the best start there is."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def all_sites(self) -> list[Site]:
        """Its sites and those added to it."""
        return [*self.sites(), *self.added_sites]

    def choose_sites(self, names: Sequence[str] | None = None) -> list[Site]:
        """The sites of those names (``block.*`` matches a stage); all of them for None."""
        sites = self.all_sites()
        if not sites:
            raise BadInput("the model has no adapter and so no sites of its own; name modules of it with --module")
        if names is None:
            return sites
        chosen = []
        for name in names:
            matches = [s for s in sites if s.name == name or (name.endswith(".*") and s.stage == name[:-2])]
            if not matches:
                raise unknown_choice("site", name, [s.name for s in sites])
            chosen += [m for m in matches if m not in chosen]
        return chosen
