"""Examples to model inputs: ``encode`` one example (cacheable, in any process), ``collate`` many into a Batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from grounding.errors import BadInput
from grounding.examples import Example, ReferenceGame, Span, SpatialDescription
from grounding.images import read_image, resized
from grounding.models.base import Batch
from grounding.models.resizing import vilt_size
from grounding.models.text import CaptionTokenizer, EncodedText


@dataclass(frozen=True)
class Encoded:
    """One example ready to be batched: canvas uint8 ``[H, W, 3]``, tokens, and which tokens mean what."""

    example: Example
    canvas: np.ndarray
    text: EncodedText
    caption_tokens: np.ndarray  # [T]
    phrase_tokens: np.ndarray  # [phrases whose tokens are all there, T]
    phrase_ids: tuple[str, ...]
    dropped_phrases: tuple[str, ...]


@dataclass(frozen=True)
class Preprocessor:
    """How images become canvases and captions tokens.

    candidate_size: side in pixels of each candidate of a game. multiple: canvas sides are rounded down to it.
    stride: pixels an image token covers. pad_text_to: fixed token length of a batch, or None for its longest.
    shorter_side, longer_side: of a single image, in pixels, handed to ``size`` (``grounding.models.resizing``) with
    its own; 0 for shorter_side leaves it as large as it is. resample: how images are resized.
    phrase_slots, answer_slots: how many first tokens of a caption can be a phrase's, or what the task is answered by;
    None for all.
    """

    tokenizer: CaptionTokenizer
    candidate_size: int
    multiple: int
    stride: int
    pad_text_to: int | None = None
    shorter_side: int = 0
    longer_side: int = 0
    size: Callable[[int, int, int, int], tuple[int, int]] = vilt_size
    resample: Image.Resampling = Image.Resampling.BICUBIC
    phrase_slots: int | None = None
    answer_slots: int | None = None

    def __post_init__(self) -> None:
        if self.candidate_size % self.multiple:
            raise BadInput(f"candidate size {self.candidate_size} is not a multiple of {self.multiple}")
        if min(self.shorter_side, self.longer_side) < 0:
            raise BadInput(f"shorter_side {self.shorter_side}, longer_side {self.longer_side}; accepted: 0 or more")

    def encode(self, example: Example) -> Encoded:
        """Open the images and tokenise the caption of one example."""
        return self.align(example, self.tokenizer.encode(example.caption), self.canvas(example))

    def align(self, example: Example, text: EncodedText, canvas: np.ndarray) -> Encoded:
        """Which tokens of a caption answer the task, and which are each phrase's. Raises BadInput."""
        spans: tuple[Span, ...] = ((0, len(example.caption)),)
        if isinstance(example.task, SpatialDescription) and example.task.target_spans:
            spans = example.task.target_spans
        caption_tokens = text.tokens_of(spans)
        read = len(text.ids[: self.answer_slots])
        caption_tokens[read:] = False
        if example.caption.strip() and not caption_tokens.any():
            raise BadInput(
                f"example {example.id!r}: no token of its target spans {spans} is among the first {read}, the most "
                "that the model can answer by"
            )
        kept = [i for i, phrase in enumerate(example.phrases) if text.holds(phrase.spans, self.phrase_slots)]
        masks = {i: text.tokens_of(example.phrases[i].spans) for i in kept}
        return Encoded(
            example=example,
            canvas=canvas,
            text=text,
            caption_tokens=caption_tokens,
            phrase_tokens=np.stack(list(masks.values())) if kept else np.zeros((0, len(text.ids)), dtype=bool),
            phrase_ids=tuple(example.phrases[i].id for i in kept),
            dropped_phrases=tuple(p.id for i, p in enumerate(example.phrases) if i not in kept),
        )

    def canvas(self, example: Example) -> np.ndarray:
        """Candidates of a game as squares stacked along the height; a single image at its size, rounded down."""
        if isinstance(example.task, ReferenceGame):
            images = [read_image(source, self.candidate_size, self.resample) for source in example.images]
            return np.concatenate(images)
        pixels = read_image(example.images[0])
        height, width = pixels.shape[:2]
        if self.shorter_side:
            height, width = self.size(height, width, self.shorter_side, self.longer_side)
        if min(height, width) < self.multiple:
            raise BadInput(
                f"example {example.id!r}: image of {width} x {height} pixels is smaller than "
                f"{self.multiple} x {self.multiple}"
            )
        height, width = (side // self.multiple * self.multiple for side in (height, width))
        if (height, width) == pixels.shape[:2]:
            return pixels
        return resized(pixels, height, width, self.resample)

    def collate(self, items: Sequence[Encoded]) -> Batch:
        """Pad images with zeros at bottom and right, captions at the end."""
        tokens = self.pad_text_to or max(len(item.text.ids) for item in items)
        heights, widths = zip(*(item.canvas.shape[:2] for item in items), strict=True)
        size = (len(items), max(heights), max(widths))
        images = np.zeros((*size, 3), dtype=np.uint8)
        pixel_mask = np.zeros(size, dtype=bool)
        ids = np.full((len(items), tokens), self.tokenizer.pad_id, dtype=np.int64)
        text_mask = np.zeros((len(items), tokens), dtype=bool)
        offsets = np.zeros((len(items), tokens, 2), dtype=np.int64)
        caption_tokens = np.zeros((len(items), tokens), dtype=bool)
        phrase_tokens = np.zeros((sum(len(item.phrase_ids) for item in items), tokens), dtype=bool)
        phrase_example = np.repeat(np.arange(len(items)), [len(item.phrase_ids) for item in items])
        first_phrase = 0
        for row, item in enumerate(items):
            height, width = item.canvas.shape[:2]
            length = len(item.text.ids)
            images[row, :height, :width] = item.canvas
            pixel_mask[row, :height, :width] = True
            ids[row, :length] = item.text.ids
            text_mask[row, :length] = True
            offsets[row, :length] = item.text.offsets
            caption_tokens[row, :length] = item.caption_tokens
            phrase_tokens[first_phrase : first_phrase + len(item.phrase_ids), :length] = item.phrase_tokens
            first_phrase += len(item.phrase_ids)
        return Batch(
            examples=tuple(item.example for item in items),
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            pixel_mask=torch.from_numpy(pixel_mask),
            input_ids=torch.from_numpy(ids),
            text_mask=torch.from_numpy(text_mask),
            offsets=torch.from_numpy(offsets),
            caption_tokens=torch.from_numpy(caption_tokens),
            phrase_tokens=torch.from_numpy(phrase_tokens),
            phrase_example=torch.from_numpy(phrase_example.astype(np.int64)),
            phrase_ids=tuple(phrase_id for item in items for phrase_id in item.phrase_ids),
            grid=(-(-size[1] // self.stride), -(-size[2] // self.stride)),
            valid=torch.tensor(list(zip(heights, widths, strict=True)), dtype=torch.int64),
            dropped_phrases=tuple(phrase_id for item in items for phrase_id in item.dropped_phrases),
        )


def permute_candidates(item: Encoded, order: Sequence[int]) -> Encoded:
    """The same game with its candidates in another order: new candidate k is the old ``order[k]``."""
    example = item.example
    if not isinstance(example.task, ReferenceGame):
        return item
    count = len(example.images)
    position = {old: new for new, old in enumerate(order)}
    canvas = item.canvas.reshape(count, -1, *item.canvas.shape[1:])[list(order)].reshape(item.canvas.shape)
    moved = replace(
        example,
        images=tuple(example.images[old] for old in order),
        task=ReferenceGame(position[example.task.target_index]),
        phrases=tuple(replace(p, image_index=position[p.image_index]) for p in example.phrases),
    )
    return replace(item, example=moved, canvas=canvas)
