"""BLIP and plain ViLT behind their adapters: models whose text looks at the image."""

from __future__ import annotations

import pytest
import torch
from hf_models import certificate, changed_cells, check_extraction, pixels_of, square_game, three_answers, tiny
from small_models import captured
from torch.testing import assert_close

KINDS = ("blip", "vilt")
EMBEDDING = {"blip": "vision.embedding", "vilt": "embedding"}
READS = {"blip": "text", "vilt": "block"}
CELLS = 16


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def stock(kind, example, ids, monkeypatch):
    """What an untouched transformers model of the same weights gives for every candidate."""
    import transformers

    model = tiny(kind)
    plain = getattr(transformers, model.architecture)(model.network.config).eval()
    plain.load_state_dict(model.network.state_dict())
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, **options: torch.arange(count))
    with torch.no_grad():
        return plain(
            input_ids=ids.expand(len(example.images), -1),
            attention_mask=torch.ones(len(example.images), ids.shape[1], dtype=torch.long),
            pixel_values=pixels_of(model, example),
            output_hidden_states=True,
            output_attentions=True,
        )


def test_states_and_scores_are_those_of_transformers(kind, monkeypatch):
    model = tiny(kind)
    example = square_game(model, target=2)
    seen, output = captured(model, [example])
    expected = stock(kind, example, model.preprocess([example]).input_ids, monkeypatch)
    if kind == "blip":
        match = expected.itm_score[:, 1] - expected.itm_score[:, 0]
        assert_close(seen.state["text.1"][0], expected.question_embeds[2], atol=1e-4, rtol=1e-4)
        for k in range(2):
            states = expected.hidden_states[k + 1] if expected.hidden_states else None
            assert states is not None
            assert_close(seen.state[f"vision.{k}"][0], states[:, 1:].flatten(0, 1), atol=1e-4, rtol=1e-4)
    else:
        match = expected.logits[:, 0]
        tokens = seen.state["block.0"].shape[1] - 3 * CELLS
        for k in range(2):
            states = expected.hidden_states[k + 1]
            assert_close(seen.state[f"block.{k}"][0, :tokens], states[2, :tokens], atol=1e-4, rtol=1e-4)
            found = seen.state[f"block.{k}"][0, tokens:]
            assert_close(found, states[:, tokens + 1 :].flatten(0, 1), atol=1e-4, rtol=1e-4)
    assert_close(output.match[0], match, atol=1e-4, rtol=1e-4)


def test_attention_of_the_phrases_is_that_of_the_pass_over_their_own_image(kind, monkeypatch):
    model = tiny(kind)
    example = square_game(model, target=1)
    seen, _ = captured(model, [example])
    weights = seen.weights[f"{READS[kind]}.1"][0]
    ids = model.preprocess([example]).input_ids
    assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert (weights[..., :CELLS] == 0).all()
    assert (weights[..., 2 * CELLS : 3 * CELLS] == 0).all()
    if kind == "vilt":
        expected = stock(kind, example, ids, monkeypatch).attentions[1][1]
        assert_close(weights[..., CELLS : 2 * CELLS], expected[..., -CELLS:], atol=1e-5, rtol=1e-4)
    else:
        layer = model.network.text_encoder.encoder.layer[1]
        states = {}
        layer.crossattention.self.query.register_forward_hook(lambda m, i, o: states.update(query=o))
        layer.crossattention.self.key.register_forward_hook(lambda m, i, o: states.update(key=o))
        captured(model, [example])
        query, key = (states[name][1].unflatten(-1, (4, 8)).transpose(0, 1) for name in ("query", "key"))
        expected = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        assert_close(weights[..., CELLS : 2 * CELLS], expected[..., 1:], atol=1e-5, rtol=1e-4)


def test_the_certificate(kind):
    assert certificate(tiny(kind)) == {"ok": 8}


@pytest.mark.parametrize(("slot", "row", "column"), [(0, 0, 1), (1, 2, 3), (2, 3, 0)])
def test_one_cell_of_pixels_changes_one_token(kind, slot, row, column):
    model = tiny(kind)
    offset = 0
    if kind == "vilt":  # text tokens come first
        offset = model.preprocess([square_game(model)]).input_ids.shape[1]
    found = changed_cells(model, EMBEDDING[kind], slot, row, column, offset)
    assert found == [(4 * slot + row, column)]


def test_extraction_end_to_end(kind, tmp_path):
    run = check_extraction(tiny(kind), tmp_path, ("phrase", "region", "attention", "tokens"))
    looks = run.attention(f"{READS[kind]}.1", 0)
    example = run.phrases["example"][0]
    target = run.examples["target_index"][example]
    assert looks.shape == (4, 24, 4)
    mass = looks.reshape(4, 6, 16).sum(-1)
    assert (mass[:, target] > 0).all()
    assert mass.sum() == pytest.approx(mass[:, target].sum())


def test_a_map_is_the_mean_attention_of_the_phrase_within_each_candidate(kind):
    model = tiny(kind)
    examples = [square_game(model, images=2, target=target) for target in (0, 1)]
    layers = [f"{READS[kind]}.{k}" for k in range(2)]
    outputs, looks = [], []
    for target, example in enumerate(examples):
        seen, output = captured(model, [example])
        batch = model.preprocess([example])
        rows = batch.phrase_tokens[0].nonzero()[:, 0]
        weights = torch.stack([seen.weights[name][0].mean(0) for name in layers]).mean(0)
        looks.append(weights[rows].mean(0)[CELLS * target : CELLS * (target + 1)])
        outputs.append(output)
    assert torch.equal(outputs[0].log_phrases, outputs[1].log_phrases), "the target must not reach the answer"
    maps = outputs[0].log_phrases[0].exp().view(2, CELLS)
    for target in (0, 1):
        expected = looks[target] / looks[target].sum() * outputs[0].candidate_probability[0, target]
        assert_close(maps[target], expected, atol=1e-5, rtol=1e-3)


def test_answers(kind):
    model = tiny(kind)
    output, (first, second, third) = three_answers(model)
    assert [first.answer, second.answer] == [int(output.match[b, :n].argmax()) for b, n in ((0, 3), (1, 2))]
    assert third.answer == pytest.approx(tuple(output.task_point[2].tolist()))
    assert [phrase.heatmap.shape[0] for phrase in (*first.phrases, *third.phrases)] == [3, 3, 1, 1]


def test_patches_of_stock_vilt_come_in_another_order_each_time():
    """Why the adapter embeds them itself."""
    model = tiny("vilt")
    example = square_game(model, images=1, target=0)
    pixels, ids = pixels_of(model, example), model.preprocess([example]).input_ids
    vilt = model.network.vilt
    with torch.no_grad():
        orders = [vilt(input_ids=ids, pixel_values=pixels).last_hidden_state for _ in range(2)]
    assert not torch.equal(orders[0], orders[1])
