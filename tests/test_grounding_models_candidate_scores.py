"""Scores of candidates agree with answers, and models that read a caption once an image show every pass."""

from __future__ import annotations

import pytest
import torch
from hf_models import tiny
from small_models import game, single_image, small_mdetr, small_vilt
from tiny_model import TinyModel

from grounding.errors import BadInput


@pytest.mark.parametrize("name", ["mdetr", "clip", "vilt", "blip", "owlv2", "grounding-dino"])
def test_the_best_score_is_the_answer(name):
    model = small_mdetr() if name == "mdetr" else tiny(name)
    batch = model.preprocess([game(), game("other", seed=3, images=2)])
    with torch.no_grad():
        output = model(batch)
    scores = model.candidate_scores(batch, output)
    for row, prediction in enumerate(model.predict(batch, output)):
        assert int(scores[row, : len(batch.examples[row].images)].argmax()) == prediction.answer


def test_those_of_vilt_aligner_are_the_shares_of_its_map():
    model = small_vilt()
    batch = model.preprocess([game(), game("other", seed=3, images=2)])
    with torch.no_grad():
        output = model(batch)
    shares = model.candidate_scores(batch, output).exp()
    assert torch.allclose(shares.sum(1), torch.ones(2), atol=1e-5)
    assert torch.allclose(shares[0], output.log_task[0].exp().view(3, 32, 32).sum((1, 2)), atol=1e-5)
    assert shares[1, 2] == 0


def test_a_model_without_them_says_so():
    model = TinyModel()
    with pytest.raises(BadInput, match="TinyModel has no scores of candidates"):
        model.candidate_scores(model.preprocess([single_image()]), None)


def test_every_pass_can_be_shown():
    model = tiny("vilt")
    batch = model.preprocess([game(target=1), game("other", seed=3, images=2, target=0)])
    with torch.no_grad():
        model(batch)
    assert model.passes == 3
    own = model.candidates.own.tolist()
    shown = []
    for number in range(3):
        with model.showing(number):
            shown.append(model.candidates.own.tolist())
    assert own == [1, 3]
    assert shown == [[0, 3], [1, 4], [2, 4]]  # the second game has two
    assert model.candidates.own.tolist() == own
    assert small_vilt().passes == 1
