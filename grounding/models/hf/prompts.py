"""Captions as answers to a fixed prompt: one string, as the model's processor tokenises it, and who is who in it."""

from __future__ import annotations

import numpy as np

from grounding.errors import BadInput
from grounding.models.text import CaptionTokenizer, EncodedText


class PromptTokenizer(CaptionTokenizer):
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
        lost = [self._in_caption(part.offsets) for part in encoding.overflowing]
        begins = [int(begin) for part in lost for begin, end in part if begin < end]
        return EncodedText(ids[kept], self._in_caption(encoding.offsets)[kept], min(begins, default=None))

    def _in_caption(self, offsets: list[tuple[int, int]]) -> np.ndarray:
        """Characters of the caption ``[T, 2]``; (0, 0) for tokens in front of it."""
        return (np.asarray(offsets, dtype=np.int64).reshape(-1, 2) - len(self.prompt)).clip(min=0)
