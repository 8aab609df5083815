"""Captions to tokens, and character spans to the tokens that overlap them: one aligner for every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from grounding.errors import BadInput
from grounding.examples import Span

PATIENCE = 10.0  # seconds that the Hugging Face hub has for its first answer


@dataclass(frozen=True)
class EncodedText:
    """Token ids ``[T]`` and the caption characters ``[T, 2]`` of each token, (0, 0) for special tokens.

    lost_from: the first character of what the token limit cut off; None where nothing was.
    """

    ids: np.ndarray
    offsets: np.ndarray
    lost_from: int | None = None

    def tokens_of(self, spans: Sequence[Span]) -> np.ndarray:
        """bool ``[T]``: the tokens that overlap any of the spans (all False where there are none)."""
        begins, ends = self.offsets[:, 0], self.offsets[:, 1]
        chosen = np.zeros(len(self.ids), dtype=bool)
        for begin, end in spans:
            chosen |= (begins < end) & (begin < ends) & (begins < ends)
        return chosen

    def holds(self, spans: Sequence[Span], slots: int | None = None) -> bool:
        """Whether the spans have tokens, and all of them: none was cut off by the token limit.

        slots: they must be among that many first tokens; None for any place.
        """
        tokens = self.tokens_of(spans)
        cut = self.lost_from is not None and any(end > self.lost_from for _, end in spans)
        return not cut and bool(tokens.any()) and not (slots is not None and tokens[slots:].any())


class CaptionTokenizer:
    """A fast tokenizer that keeps at most ``max_length`` tokens, special ones included.

    pad_id: of the padding token; None for the one that is called ``[PAD]`` or ``<pad>``.
    """

    def __init__(self, backend: Tokenizer, max_length: int, pad_id: int | None = None):
        self.backend = backend
        self.max_length = max_length
        self._pad_id = pad_id
        backend.no_padding()
        backend.enable_truncation(max_length)

    @property
    def pad_id(self) -> int:
        """Id of the padding token. Raises BadInput for a tokenizer without one."""
        if self._pad_id is not None:
            return self._pad_id
        for token in ("[PAD]", "<pad>"):
            if (found := self.backend.token_to_id(token)) is not None:
                return found
        raise BadInput("tokenizer has no padding token; accepted: [PAD] or <pad>")

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included."""
        return self.backend.get_vocab_size()

    def encode(self, caption: str) -> EncodedText:
        """Tokens of one caption."""
        encoding = self.backend.encode(caption)
        return EncodedText(
            np.asarray(encoding.ids, dtype=np.int64),
            np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2),
            min((begin for part in encoding.overflowing for begin, end in part.offsets if begin < end), default=None),
        )

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``."""
        self.backend.save(str(path))


def load_tokenizer(source: str | Path, max_length: int, pad_id: int | None = None) -> CaptionTokenizer:
    """Tokenizer from a ``tokenizer.json``, a folder, or the name of a released one (in the local cache or online).

    max_length, pad_id: as in ``CaptionTokenizer``. Raises BadInput if it cannot be had.
    """
    path = Path(source)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.is_file():
        try:
            return CaptionTokenizer(Tokenizer.from_file(str(path)), max_length, pad_id)
        except Exception as error:  # tokenizers raises the bare Exception
            raise BadInput(f"tokenizer {path} cannot be read: {error}") from None
    accepted = "a tokenizer.json, a folder with one, or the name of one on the Hugging Face hub"
    if not path.exists() and (path.suffix == ".json" or str(source).startswith(("/", ".", "~"))):
        raise BadInput(f"tokenizer {path} does not exist; accepted: {accepted}")
    from transformers import AutoTokenizer

    here = path.exists() or not _hub_answers(str(source))
    try:
        found = AutoTokenizer.from_pretrained(str(source), local_files_only=here)
        return CaptionTokenizer(found.backend_tokenizer, max_length, pad_id)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"tokenizer {str(source)!r} cannot be loaded ({reason}); accepted: {accepted}") from None


def _hub_answers(name: str) -> bool:
    """Whether the Hugging Face hub says anything of a name: asked once, where transformers would try for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # What the client raises without an answer is a base of an answer that says no; its name changes with the version.
    no_answer: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        HfApi().repo_info(name, timeout=PATIENCE)
    except HfHubHTTPError:
        return True
    except no_answer:
        return False
    return True


def train_tokenizer(captions: Sequence[str], max_length: int, vocabulary_size: int = 2000) -> CaptionTokenizer:
    """A WordPiece tokenizer in BERT's form, trained on captions (lower case); the same one for the same captions.

    The trainer numbers the characters that go on a word (``##a``) in the order of a hash table, and breaks ties by
    number: given to it in a fixed order, as if they were special tokens, they leave nothing to chance.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    characters = sorted(set("".join(map(normalizer.normalize_str, captions))) - {" "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*special, *(f"##{character}" for character in characters)],
        show_progress=False,
    )
    learner = _bert_tokenizer(models.WordPiece(unk_token="[UNK]"), normalizer)
    learner.train_from_iterator(captions, trainer)
    backend = _bert_tokenizer(models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"), normalizer)
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return CaptionTokenizer(backend, max_length)


def _bert_tokenizer(model: models.Model, normalizer: normalizers.Normalizer) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend
