"""The rules that carry relevance, against matrices worked by hand and against attention kept in the graph."""

from __future__ import annotations

import pytest
import torch
from small_models import game, small_mdetr, small_vilt

from extract.relevance.gradients import Tape
from extract.relevance.rules import GradientRules, Rollout, identity_like, normalised, weighted
from extract.relevance.scores import phrase_scores
from grounding.models.attention import attention_weights

torch.set_num_threads(1)
EYE = torch.eye(2)[None]


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows])


def test_rollout_of_two_layers_by_hand():
    flow = Rollout(EYE)
    flow.attend(matrix([0.5, 0.5], [0.0, 1.0]))  # mixed with the identity: [[.75, .25], [0, 1]]
    torch.testing.assert_close(flow.joint, matrix([0.75, 0.25], [0.0, 1.0]))
    flow.attend(matrix([0.0, 1.0], [1.0, 0.0]))  # mixed: [[.5, .5], [.5, .5]]
    torch.testing.assert_close(flow.joint, matrix([0.375, 0.625], [0.375, 0.625]))
    torch.testing.assert_close(flow.joint.sum(-1), torch.ones(1, 2))


def test_rollout_through_a_decoder_by_hand():
    flow = Rollout(matrix([0.75, 0.25], [0.0, 1.0]))
    flow.decode(EYE, matrix([1.0, 0.0], [0.0, 1.0]))
    torch.testing.assert_close(flow.across, matrix([0.375, 0.125], [0.0, 0.5]))  # half of nothing, half of the joint
    flow.decode(matrix([0.0, 1.0], [0.0, 1.0]), matrix([0.0, 1.0], [0.0, 1.0]))
    # among queries: [[.1875, .3125], [0, .5]]; then half of that, and half of the second joint token's row
    torch.testing.assert_close(flow.across, matrix([0.09375, 0.65625], [0.0, 0.75]))


def test_weighted_attention_drops_what_lowers_the_score():
    attention, gradient = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[2.0, -4.0]]]])
    torch.testing.assert_close(weighted(attention, gradient), torch.tensor([[[[1.0, 0.0]]]]))


def test_gradient_rules_of_self_attention_by_hand():
    flow = GradientRules(EYE)
    flow.attend(matrix([0.0, 2.0], [1.0, 0.0]))  # R = I + A
    torch.testing.assert_close(flow.joint, matrix([1.0, 2.0], [1.0, 1.0]))
    flow.attend(matrix([1.0, 0.0], [0.0, 3.0]))  # R = R + A R
    torch.testing.assert_close(flow.joint, matrix([2.0, 4.0], [4.0, 4.0]))


def test_gradient_rules_of_attention_to_another_modality_by_hand():
    flow = GradientRules(matrix([1.0, 2.0], [0.0, 1.0]))
    flow.decode(matrix([0.0, 1.0], [0.0, 0.0]), matrix([1.0, 0.0], [0.0, 4.0]))
    torch.testing.assert_close(flow.queries, matrix([1.0, 1.0], [0.0, 1.0]))
    # eq. 8, 9: both normalise to [[1, 1], [0, 1]]; eq. 10: [[1, 0], [1, 1]] @ [[1, 0], [0, 4]] @ [[1, 1], [0, 1]]
    torch.testing.assert_close(flow.across, matrix([1.0, 1.0], [1.0, 5.0]))
    flow.decode(matrix([0.0, 0.0], [2.0, 0.0]), torch.zeros(1, 2, 2))
    torch.testing.assert_close(flow.across, matrix([1.0, 1.0], [3.0, 7.0]))  # eq. 7: what the first query had, twice
    torch.testing.assert_close(flow.queries, matrix([1.0, 1.0], [2.0, 3.0]))


def test_normalising_a_token_that_got_nothing():
    found = normalised(matrix([1.0, 0.0], [3.0, 2.0]))
    torch.testing.assert_close(found, matrix([1.0, 0.0], [0.75, 1.25]))
    torch.testing.assert_close(identity_like(found), EYE)


@pytest.mark.parametrize("make", [small_vilt, small_mdetr])
def test_gradients_of_attention_equal_those_of_weights_kept_in_the_graph(make, monkeypatch):
    """The model as it is, against the same one with an explicit softmax whose weights keep their gradient."""
    model, kept = make(), {}
    paths = [path for s in model.sites() for path in (s.attention_path, s.self_attention_path) if path]
    batch = model.preprocess([game("a"), game("b", seed=3)])
    with Tape(model, paths) as tape:
        score = phrase_scores(batch, model(batch)).sum()
    outputs = [tape.attended[path].output for path in paths]
    fused = torch.autograd.grad(score, outputs)

    def explicit(name):
        taps = model.get_submodule(name).taps

        def attend(query, key, value, bias, dropout=0.0):
            weights = attention_weights(query, key, bias)
            weights.retain_grad()
            kept[name] = weights
            return (weights @ value).transpose(1, 2).flatten(2)

        monkeypatch.setattr(taps, "attend", attend)

    for path in paths:
        explicit(path)
    again = phrase_scores(batch, model(batch)).sum()
    again.backward()
    torch.testing.assert_close(again, score, rtol=1e-4, atol=1e-4)
    assert len(kept) == len(paths)
    for path, gradient in zip(paths, fused, strict=True):
        torch.testing.assert_close(tape.attended[path].weights(), kept[path], rtol=1e-4, atol=1e-6)
        found = tape.attended[path].gradient(gradient).masked_fill(kept[path] == 0, 0)
        torch.testing.assert_close(found, kept[path].grad.masked_fill(kept[path] == 0, 0), rtol=1e-3, atol=1e-6)
