"""OWLv2 behind its adapter: transformers' boxes and scores, in the candidate and for the text they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hf_models import certificate, changed_cells, check_extraction, pixels_of, square_game, three_answers, tiny
from small_models import captured
from torch.testing import assert_close
from torchvision.ops import box_convert

from grounding.models.hf.dual import with_phrases_alone

CELLS = 16


@pytest.fixture(scope="module")
def model():
    return tiny("owlv2")


@pytest.fixture(scope="module")
def compared(model):
    """(seen, output, what transformers gives for each candidate with the caption and its two phrases as queries)."""
    example = square_game(model, target=2)
    seen, output = captured(model, [example])
    ids, mask = with_phrases_alone(model.preprocess([example]), 0)
    model.network.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.network(
            input_ids=ids.repeat(3, 1), attention_mask=mask.repeat(3, 1), pixel_values=pixels_of(model, example),
            output_hidden_states=True,
        )  # fmt: skip
    model.network.set_attn_implementation("tapped")
    return seen, output, expected


def test_scores_and_boxes_are_those_of_transformers(compared):
    _, output, expected = compared
    assert_close(output.match[0], expected.logits[:, :, 0].amax(1), atol=1e-4, rtol=1e-4)
    assert_close(output.phrase_logits, expected.logits[:, :, 1:].flatten(0, 1).T, atol=1e-4, rtol=1e-4)
    boxes = box_convert(expected.pred_boxes, "cxcywh", "xyxy")
    boxes[..., 1::2] = (boxes[..., 1::2] + torch.arange(3)[:, None, None]) / 3
    assert_close(output.boxes_xyxy[0], boxes.flatten(0, 1), atol=1e-5, rtol=1e-4)


def test_states_are_those_of_transformers(compared):
    seen, _, expected = compared
    merged = expected.image_embeds.flatten(1, 2)
    assert_close(seen.state["merged"][0], merged.flatten(0, 1), atol=1e-4, rtol=1e-4)
    query = torch.nn.functional.normalize(seen.state["query"][0], dim=-1)
    assert_close(query, expected.class_embeds.flatten(0, 1), atol=1e-4, rtol=1e-4)
    for k, states in enumerate(expected.vision_model_output.hidden_states[1:]):
        assert_close(seen.state[f"vision.{k}"][0], states[:, 1:].flatten(0, 1), atol=1e-4, rtol=1e-4)
    for k, states in enumerate(expected.text_model_output.hidden_states[1:]):
        assert_close(seen.state[f"text.{k}"][0], states[0], atol=1e-4, rtol=1e-4)


def test_the_certificate(model):
    assert certificate(model) == {"ok": 8}


@pytest.mark.parametrize(("slot", "row", "column"), [(0, 0, 1), (1, 2, 3), (2, 3, 0)])
def test_one_cell_of_pixels_changes_one_token(model, slot, row, column):
    assert changed_cells(model, "vision.embedding", slot, row, column) == [(4 * slot + row, column)]


def test_extraction_end_to_end(model, tmp_path):
    run = check_extraction(model, tmp_path, ("phrase", "region", "tokens"))
    assert run.site("query").views == ("region", "tokens")
    assert run.read("query", "region").shape == (len(run.regions), 32)
    assert np.isfinite(run.phrases["iou"]).all()


def test_a_region_of_a_query_is_the_state_of_the_box_that_overlaps_it_most(model, tmp_path):
    from extract.run import extract

    example = square_game(model, target=1)
    run = extract(model, [example], tmp_path / "x", identity={}, views=("region",), sites=["query"], dtype="float32")
    seen, output = captured(model, [example])
    from torchvision.ops import box_iou

    x1, y1, x2, y2 = example.phrases[0].regions[0].box
    overlap = box_iou(torch.tensor([[x1, (1 + y1) / 3, x2, (1 + y2) / 3]]), output.boxes_xyxy[0])
    expected = seen.state["query"][0, overlap[0].argmax()]
    assert_close(torch.from_numpy(run.read("query", "region", [0])[0]), expected, atol=1e-5, rtol=1e-4)


def test_answers(model):
    output, (first, second, third) = three_answers(model)
    assert [first.answer, second.answer] == [int(output.match[b, :n].argmax()) for b, n in ((0, 3), (1, 2))]
    assert first.score == pytest.approx(float(output.match[0].log_softmax(0)[1]), abs=1e-5)
    assert third.answer == pytest.approx(tuple(output.task_point[2].tolist()))
    for row, (prediction, images) in enumerate(((first, 3), (second, 2), (third, 1))):
        for k, phrase in enumerate(prediction.phrases):
            assert len(phrase.boxes) == images * CELLS
            assert phrase.image_index.max() < images
            assert (np.diff(phrase.scores) <= 0).all()
            best = int(output.phrase_query[2 * row + k])
            assert phrase.image_index[0] == best // CELLS
            canvas = phrase.boxes[0].copy()
            canvas[1::2] = (canvas[1::2] + phrase.image_index[0]) / images
            assert canvas == pytest.approx(output.boxes_xyxy[row, best].numpy(), abs=1e-5)


def test_examples_of_a_batch_get_the_scores_of_their_own_phrases(model):
    """Phrases are sorted into slots by example: those of an example alone are the same."""
    examples = [square_game(model, images=2, target=0, seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        together = model(model.preprocess(examples)).phrase_logits
        alone = [model(model.preprocess([example])).phrase_logits for example in examples]
    assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
