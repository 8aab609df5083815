"""Captions to tokens and spans to tokens, for both kinds of tokenizers in use."""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from small_models import CAPTIONS, byte_level, wordpiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from grounding.errors import BadInput
from grounding.models.text import CaptionTokenizer, load_tokenizer, train_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "##ish", "disc", "blue", "box", ","]


def bert(max_length: int = 20) -> CaptionTokenizer:
    """WordPiece with a vocabulary that can be followed by hand."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return CaptionTokenizer(backend, max_length)


@pytest.mark.parametrize(
    ("spans", "tokens"),
    [
        ([(2, 13)], [2, 3, 4]),  # reddish disc: a word of two pieces and one of one
        ([(5, 7)], [3]),  # inside of the second piece
        ([(4, 6)], [2, 3]),  # across the border of both
        ([(5, 8)], [3]),  # ends where the space begins
        ([(8, 9)], []),  # the space alone
        ([(8, 10)], [4]),  # a space and the first letter after it
        ([(0, 1), (20, 23)], [1, 7]),  # two spans, and nothing between them
        ([(15, 19), (2, 5)], [2, 6]),  # spans in any order
        ([(0, 23)], [1, 2, 3, 4, 5, 6, 7]),  # never [CLS] or [SEP]
        ([], []),
    ],
)
def test_a_wordpiece_belongs_to_the_spans_it_overlaps(spans, tokens):
    caption = "a redish disc, blue box"
    text = bert().encode(caption)
    assert [WORDS[i] for i in text.ids] == ["[CLS]", "a", "red", "##ish", "disc", ",", "blue", "box", "[SEP]"]
    assert np.flatnonzero(text.tokens_of(spans)).tolist() == tokens


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_byte_level_token_does_not_belong_to_the_word_before_its_space(trim_offsets):
    caption = CAPTIONS[0]
    tokenizer = byte_level(trim_offsets=trim_offsets)
    text = tokenizer.encode(caption)
    begin = caption.index("disc")
    disc = tokenizer.encode(caption).tokens_of([(begin, begin + 4)])
    red = text.tokens_of([(begin - 4, begin - 1)])
    assert disc.any()
    assert red.any()
    assert not (disc & red).any()
    assert tokenizer.backend.decode(text.ids[disc].tolist()).strip() == "disc"
    assert tokenizer.backend.decode(text.ids[red].tolist()).strip() == "red"


@pytest.mark.parametrize("tokenizer", [wordpiece(60), byte_level(60)], ids=["wordpiece", "byte-level"])
@pytest.mark.parametrize("caption", [*CAPTIONS, "Un café noir, 3 boîtes — ça va?", "a ☃ snow👩‍🚀man", "\ttwo  spaces "])
def test_random_spans_get_every_token_that_shares_a_character(tokenizer, caption):
    text = tokenizer.encode(caption)
    random = np.random.default_rng(0)
    for _ in range(30):
        begin, end = np.sort(random.choice(len(caption) + 1, 2, replace=False)).tolist()
        expected = [bool(set(range(*offset)) & set(range(begin, end))) for offset in text.offsets.tolist()]
        assert text.tokens_of([(begin, end)]).tolist() == expected


def test_offsets_count_characters_and_not_bytes():
    caption = "☃ 👩 ☃ box"
    text = byte_level().encode(caption)
    snowman = text.tokens_of([(0, 1)])
    assert snowman.sum() >= 2  # a character of three bytes that no merge knows
    assert byte_level().backend.decode(text.ids[snowman].tolist()) == "☃"
    box = text.tokens_of([(caption.index("box"), len(caption))])
    assert byte_level().backend.decode(text.ids[box].tolist()).strip() == "box"


def test_an_accent_that_the_normaliser_strips_does_not_shift_what_follows():
    caption = "à réd disc, blüe box"
    text = bert().encode(caption)
    assert text.ids.tolist() == bert().encode("a red disc, blue box").ids.tolist()
    for word in ("réd", "blüe"):
        chosen = text.tokens_of([(caption.index(word), caption.index(word) + len(word))])
        assert [WORDS[i] for i in text.ids[chosen]] == [word.replace("é", "e").replace("ü", "u")]


def test_spans_are_held_only_with_all_of_their_tokens():
    text = bert(max_length=5).encode("a redish disc, blue box")
    assert text.lost_from == 9
    assert text.holds([(2, 8)])
    assert text.holds([(2, 9)])  # the blank behind it is nobody's
    assert not text.holds([(2, 13)])
    assert not text.holds([(0, 1), (9, 13)])
    assert not text.holds([(8, 9)])  # a blank has no token
    assert not text.holds([])
    assert text.holds([(2, 8)], slots=4)
    assert not text.holds([(2, 8)], slots=3)  # its second half is token 3
    assert bert().encode("a redish disc").lost_from is None
    assert bert().encode("a redish disc").holds([(2, 13)])
    snow = byte_level(max_length=4).encode("☃☃")  # three bytes each, of which two tokens are left
    assert snow.lost_from == 0
    assert not snow.holds([(0, 1)])


def test_truncation_keeps_the_end_token_and_loses_what_is_behind():
    text = bert(max_length=5).encode("a redish disc, blue box")
    assert [WORDS[i] for i in text.ids] == ["[CLS]", "a", "red", "##ish", "[SEP]"]
    assert not text.tokens_of([(9, 13)]).any()  # disc is gone, and no other token stands in for it
    assert np.flatnonzero(text.tokens_of([(2, 13)])).tolist() == [2, 3]  # what is left of the phrase


@pytest.mark.parametrize("tokenizer", [wordpiece(), byte_level()], ids=["wordpiece", "byte-level"])
@pytest.mark.parametrize("caption", ["", "   "])
def test_a_caption_without_words_has_only_special_tokens(tokenizer, caption):
    text = tokenizer.encode(caption)
    assert (text.offsets[[0, -1]] == 0).all()
    assert text.offsets.shape == (len(text.ids), 2)
    assert text.ids[0] != text.ids[-1]
    if not caption:
        assert len(text.ids) == 2
        assert not text.tokens_of([(0, 1)]).any()


def test_the_pad_token_is_found_under_both_names():
    assert wordpiece().pad_id == 0
    assert byte_level().pad_id == 1
    without = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(BadInput, match=r"tokenizer has no padding token; accepted: \[PAD\] or <pad>"):
        _ = CaptionTokenizer(without, 5).pad_id


def test_training_gives_the_same_tokenizer_every_time():
    """A resumed run trains its tokenizer again: other numbers for the same words would scramble its embeddings."""
    captions = [f"{a}{b} {b}{a}{b} the {a}-{b}" for a in "bdfgklmnprst" for b in "aeiou"]
    trained = {train_tokenizer(captions, 20, vocabulary_size=120).backend.to_str() for _ in range(5)}
    assert len(trained) == 1


def test_a_trained_tokenizer_has_berts_form():
    tokenizer = train_tokenizer(CAPTIONS, 20)
    tokens = tokenizer.backend.encode("The RED disc2").tokens
    assert tokens[:3] == ["[CLS]", "the", "red"]
    assert tokens[-1] == "[SEP]"
    assert [tokenizer.backend.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [*range(5)]
    assert tokenizer.backend.decode(tokenizer.encode("the red disc").ids.tolist()) == "the red disc"  # no [CLS]
    assert tokenizer.backend.encode("##a").tokens[1] == "[UNK]"  # written out in a caption, it is no word piece
    assert train_tokenizer(CAPTIONS, 20, vocabulary_size=60).vocabulary_size == 60


def test_saving_and_loading_keeps_tokens_and_takes_the_new_limit(tmp_path):
    tokenizer = wordpiece(20)
    tokenizer.save(tmp_path / "tokenizer.json")
    for source in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        loaded = load_tokenizer(source, 6)
        assert loaded.encode(CAPTIONS[0]).ids.tolist()[:5] == tokenizer.encode(CAPTIONS[0]).ids.tolist()[:5]
        assert len(loaded.encode(CAPTIONS[0]).ids) == 6
        assert loaded.vocabulary_size == tokenizer.vocabulary_size


def test_loading_names_what_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken = tmp_path / "broken.json"
    broken.write_text('{"model": 3}')
    with pytest.raises(BadInput, match=r"tokenizer .*broken\.json cannot be read"):
        load_tokenizer(broken, 20)
    accepted = "accepted: a tokenizer.json, a folder with one, or the name of one on the Hugging Face hub"
    for missing in (tmp_path / "missing.json", "missing.json", "/nonexistent", "./no/such/folder", "~/nowhere"):
        with pytest.raises(BadInput, match=f"^tokenizer .* does not exist; {accepted}$"):
            load_tokenizer(missing, 20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=rf"tokenizer '.*empty' cannot be loaded .*; {accepted}$") as error:
        load_tokenizer(tmp_path / "empty", 20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "here"),
    [(None, False), (HfHubHTTPError, False), (HfHubHTTPError.__bases__[0], True), (OfflineModeIsEnabled, True)],
)
def test_the_hub_is_asked_once_before_transformers_tries_for_a_minute(monkeypatch, answer, here):
    asked = []

    def repo_info(self: HfApi, name: str, timeout: float) -> None:
        asked.append((name, timeout <= 10))
        if answer is not None:  # made without the response that some of them want
            raise answer.__new__(answer)

    def from_pretrained(name: str, local_files_only: bool) -> None:
        asked.append((name, local_files_only))
        raise OSError("We could not connect.\nSee the page on offline mode.")

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(
        BadInput, match=r"^tokenizer 'roberta-base' cannot be loaded \(We could not connect\.\); accepted"
    ):
        load_tokenizer("roberta-base", 20)
    assert asked == [("roberta-base", True), ("roberta-base", here)]


def test_a_folder_is_no_name_to_ask_the_hub_for(monkeypatch, tmp_path):
    monkeypatch.setattr(HfApi, "repo_info", lambda *given, **options: pytest.fail("the hub was asked"))
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_tokenizer(tmp_path, 20)
