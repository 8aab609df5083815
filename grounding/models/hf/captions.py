"""Captions as the models want them: inside a prompt, in lower case, or as plain words where a model reads no text.

What is added belongs to no caption: its tokens cover no character, so that no phrase and no task word is in it.
"""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from grounding.examples import Example, SpatialDescription
from grounding.models.base import Batch
from grounding.models.text import CaptionTokenizer, EncodedText


class PromptTokenizer(CaptionTokenizer):
    """Reads ``before + caption + after``; ``after`` only where a caption does not end with it.

    Of a caption over the limit the last tokens are cut, never those of the prompt.
    """

    def __init__(self, tokenizer: CaptionTokenizer, before: str = "", after: str = ""):
        super().__init__(_copy(tokenizer.backend), tokenizer.max_length, tokenizer.pad_id)
        self.backend.no_truncation()
        self.before, self.after = before, after

    def encode(self, caption: str) -> EncodedText:
        """Tokens of one caption in its prompt; offsets are those in the caption."""
        prompt = self.before + caption + ("" if caption.endswith(self.after) else self.after)
        encoding = self.backend.encode(prompt)
        ids, offsets = np.asarray(encoding.ids), np.asarray(encoding.offsets).reshape(-1, 2)
        closing = np.asarray(encoding.special_tokens_mask, dtype=bool) | (
            offsets[:, 0] >= len(prompt) - len(self.after)
        )
        tail = int(np.cumprod(closing[::-1]).sum())
        offsets = np.clip(offsets - len(self.before), 0, len(caption))
        offsets[offsets[:, 0] == offsets[:, 1]] = 0
        cut = np.zeros(len(ids), dtype=bool)
        cut[max(self.max_length - tail, 0) : len(ids) - tail] = len(ids) > self.max_length
        lost = [int(begin) for begin, end in offsets[cut] if begin < end]
        return EncodedText(ids[~cut].astype(np.int64), offsets[~cut].astype(np.int64), min(lost, default=None))


def lower_cased(tokenizer: CaptionTokenizer) -> CaptionTokenizer:
    """The same tokenizer of captions in lower case; offsets stay those of the caption as it is written."""
    backend = _copy(tokenizer.backend)
    steps = [normalizers.Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])]
    backend.normalizer = normalizers.Sequence(steps)
    return CaptionTokenizer(backend, tokenizer.max_length, tokenizer.pad_id)


def word_tokenizer(max_length: int) -> CaptionTokenizer:
    """Words and punctuation marks, all of them the unknown token: for models that read no text."""
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return CaptionTokenizer(backend, max_length)


def asked_texts(batch: Batch) -> list[str]:
    """The words of each phrase, then each example's task words: P + B texts."""
    phrases = {(b, phrase.id): phrase for b, example in enumerate(batch.examples) for phrase in example.phrases}
    owners = zip(batch.phrase_example.tolist(), batch.phrase_ids, strict=True)
    texts = [phrases[owner].text(batch.examples[owner[0]].caption) for owner in owners]
    return texts + [_task_words(example) for example in batch.examples]


def _task_words(example: Example) -> str:
    """The words of a caption that answer the task: those that describe the target, or all of them."""
    if isinstance(example.task, SpatialDescription) and example.task.target_spans:
        return " ".join(example.caption[begin:end] for begin, end in example.task.target_spans)
    return example.caption


def _copy(backend: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(backend.to_str())
