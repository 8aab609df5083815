"""MDETR on captions with more tokens than its soft-token head has slots: all are read, phrases in the slots scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import CAPTIONS, game, single_image, small_mdetr

from grounding.errors import BadInput
from grounding.finetune.losses import match, soft_token_loss
from grounding.finetune.objectives import LossWeights, mdetr_losses
from grounding.finetune.targets import make_targets
from grounding.models import model_config

# Tokens of CAPTIONS[0]: 1-3 "a red disc" (phrase p0), 6 and 7 "blue box" (p1), 10 "dot", 11 the last one.
DOT = (CAPTIONS[0].index("dot"), len(CAPTIONS[0]))


def test_the_released_models_read_512_tokens_and_have_255_slots():
    base = model_config("mdetr", "base")
    assert (base.max_text, base.token_slots) == (512, 255)


@pytest.mark.parametrize(("slots", "kept", "dropped"), [(3, (), ("p0", "p1")), (7, ("p0",), ("p1",))])
def test_a_phrase_with_a_token_behind_the_slots_is_left_out_whole_and_listed(slots, kept, dropped):
    batch = small_mdetr(token_slots=slots).prepare([game()])
    assert batch.text_mask.sum() == 12
    assert (batch.phrase_ids, batch.dropped_phrases) == (kept, dropped)
    assert small_mdetr(token_slots=8).prepare([game()]).phrase_ids == ("p0", "p1")


@torch.inference_mode()
def test_what_is_behind_the_slots_is_read_and_scores_are_of_the_slots():
    model = small_mdetr(token_slots=6)
    batch = model.prepare([game()])
    output = model(batch)
    probability = output.token_logits[-1, 0].softmax(-1)
    assert probability.shape == (7, 7)
    torch.testing.assert_close(output.phrase_scores, probability[None, :, 1:4].amax(-1))
    assert [phrase.phrase_id for phrase in model.predict(batch, output)[0].phrases] == ["p0"]
    other = model(model.prepare([replace(game(), caption=CAPTIONS[0].replace("dot", "box"))]))
    assert (other.boxes_xyxy - output.boxes_xyxy).abs().max() > 1e-4
    wider = small_mdetr(token_slots=19)  # the same network with another head
    wider.load_state_dict({**model.state_dict(), **{n: t for n, t in wider.state_dict().items() if "class_embed" in n}})
    torch.testing.assert_close(wider(wider.prepare([game()])).boxes_xyxy, output.boxes_xyxy)


@pytest.mark.parametrize(("losses", "weight"), [("corrected", 1 / 3), ("paper", 1.0)])
def test_losses_are_of_the_phrases_in_the_slots(losses, weight):
    model = small_mdetr(token_slots=6)
    batch = model.prepare([game()])
    output, targets = model(batch), make_targets(batch, losses)
    assert targets.box_phrase.tolist() == [0]
    parts = mdetr_losses(output, batch, targets, LossWeights(0, 1), losses)
    positive = torch.zeros(1, 7)
    positive[0, 1:4] = weight
    expected = torch.zeros(())
    for logits, boxes in zip(output.token_logits, output.boxes_cxcywh, strict=True):
        found = match(logits, boxes, targets.boxes, positive, targets.box_example)
        expected = expected + soft_token_loss(logits, positive, found, 1)
    torch.testing.assert_close(parts["tokens"], expected)
    sum(parts.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 20
    assert all(gradient.isfinite().all() for gradient in gradients)


@torch.inference_mode()
def test_the_query_of_the_task_may_be_asked_for_what_has_no_slot_and_the_best_box_may_not():
    far = single_image("far", target_spans=(DOT,))
    with_query = small_mdetr(token_slots=6)
    assert with_query(with_query.prepare([far])).task_point.isfinite().all()
    without = small_mdetr(token_slots=6, task_query=False)
    with pytest.raises(BadInput, match=r"example 'far': no token of its target spans .* is among the first 6, "):
        without.prepare([far])
    batch = without.prepare([single_image()])
    assert batch.caption_tokens[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5]
    output = without(batch)
    best = output.token_logits[-1, 0].softmax(-1)[:, 1:6].amax(1).argmax()
    assert torch.equal(output.task_point[0], output.boxes_cxcywh[-1, 0, best, :2])
