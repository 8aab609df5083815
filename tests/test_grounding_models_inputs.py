"""Examples to batches: canvases, padding, masks, and games whose candidates change places."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from small_models import CAPTIONS, byte_level, game, single_image, small_mdetr, small_vilt, wordpiece
from torch import Tensor

from grounding.errors import BadInput
from grounding.examples import Phrase, ReferenceGame
from grounding.models.base import Batch
from grounding.models.inputs import Preprocessor, permute_candidates


def preprocessor(**changes) -> Preprocessor:
    """Candidates of 32 pixels, image tokens of 16."""
    return Preprocessor(**{"tokenizer": wordpiece(), "candidate_size": 32, "multiple": 16, "stride": 16, **changes})


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal in every tensor and id."""
    for field in fields(Batch):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if not (torch.equal(one, other) if isinstance(one, Tensor) else one is other or one == other):
            return False
    return True


def test_a_game_is_a_stack_of_its_candidates():
    example = game(images=3)
    batch = small_vilt().preprocess([example])
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (1, 3, 96, 32)
    for k, pixels in enumerate(example.images):
        assert torch.equal(batch.images[0, :, 32 * k : 32 * (k + 1)], torch.from_numpy(pixels).permute(2, 0, 1))
    assert batch.grid == (6, 2)
    assert batch.valid.tolist() == [[96, 32]]
    assert batch.pixel_mask.all()


def test_candidates_of_other_sizes_are_made_square():
    example = replace(game(), images=(np.full((20, 50, 3), 9, np.uint8), *game(size=64).images[1:]))
    canvas = preprocessor().canvas(example)
    assert canvas.shape == (96, 32, 3)
    assert (canvas[:32] == 9).all()


def test_examples_of_different_sizes_are_padded_at_bottom_and_right():
    examples = [single_image("tall", 64, 16, seed=1), game(images=2), single_image("wide", 16, 80, seed=2)]
    batch = preprocessor().collate([preprocessor().encode(example) for example in examples])
    assert batch.images.shape == (3, 3, 64, 80)
    assert batch.valid.tolist() == [[64, 16], [64, 32], [16, 80]]
    assert batch.grid == (4, 5)
    for row, (height, width) in enumerate(batch.valid.tolist()):
        assert batch.pixel_mask[row, :height, :width].all()
        assert batch.pixel_mask[row].sum() == height * width
        assert not batch.images[row][:, ~batch.pixel_mask[row]].any()
    assert torch.equal(batch.images[2, :, :16], torch.from_numpy(examples[2].images[0]).permute(2, 0, 1))


def test_captions_of_different_lengths_are_padded_at_the_end():
    examples = [replace(game(str(k)), caption=c, phrases=()) for k, c in enumerate(["a dot", CAPTIONS[0], ""])]
    batch = preprocessor().collate([preprocessor().encode(example) for example in examples])
    lengths = [len(wordpiece().encode(e.caption).ids) for e in examples]
    assert batch.text_mask.sum(1).tolist() == lengths
    assert batch.input_ids.shape == (3, max(lengths))
    for row, length in enumerate(lengths):
        assert batch.text_mask[row, :length].all()
        assert (batch.input_ids[row, length:] == 0).all()
        assert (batch.offsets[row, length:] == 0).all()
    assert batch.caption_tokens.sum(1).tolist() == [length - 2 for length in lengths]
    assert not (batch.caption_tokens & ~batch.text_mask).any()
    wide = preprocessor(pad_text_to=20).collate([preprocessor().encode(example) for example in examples])
    assert wide.input_ids.shape == (3, 20)
    assert torch.equal(wide.input_ids[:, : max(lengths)], batch.input_ids)


def test_the_padding_id_is_the_tokenizers():
    encoded = [preprocessor(tokenizer=byte_level()).encode(replace(game(), caption=c, phrases=())) for c in ("a", "")]
    batch = preprocessor(tokenizer=byte_level()).collate(encoded)
    assert batch.input_ids[1].tolist() == [0, 2, 1]


@pytest.mark.parametrize(("height", "width", "made"), [(48, 80, (48, 80)), (47, 81, (32, 80)), (31, 16, (16, 16))])
def test_single_images_are_rounded_down(height, width, made):
    example = single_image(height=height, width=width)
    canvas = preprocessor().canvas(example)
    assert canvas.shape == (*made, 3)
    if made == (height, width):
        assert np.array_equal(canvas, example.images[0])
    else:  # the whole image is kept, smaller; nothing is cut off
        assert abs(canvas.mean() - example.images[0].mean()) < 2


def test_a_rounded_image_is_resized_and_not_cropped():
    pixels = np.zeros((47, 47, 3), np.uint8)
    pixels[:, 40:] = 255
    canvas = preprocessor().canvas(replace(single_image(), images=(pixels,)))
    assert canvas.shape == (32, 32, 3)
    assert canvas[:, -4:].min() > 200
    assert canvas[:, :26].max() < 60


def test_an_image_smaller_than_a_token_is_an_error():
    with pytest.raises(BadInput, match="example 'dwarf': image of 80 x 15 pixels is smaller than 16 x 16"):
        preprocessor().encode(single_image("dwarf", 15, 80))


def test_a_candidate_size_that_does_not_fit_the_grid_is_an_error():
    with pytest.raises(BadInput, match="candidate size 40 is not a multiple of 16"):
        preprocessor(candidate_size=40)


def test_phrases_keep_their_example_and_lost_ones_are_reported():
    caption = CAPTIONS[0]
    lost = Phrase("late", "dot", ((caption.index("dot"), len(caption)),), ())
    long = replace(game("long"), phrases=(*game().phrases, lost))
    short = preprocessor(tokenizer=wordpiece(8))
    items = [short.encode(example) for example in (game("first"), long)]
    batch = short.collate(items)
    assert batch.phrase_ids == ("p0", "p0")
    assert batch.phrase_example.tolist() == [0, 1]
    assert batch.dropped_phrases == ("p1", "p1", "late")  # of p1 "blue" is there, and "box" is not
    for p, row in enumerate(batch.phrase_example.tolist()):
        words = [caption[begin:end] for begin, end in batch.offsets[row][batch.phrase_tokens[p]].tolist()]
        assert words == ["a", "red", "disc"]
    whole = preprocessor(tokenizer=wordpiece(9)).encode(long)
    assert whole.phrase_ids == ("p0", "p1")  # one token more, and all of it is


def test_a_phrase_that_is_a_blank_is_reported():
    example = replace(game(), phrases=(Phrase("blank", "x", ((1, 2),), ()), *game().phrases))
    encoded = preprocessor().encode(example)
    assert (encoded.phrase_ids, encoded.dropped_phrases) == (("p0", "p1"), ("blank",))


def test_a_target_beyond_the_token_limit_is_an_error():
    caption = CAPTIONS[0]
    example = single_image("far", target_spans=((caption.index("dot"), len(caption)),))
    with pytest.raises(
        BadInput, match=r"example 'far': no token of its target spans .* is among the first 8, the most"
    ):
        preprocessor(tokenizer=wordpiece(8)).encode(example)
    near = replace(example, task=replace(example.task, target_spans=((2, 5), *example.task.target_spans)))
    assert preprocessor(tokenizer=wordpiece(8)).encode(near).caption_tokens.sum() == 1


@pytest.mark.parametrize("caption", ["", "  \n"])
@pytest.mark.parametrize("build", [small_vilt, small_mdetr])
def test_a_caption_without_words_is_an_error(build, caption):
    with pytest.raises(BadInput, match=r"example 'mute': caption '.*' has no words"):
        build().prepare([replace(game("mute"), caption=caption, phrases=())])


@pytest.mark.parametrize("build", [small_vilt, small_mdetr])
@torch.inference_mode()
def test_a_caption_over_the_token_limit_is_read_up_to_it(build):
    """The answers are those of the caption that ends there, for the phrases that do too."""
    model = build()
    long = replace(game("long"), caption=" ".join([CAPTIONS[0]] * 4))
    lost_from = model.preprocessor.tokenizer.encode(long.caption).lost_from
    cut = replace(long, caption=long.caption[:lost_from].rstrip())
    first, second = (model.predict(batch, model(batch)) for batch in (model.prepare([e]) for e in (long, cut)))
    assert first[0].answer == second[0].answer
    assert first[0].score == pytest.approx(second[0].score)


def test_a_batch_without_phrases_has_none():
    batch = preprocessor().collate([preprocessor().encode(replace(game(), phrases=()))])
    assert batch.phrase_tokens.shape == (0, batch.input_ids.shape[1])
    assert batch.phrase_example.shape == (0,)
    assert batch.phrase_example.dtype == torch.int64


def test_the_task_reads_the_target_spans_of_a_description_and_the_whole_caption_of_a_game():
    caption = CAPTIONS[0]
    spans = ((caption.index("blue"), caption.index("blue") + 4), (caption.index("dot"), len(caption)))
    for target_spans, expected in ((spans, ["blue", "dot"]), ((), ["a", "red", "disc", ",", "a"])):
        item = preprocessor().encode(single_image(target_spans=target_spans))
        words = [caption[begin:end] for begin, end in item.text.offsets[item.caption_tokens].tolist()]
        assert words[: len(expected)] == expected
        assert len(words) == (2 if target_spans else len(item.text.ids) - 2)
    item = preprocessor().encode(game())
    assert item.caption_tokens.tolist() == [False, *[True] * (len(item.text.ids) - 2), False]


@pytest.mark.parametrize("build", [small_vilt, small_mdetr])
def test_preprocessing_is_encoding_and_collating(build):
    model = build()
    examples = [game("a"), single_image("b"), game("c", images=6, target=5, seed=3)]
    alone = [model.preprocessor.encode(example) for example in examples]
    assert same(model.preprocess(examples), model.preprocessor.collate(alone))


def test_moving_a_batch_moves_every_tensor():
    batch = preprocessor().collate([preprocessor().encode(game())])
    moved = batch.to("meta")
    for field in fields(Batch):
        value = getattr(moved, field.name)
        if isinstance(value, Tensor):
            assert value.device.type == "meta", field.name
        else:
            assert value == getattr(batch, field.name)


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
def test_changing_the_order_of_candidates_is_encoding_the_changed_game(order):
    example = game(images=4, target=2)
    example = replace(example, phrases=(example.phrases[0], replace(example.phrases[1], image_index=0)))
    images = tuple(example.images[k] for k in order)
    phrases = tuple(replace(p, image_index=order.index(p.image_index)) for p in example.phrases)
    wanted = replace(example, images=images, phrases=phrases, task=ReferenceGame(order.index(2)))
    moved = permute_candidates(preprocessor().encode(example), order)
    direct = preprocessor().encode(wanted)
    assert np.array_equal(moved.canvas, direct.canvas)
    assert moved.example.task == direct.example.task
    assert moved.example.phrases == direct.example.phrases
    assert all(one is other for one, other in zip(moved.example.images, direct.example.images, strict=True))
    truth = example.images[2]
    where = moved.example.target_index
    assert np.array_equal(moved.canvas[32 * where : 32 * (where + 1)], truth)


def test_changing_the_order_leaves_the_cached_example_and_descriptions_alone():
    item = preprocessor().encode(game(images=3))
    before = item.canvas.copy()
    permute_candidates(item, [2, 0, 1]).canvas[:] = 0
    assert np.array_equal(item.canvas, before)
    description = preprocessor().encode(single_image())
    assert permute_candidates(description, [0]) is description
