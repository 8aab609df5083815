"""Florence-2 behind its adapter: the boxes that transformers would write after each phrase, and where it looks."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hf_models import certificate, check_extraction, pixels_of, square_game, three_answers, tiny, write_folder
from small_models import captured
from test_probe_cli import run
from torch.testing import assert_close
from transformers import GenerationConfig
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor, Florence2Processor

from grounding.errors import BadInput
from grounding.models.hf.boxes import NOTHING
from grounding.models.hf.florence2 import DESCRIBE, GROUND
from grounding.models.hf.written import BOXES, box_scores

CELLS, IMAGE = 64, 1399  # image tokens of an image, and the mark of one in the tests


@pytest.fixture(scope="module")
def model():
    return tiny("florence2")


@pytest.fixture(scope="module")
def plain(model):
    """An untouched transformers model of the same weights."""
    network = type(model.network)(model.config.transformers_config).eval()
    network.load_state_dict(model.network.state_dict())
    network.set_attn_implementation("eager")
    network.config.image_token_id = IMAGE
    network.generation_config = GenerationConfig(max_new_tokens=4 * BOXES, pad_token_id=0, decoder_start_token_id=3)
    return network


@pytest.fixture(scope="module")
def example(model):
    return square_game(model, images=2, target=1)


@pytest.fixture(scope="module")
def passed(model, example):
    return captured(model, [example])


def inputs(model, example, slot: int, prompt: str) -> dict:
    """What transformers' processor would make of a prompt and candidate ``slot``."""
    ids = model.preprocessor.tokenizer.backend.encode(prompt).ids
    ids = torch.tensor([[IMAGE] * (1 + CELLS) + ids])
    return {"input_ids": ids, "pixel_values": pixels_of(model, example)[slot : slot + 1]}


def tokens(model, text: str) -> list[int]:
    return model.preprocessor.tokenizer.backend.encode(text, add_special_tokens=False).ids


def test_prompts_are_those_of_transformers():
    processor = Florence2Processor.__new__(Florence2Processor)
    with pytest.raises(AttributeError):  # prompts are set before anything is asked of the image processor
        processor.__init__()
    grounding, caption = processor._construct_prompts(["<CAPTION_TO_PHRASE_GROUNDING>a dog", "<CAPTION>"])
    assert grounding == GROUND + "a dog"
    assert caption == DESCRIBE


def written_by_stock(model, plain, example, slot: int, text: str) -> list[int]:
    """Ids of the location tokens that ``generate`` puts after a text, one after the other."""
    backend = model.preprocessor.tokenizer.backend
    places = [backend.token_to_id(f"<loc_{k}>") for k in range(1000)]
    done = plain.generate(
        **inputs(model, example, slot, GROUND + example.caption),
        decoder_input_ids=torch.tensor([[3, 2, *tokens(model, text)]]),
        prefix_allowed_tokens_fn=lambda row, ids: places,
    )
    return done[0, -4 * BOXES :].tolist()


def test_boxes_are_those_that_transformers_writes_and_its_processor_reads(model, plain, example, passed):
    _, output = passed
    backend = model.preprocessor.tokenizer.backend
    reader = Florence2PostProcessor({}, SimpleNamespace(all_special_tokens=[]))
    boxes = output.boxes_xyxy[0].view(2, 3, BOXES, 4)  # candidate, slot (task words, two phrases), box
    texts = [example.caption, *(phrase.text(example.caption) for phrase in example.phrases)]
    for slot in (0, 1):
        for place, text in enumerate(texts):
            written = "".join(backend.id_to_token(k) for k in written_by_stock(model, plain, example, slot, text))
            (found,) = reader.parse_phrase_grounding_from_text_and_spans(text + written, (2000, 2000))  # no rounding
            assert found["cat_name"] == text
            corners = torch.tensor(found["bbox"]).view(-1, 2, 2) / 2000
            expected = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
            expected[:, 1::2] = (expected[:, 1::2] + slot) / 2
            assert_close(boxes[slot, place], expected, atol=1e-6, rtol=1e-5)


def test_a_game_is_answered_by_the_likelihood_of_the_caption(model, plain, example, passed):
    _, output = passed
    caption = [3, 2, *tokens(model, example.caption)]
    for slot in (0, 1):
        with torch.no_grad():
            logits = plain(**inputs(model, example, slot, DESCRIBE), decoder_input_ids=torch.tensor([caption])).logits[
                0
            ]
        expected = sum(logits[k - 1].log_softmax(-1)[caption[k]] for k in range(2, len(caption)))
        assert float(output.match[0, slot]) == pytest.approx(float(expected), rel=1e-4)
    answer = model.predict(model.preprocess([example]), output)[0].answer
    assert answer == int(output.match[0].argmax())
    assert int(output.task_point[0, 1] * 2) == answer, "the point lies in the candidate that is chosen"


def test_encoder_states_and_attention_are_those_of_transformers(model, plain, example, passed):
    seen, _ = passed
    with torch.no_grad():
        both = [
            plain.model(**inputs(model, example, slot, GROUND + example.caption), output_hidden_states=True,
                        output_attentions=True)
            for slot in (0, 1)
        ]  # fmt: skip
    count = both[1].encoder_last_hidden_state.shape[1] - 1 - CELLS  # of text
    for k in range(2):
        found = seen.state[f"encoder.{k}"][0]
        assert_close(found[:count], both[1].encoder_hidden_states[k + 1][0, 1 + CELLS :], atol=1e-4, rtol=1e-4)
        for slot in (0, 1):
            cells = found[count + slot * CELLS : count + (slot + 1) * CELLS]
            expected = both[slot].encoder_hidden_states[k + 1][0, 1 : 1 + CELLS]
            assert_close(cells, expected, atol=1e-4, rtol=1e-4)
        weights, expected = seen.weights[f"encoder.{k}"][0], both[1].encoder_attentions[k][0]
        assert_close(weights[:, :, CELLS : 2 * CELLS], expected[:, 1 + CELLS :, 1 : 1 + CELLS], atol=1e-5, rtol=1e-4)
        assert weights[:, :, :CELLS].max() == 0


def test_queries_are_the_states_that_write_a_first_coordinate(model, plain, example, passed):
    seen, _ = passed
    text = example.phrases[1].text(example.caption)
    prefix = [3, 2, *tokens(model, text)]
    for slot in (0, 1):
        ids = torch.tensor([[*prefix, *written_by_stock(model, plain, example, slot, text)]])
        asked = inputs(model, example, slot, GROUND + example.caption)
        with torch.no_grad():
            expected = plain.model(**asked, decoder_input_ids=ids, output_hidden_states=True, output_attentions=True)
        for box in range(BOXES):
            place, query = len(prefix) - 1 + 4 * box, (slot * 3 + 2) * BOXES + box
            for k in range(2):
                states = expected.decoder_hidden_states[k + 1][0, place]
                assert_close(seen.state[f"decoder.{k}"][0, query], states, atol=1e-4, rtol=1e-4)
                weights = seen.weights[f"decoder.{k}"][0][:, query]
                looks = expected.cross_attentions[k][0, :, place, 1 : 1 + CELLS]
                assert_close(weights[:, slot * CELLS : (slot + 1) * CELLS], looks, atol=1e-5, rtol=1e-4)
                assert weights[:, (1 - slot) * CELLS : (2 - slot) * CELLS].max() == 0


def test_a_box_is_as_sure_as_its_coordinates_and_ends_where_another_token_is_likelier():
    """Six tokens, of which 1 to 4 are places; the third box would not be begun."""
    logits = torch.full((1, 12, 6), -20.0)
    for place, token in enumerate([1, 2, 3, 4, 4, 3, 2, 1, 1, 1, 1, 1]):
        logits[0, place, token] = 0.0
    logits[0, 0, 5] = 1.0  # likelier than the first place, which is written all the same
    logits[0, 4, 5] = -1.0
    logits[0, 8, 5] = 1.0
    bins, scores = box_scores(logits, torch.tensor([1, 2, 3, 4]))
    assert bins[0, :2].tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    first, second = 1 / (1 + np.e), 1 / (1 + np.e) / (1 + np.exp(-1))
    assert scores[0, :2].sigmoid().tolist() == pytest.approx([first, second], rel=1e-4)
    assert scores[0, 2] == NOTHING


def test_the_certificate(model):
    assert certificate(model) == {"ok": 8}


@pytest.mark.parametrize(("row", "column"), [(1, 6), (5, 2)])
def test_the_token_of_a_changed_cell_changes_most(model, row, column):
    """Or one beside it: convolutions spread it. Finer stages are averaged."""
    example = square_game(model)
    images = [image.copy() for image in example.images]
    images[1][row * 8 : (row + 1) * 8, column * 8 : (column + 1) * 8] ^= 255
    one, two = (captured(model, [e])[0].state for e in (example, replace(example, images=tuple(images))))
    for name in ("vision.0", "vision.1"):
        changed = (one[name][0] - two[name][0]).norm(dim=-1).view(3, 8, 8)
        assert changed[0].max() == changed[2].max() == 0
        found = divmod(int(changed[1].argmax()), 8)
        assert max(abs(found[0] - row), abs(found[1] - column)) <= 1


def test_vision_states_are_those_of_transformers_averaged_over_squares(model, plain, example, passed):
    seen, _ = passed
    tower = plain.model.vision_tower
    with torch.no_grad():
        maps = tower(pixels_of(model, example), output_hidden_states=True).hidden_states
        projected = plain.model.get_image_features(pixels_of(model, example)).pooler_output
    fine, coarse = ([m for m in maps if m.shape[1:] == shape][-1] for shape in ((8, 16, 16), (16, 8, 8)))
    assert_close(seen.state["vision.1"][0], coarse.flatten(2).transpose(1, 2).flatten(0, 1), atol=1e-5, rtol=1e-4)
    squares = fine.view(2, 8, 8, 2, 8, 2).mean((3, 5))
    assert_close(seen.state["vision.0"][0], squares.flatten(2).transpose(1, 2).flatten(0, 1), atol=1e-5, rtol=1e-4)
    assert_close(seen.state["projected"][0], projected[:, 1:].flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_patching_the_decoder_changes_its_boxes(model, example, passed):
    """What is written is fixed first; the last pass tells what a patched model would write for each coordinate."""
    _, output = passed
    layer = model.network.model.language_model.decoder.layers[1]
    handle = layer.register_forward_hook(lambda module, inputs, states: states.flip(-1))
    with torch.no_grad():
        patched = model(model.preprocess([example]))
    handle.remove()
    assert not torch.equal(patched.boxes_xyxy, output.boxes_xyxy)
    assert torch.equal(model(model.preprocess([example])).boxes_xyxy, output.boxes_xyxy)


def test_extraction_end_to_end(model, tmp_path):
    stored = check_extraction(model, tmp_path, ("phrase", "region", "attention"))
    assert stored.site("encoder.1").views == ("phrase", "region", "attention")
    assert stored.site("decoder.1").views == ("region", "attention")
    assert stored.read("vision.0", "region").shape == (len(stored.regions), 8)


def test_answers(model):
    output, (first, second, third) = three_answers(model)
    assert [first.answer, second.answer] == [int(output.match[b, :n].argmax()) for b, n in ((0, 3), (1, 2))]
    assert third.answer == pytest.approx(tuple(output.task_point[2].tolist()))
    for prediction, images in ((first, 3), (second, 2), (third, 1)):
        for phrase in prediction.phrases:
            assert images <= len(phrase.boxes) <= images * BOXES
            assert (phrase.boxes[:, :2] <= phrase.boxes[:, 2:]).all()


def test_the_commands_take_a_folder(model, tmp_path, capsys, monkeypatch):
    def printed(*words: object) -> dict:
        code, out, err = run(monkeypatch, capsys, *words, "--json")
        assert code == 0, err
        return json.loads(out)

    folder = write_folder(model, tmp_path / "model")
    assert all(check["status"] == "ok" for check in printed("inspect", folder, "--verify")["checks"])
    assert "figures" in printed("evaluate", "--ckpt", folder, "--benchmark", "mini-game", "--limit", "2")


def test_a_tokenizer_without_locations_is_refused(model):
    from hf_models import tokenizer

    other = type(model)(model.config, tokenizer(), model.network)
    with pytest.raises(BadInput, match="tokenizer has no <loc_0>; accepted: one with <loc_0> to <loc_999>"):
        other(other.preprocess([square_game(model)]))


def test_boxes_are_written_greedily_whatever_the_checkpoint_says(example, passed):
    """Released ones ask for three beams, and forbid what is said twice."""
    model = tiny("florence2")
    model.network.generation_config.update(num_beams=3, no_repeat_ngram_size=3, forced_eos_token_id=3)
    again = type(model)(model.config, model.preprocessor.tokenizer, model.network)
    with torch.no_grad():
        output = again(model.preprocess([example]))
    assert torch.equal(output.boxes_xyxy, passed[1].boxes_xyxy)


def test_what_writes_shares_the_weights_and_no_names(model):
    """Weights that change, or move to another device, change for it too."""
    own, written = dict(model.network.named_parameters()), dict(model._writer[0].named_parameters())
    assert own.keys() == written.keys()
    assert all(written[name] is parameter for name, parameter in own.items())
    assert all(name.startswith("network.") for name in model.state_dict())
