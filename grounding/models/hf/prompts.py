"""Captions inside a prompt: one string, as the model's processor tokenises it, and who is who in it.

What is added belongs to no caption: its tokens cover no character, so that no phrase and no task word is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from grounding.errors import BadInput
from grounding.models.text import CaptionTokenizer, EncodedText


class PromptTokenizer(CaptionTokenizer):
    """Reads ``before + caption + after``; ``after`` only where a caption does not end with it.

    Of a caption over the limit the last tokens are cut, never those of the prompt.
    """

    def __init__(self, tokenizer: CaptionTokenizer, before: str = "", after: str = ""):
        super().__init__(copied(tokenizer.backend), tokenizer.max_length, tokenizer.pad_id)
        self.backend.no_truncation()
        self.before, self.after = before, after

    def encode(self, caption: str) -> EncodedText:
        """Tokens of one caption in its prompt; offsets are those in the caption."""
        prompt = self.before + caption + ("" if caption.endswith(self.after) else self.after)
        encoding = self.backend.encode(prompt)
        ids, places = np.asarray(encoding.ids), np.asarray(encoding.offsets).reshape(-1, 2)
        closing = np.asarray(encoding.special_tokens_mask, dtype=bool) | (places[:, 0] >= len(prompt) - len(self.after))
        tail = int(np.cumprod(closing[::-1]).sum())
        offsets = in_caption(encoding.offsets, len(self.before), len(caption))
        cut = np.zeros(len(ids), dtype=bool)
        cut[max(self.max_length - tail, 0) : len(ids) - tail] = len(ids) > self.max_length
        return EncodedText(ids[~cut].astype(np.int64), offsets[~cut], first_character(offsets[cut]))


class ImagePromptTokenizer(CaptionTokenizer):
    """Tokens of prompt and caption without the image's place; those of the prompt cover no character, as special ones.

    prompt: holds ``image_token`` once; the caption follows. whole: keep the image token among the text tokens, for
    models that read one in place of an image. adds_special: let the tokenizer put its own special tokens around.
    before: text tokens in front of the image, the same for every caption. Raises BadInput for a tokenizer without the
    image token.
    """

    def __init__(
        self,
        tokenizer: CaptionTokenizer,
        prompt: str,
        image_token: str,
        *,
        whole: bool = False,
        adds_special: bool = False,
    ):
        super().__init__(tokenizer.backend, tokenizer.max_length, tokenizer._pad_id)
        self.prompt = prompt
        self.image_token = image_token
        self.whole = whole
        self.adds_special = adds_special
        found = tokenizer.backend.token_to_id(image_token)
        if found is None:
            raise BadInput(f"tokenizer has no token {image_token!r}, where the prompt has the image")
        self.image_id = int(found)
        ids = self.backend.encode(prompt, add_special_tokens=adds_special).ids
        if self.image_id not in ids:
            raise BadInput(f"text limit {self.max_length} is too short for the prompt, {len(ids)} tokens of which fit")
        self.before = ids.index(self.image_id)

    def encode(self, caption: str) -> EncodedText:
        """Tokens of prompt and caption, with the caption's characters. Raises BadInput for a caption with an image."""
        encoding = self.backend.encode(self.prompt + caption, add_special_tokens=self.adds_special)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        images = ids == self.image_id
        if images.sum() > 1 or self.image_token in caption:
            raise BadInput(f"caption {caption!r} has {self.image_token!r} in it, which stands for an image")
        kept = np.ones_like(images) if self.whole else ~images
        offsets = in_caption(encoding.offsets, len(self.prompt), len(caption))
        lost = [in_caption(part.offsets, len(self.prompt), len(caption)) for part in encoding.overflowing]
        return EncodedText(ids[kept], offsets[kept], first_character(np.concatenate(lost or [offsets[:0]])))


def in_caption(offsets: Sequence[tuple[int, int]], begin: int, length: int) -> np.ndarray:
    """Characters of a prompt -> of the caption in it, int64 ``[T, 2]``; (0, 0) for tokens that cover none of it.

    begin, length: where the caption is in the prompt, in characters.
    """
    places = (np.asarray(offsets, dtype=np.int64).reshape(-1, 2) - begin).clip(0, length)
    places[places[:, 0] == places[:, 1]] = 0
    return places


def first_character(offsets: np.ndarray) -> int | None:
    """Where the first token begins that covers any of the caption, ``[T, 2]``; None if none does."""
    return min((int(begin) for begin, end in offsets if begin < end), default=None)


def copied(backend: Tokenizer) -> Tokenizer:
    """A tokenizer of its own, which may be changed."""
    return Tokenizer.from_str(backend.to_str())
