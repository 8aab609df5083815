"""Captions as the models want them: in lower case, or as plain words where a model reads no text; and what they ask."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from grounding.examples import Example, SpatialDescription
from grounding.models.base import Batch
from grounding.models.hf.prompts import copied
from grounding.models.text import CaptionTokenizer


def lower_cased(tokenizer: CaptionTokenizer) -> CaptionTokenizer:
    """The same tokenizer of captions in lower case; offsets stay those of the caption as it is written."""
    backend = copied(tokenizer.backend)
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
