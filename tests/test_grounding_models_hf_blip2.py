"""BLIP-2 behind its adapter: transformers' matching scores, and where the queries of the Q-Former look."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hf_models import (
    certificate,
    changed_cells,
    check_extraction,
    pixels_of,
    square_game,
    three_answers,
    tiny,
    write_folder,
)
from small_models import captured
from test_probe_cli import run
from torch.testing import assert_close

from grounding.checkpoint import load_checkpoint

CELLS, QUERIES = 16, 5


@pytest.fixture(scope="module")
def model():
    return tiny("blip-2")


@pytest.fixture(scope="module")
def compared(model):
    """(example, batch, seen, output, an untouched transformers model's answers, its Q-Former's)."""
    example = square_game(model, target=2)
    seen, output = captured(model, [example])
    batch = model.preprocess([example])
    plain = type(model.network)(model.config.transformers_config).eval()
    plain.load_state_dict(model.network.state_dict())
    plain.set_attn_implementation("eager")
    ids, mask = batch.input_ids.expand(3, -1), batch.text_mask.long().expand(3, -1)
    with torch.no_grad():
        expected = plain(
            input_ids=ids, attention_mask=mask, pixel_values=pixels_of(model, example),
            use_image_text_matching_head=True, output_hidden_states=True,
        )  # fmt: skip
        queries = plain.query_tokens.expand(3, -1, -1)
        qformer = plain.qformer(
            query_embeds=plain.embeddings(input_ids=ids, query_embeds=queries),
            query_length=QUERIES,
            attention_mask=torch.cat([torch.ones(3, QUERIES).long(), mask], dim=1),
            encoder_hidden_states=expected.vision_model_output.last_hidden_state,
            output_hidden_states=True,
            output_attentions=True,
        )
    return example, batch, seen, output, expected, qformer


def test_scores_and_states_are_those_of_transformers(compared):
    _, batch, seen, output, expected, qformer = compared
    logits = expected.logits_per_image
    assert_close(output.match[0], logits[:, 1] - logits[:, 0], atol=1e-4, rtol=1e-4)
    for k, states in enumerate(expected.vision_model_output.hidden_states[1:]):
        assert_close(seen.state[f"vision.{k}"][0], states[:, 1:].flatten(0, 1), atol=1e-4, rtol=1e-4)
    tokens = batch.input_ids.shape[1]
    for k, states in enumerate(qformer.hidden_states[1:]):
        found = seen.state[f"qformer.{k}"][0]
        assert_close(found[:tokens], states[2, QUERIES:], atol=1e-4, rtol=1e-4)
        assert_close(found[tokens:], states[:, :QUERIES].flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_attention_is_that_of_the_queries_to_their_own_candidate(compared):
    _, _, seen, _, _, qformer = compared
    assert [name for name in seen.weights if name.startswith("qformer")] == ["qformer.0", "qformer.2"]
    for k, expected in zip((0, 2), qformer.cross_attentions, strict=True):
        weights = seen.weights[f"qformer.{k}"][0]
        assert_close(weights.sum(-1), torch.ones(4, 3 * QUERIES))
        cells = weights[..., : 3 * CELLS].view(4, 3, QUERIES, 3, CELLS)
        for n in range(3):
            assert_close(cells[:, n, :, n], expected[n][..., 1:], atol=1e-5, rtol=1e-4)
            assert cells[:, n, :, (n + 1) % 3].max() == 0


def test_a_phrase_is_where_the_queries_look_that_it_looks_at(compared):
    """Layers 1 and 3 read what the queries saw in layers 0 and 2."""
    _, batch, _, output, _, qformer = compared
    rows = batch.phrase_tokens[0]
    itself = [weights for weights in qformer.attentions if weights.shape[-1] == weights.shape[-2]]  # not the image
    assert len(itself) == 4
    looks, reads = 0, 0
    for reader, seer in ((1, 0), (3, 1)):
        reading = itself[reader].mean(1)[:, QUERIES:, :QUERIES][:, rows].mean(1)  # [3, queries]
        looks = looks + torch.einsum("nq,nqc->nc", reading, qformer.cross_attentions[seer].mean(1)[..., 1:])
        reads = reads + reading[2]
    expected = looks / looks.sum(-1, keepdim=True) * output.candidate_probability[0][:, None]
    assert_close(output.log_phrases[0].exp().view(3, CELLS), expected, atol=1e-5, rtol=1e-3)
    assert int(output.phrase_query[0]) == 2 * QUERIES + int(reads.argmax())


def test_the_certificate(model):
    assert certificate(model) == {"ok": 8}


@pytest.mark.parametrize(("slot", "row", "column"), [(0, 0, 1), (1, 2, 3), (2, 3, 0)])
def test_one_cell_of_pixels_changes_one_token(model, slot, row, column):
    assert changed_cells(model, "vision.embedding", slot, row, column) == [(4 * slot + row, column)]


def test_the_attention_stored_for_a_phrase_is_that_of_its_query(compared, model, tmp_path):
    """What is stored for a phrase is the row of its query, over the cells of its own image."""
    from extract.run import extract

    example, _, seen, output, _, _ = compared
    stored = extract(model, [example], tmp_path / "x", identity={}, views=("attention",), sites=["qformer.2"])
    found = stored.attention("qformer.2", 0)
    expected = seen.weights["qformer.2"][0, :, output.phrase_query[0], : 3 * CELLS].view(4, 12, 4)
    assert_close(torch.from_numpy(found).float(), expected, atol=1e-3, rtol=1e-2)
    assert found[:, 8:].sum() == pytest.approx(found.sum())


def test_extraction_end_to_end(model, tmp_path):
    stored = check_extraction(model, tmp_path, ("phrase", "region", "attention", "tokens"))
    assert stored.site("qformer.2").views == ("phrase", "attention", "tokens")
    assert stored.site("qformer.1").views == ("phrase", "tokens")
    assert stored.read("qformer.2", "region").shape == (len(stored.regions), 24)


def test_answers(model):
    output, (first, second, third) = three_answers(model)
    assert [first.answer, second.answer] == [int(output.match[b, :n].argmax()) for b, n in ((0, 3), (1, 2))]
    assert third.answer == pytest.approx(tuple(output.task_point[2].tolist()))
    assert np.allclose([phrase.heatmap.sum() for phrase in first.phrases], 1.0)


def test_the_target_reaches_no_answer(model):
    outputs = []
    for target in (0, 2):
        with torch.no_grad():
            outputs.append(model(model.preprocess([square_game(model, target=target)])))
    assert torch.equal(outputs[0].log_phrases, outputs[1].log_phrases)
    assert torch.equal(outputs[0].task_point, outputs[1].task_point)


def test_the_commands_take_a_folder(model, tmp_path, capsys, monkeypatch):
    folder = write_folder(model, tmp_path / "model")
    code, out, err = run(monkeypatch, capsys, "inspect", folder, "--verify", "--json")
    assert code == 0, err
    assert all(check["status"] == "ok" for check in json.loads(out)["checks"])


def test_a_tokenizer_may_know_the_mark_of_the_image(model, tmp_path):
    assert model.config.vocabulary == 200
    assert tiny("blip-2", image_token_index=200).config.vocabulary == 201
    assert load_checkpoint(write_folder(model, tmp_path / "x")).report.missing == {}
