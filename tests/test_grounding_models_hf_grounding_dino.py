"""Grounding DINO and MM-Grounding-DINO behind one adapter."""

from __future__ import annotations

import pytest
import torch
from hf_models import certificate, check_extraction, pixels_of, square_game, tiny
from small_models import captured
from torch.testing import assert_close
from torchvision.ops import box_convert

CELLS = 64


@pytest.fixture(scope="module", params=["grounding-dino", "mm-grounding-dino"])
def model(request):
    return tiny(request.param)


def stock(model, example):
    """What an untouched transformers model of the same weights gives for every candidate."""
    batch = model.preprocess([example])
    plain = type(model.network)(model.config.transformers_config).eval()
    plain.load_state_dict(model.network.state_dict())
    plain.model.special_tokens = model.network.model.special_tokens
    with torch.no_grad():
        expected = plain(
            input_ids=batch.input_ids.expand(3, -1), attention_mask=batch.text_mask.long().expand(3, -1),
            pixel_values=pixels_of(model, example), output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
    return batch, expected


def test_numbers_are_those_of_transformers(model):
    example = square_game(model, target=2)
    seen, output = captured(model, [example])
    batch, expected = stock(model, example)
    for k in range(2):
        vision, text = expected.encoder_vision_hidden_states[k + 1], expected.encoder_text_hidden_states[k + 1]
        found = seen.state[f"encoder.image.{k}"][0]
        assert_close(found, vision[:, :CELLS].flatten(0, 1), atol=1e-4, rtol=1e-3)
        assert_close(seen.state[f"encoder.text.{k}"][0], text[2], atol=1e-4, rtol=1e-3)
        looks = expected.encoder_attentions[1][k].unflatten(0, (3, -1))[2]
        found = seen.weights[f"encoder.text.{k}"][0][..., 2 * CELLS : 3 * CELLS]
        assert_close(found, looks[..., :CELLS], atol=1e-5, rtol=1e-3)
    for p, tokens in enumerate(batch.phrase_tokens):
        best = expected.logits[..., : len(tokens)][..., tokens].amax(-1)
        assert_close(output.phrase_logits[p], best.flatten(), atol=1e-4, rtol=1e-3)
    boxes = box_convert(expected.pred_boxes, "cxcywh", "xyxy")
    boxes[..., 1::2] = (boxes[..., 1::2] + torch.arange(3)[:, None, None]) / 3
    assert_close(output.boxes_xyxy[0], boxes.flatten(0, 1), atol=1e-4, rtol=1e-3)
    assert model.predict(batch, output)[0].answer == int(output.match[0].argmax())


def test_the_certificate(model):
    assert certificate(model) == {"ok": 8}


def test_the_token_of_a_changed_cell_changes_most(model):
    """Windows and norms spread a little of it everywhere."""
    from dataclasses import replace

    example = square_game(model)
    images = [image.copy() for image in example.images]
    images[1][16:24, 40:48] ^= 255  # row 2, column 5 of 8 x 8
    one, two = (captured(model, [e])[0].state["backbone"][0] for e in (example, replace(example, images=tuple(images))))
    assert int((one - two).norm(dim=-1).argmax()) == CELLS + 2 * 8 + 5


def test_extraction_end_to_end(model, tmp_path):
    run = check_extraction(model, tmp_path, ("phrase", "region", "attention"))
    assert run.site("encoder.text.1").views == ("phrase", "attention")
    assert run.site("decoder.1").views == ("region",)


def test_a_stop_is_added_after_the_caption(model):
    example = square_game(model)
    batch = model.preprocess([example])
    tokens = int(batch.text_mask.sum())
    stop = model.preprocessor.tokenizer.backend.token_to_id(".")
    assert batch.input_ids[0, tokens - 2] == stop
    assert not batch.caption_tokens[0, tokens - 2]
    assert batch.examples[0] is example
