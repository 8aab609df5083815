"""Captions in prompts, in lower case and as plain words: tokens keep the characters they came from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hf_models import square_game, tiny
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from grounding.models.hf.captions import lower_cased, word_tokenizer
from grounding.models.hf.prompts import PromptTokenizer
from grounding.models.text import CaptionTokenizer, train_tokenizer

CAPTION = "a red disc and a blue box"


def bert(limit: int) -> CaptionTokenizer:
    return train_tokenizer([CAPTION, "find this : ."], limit)


def words(tokenizer: CaptionTokenizer, caption: str) -> list[str]:
    """Caption characters of each token."""
    return [caption[begin:end] for begin, end in tokenizer.encode(caption).offsets]


def test_a_prompt_covers_no_characters():
    prompted = PromptTokenizer(bert(40), "find this: ", ".")
    encoded = prompted.encode(CAPTION)
    assert words(prompted, CAPTION) == ["", "", "", "", *CAPTION.split(), "", ""]
    assert prompted.backend.decode(encoded.ids.tolist()) == f"find this : {CAPTION} ."
    assert encoded.lost_from is None


def test_an_ending_that_is_there_is_the_captions():
    assert words(PromptTokenizer(bert(40), after="."), CAPTION + ".") == ["", *CAPTION.split(), ".", ""]


@pytest.mark.parametrize("ending", ["", "."])
def test_a_long_caption_loses_its_last_words_and_not_the_ending(ending):
    prompted, caption = PromptTokenizer(bert(7), after="."), CAPTION + ending
    encoded = prompted.encode(caption)
    assert words(prompted, caption) == ["", "a", "red", "disc", "and", ending, ""]
    assert prompted.backend.decode(encoded.ids.tolist()) == "a red disc and ."
    assert encoded.lost_from == caption.index("a blue")
    assert encoded.holds(((2, 10),))
    assert not encoded.holds(((17, 21),))


def test_the_tokenizer_that_was_given_is_left_as_it_was():
    given = bert(7)
    PromptTokenizer(given, after=".")
    lower_cased(given)
    assert len(given.encode(CAPTION).ids) == 7


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_grounding_dino_keeps_the_stop_of_a_caption_over_the_limit(kind):
    model = tiny(kind)
    example = square_game(model, images=1, target=0)
    batch = model.preprocess([replace(example, caption=example.caption + " and a dot" * 9)])
    stop = model.preprocessor.tokenizer.backend.token_to_id(".")
    assert batch.input_ids.shape[1] == 24
    assert batch.input_ids[0, -2:].tolist() == [stop, 3]
    assert not batch.caption_tokens[0, -2:].any()
    with torch.no_grad():
        assert torch.isfinite(model(batch).phrase_logits).all()


def gemma(vocabulary: str) -> CaptionTokenizer:
    """A tokenizer in the form of SigLIP 2's (Gemma's): one token a character, nothing of it in lower case."""
    tokens = ["<pad>", "<eos>", "<unk>", *dict.fromkeys(vocabulary)]
    backend = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    return CaptionTokenizer(backend, 64)


def test_lower_case_is_what_transformers_tokenizer_of_siglip_2_reads():
    from transformers import Siglip2Tokenizer

    vocabulary = {token: k for k, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdeir▁"])}
    stock = Siglip2Tokenizer(vocab=vocabulary, merges=[])
    released = stock.backend_tokenizer.to_str().replace('{"type":"Lowercase"},', "")
    assert "Lowercase" not in released  # as the tokenizer.json files of the checkpoints are
    ours = lower_cased(CaptionTokenizer(Tokenizer.from_str(released), 64))
    for caption in ("A RED bad cAb", "a red bad cab"):
        assert ours.encode(caption).ids.tolist() == stock(caption)["input_ids"]


@pytest.mark.parametrize("caption", ["A Red Disc", "İki DİSC", "ẞ Disc"])  # the dotted capital becomes two characters
def test_lower_case_keeps_the_characters_that_a_phrase_covers(caption):
    """Whether lower case changes the length of the caption or not."""
    ours = lower_cased(gemma(caption.lower().replace(" ", "▁") + "▁"))
    encoded = ours.encode(caption)
    begin = caption.index("D")
    chosen = encoded.tokens_of(((begin, begin + 4),))
    assert "".join(ours.backend.id_to_token(k) for k in encoded.ids[chosen]) == caption[begin : begin + 4].lower()
    assert 2 not in encoded.ids  # nothing is unknown


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_reads_captions_in_lower_case(kind):
    model = tiny(kind)
    backend = model.preprocessor.tokenizer.backend
    backend.normalizer = normalizers.Sequence([normalizers.NFC()])  # the tests' own tokenizer has lower case already
    plain = tiny(kind)
    again = type(model)(model.config, model.preprocessor.tokenizer, plain.network)
    example = square_game(model, images=1, target=0)
    loud = replace(example, caption=example.caption.upper())
    batches = [again.preprocess([e]) for e in (example, loud)]
    assert torch.equal(batches[0].input_ids, batches[1].input_ids)
    assert torch.equal(batches[0].phrase_tokens, batches[1].phrase_tokens)
    assert batches[0].phrase_tokens.any(1).all()


def test_plain_words():
    tokenizer = word_tokenizer(4)
    encoded = tokenizer.encode("a red disc, seen")
    assert encoded.offsets.tolist() == [[0, 1], [2, 5], [6, 10], [10, 11]]
    assert encoded.lost_from == 12
