"""Hooks: complete, gone afterwards in every case, and without effect on what the model computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_model import TinyModel, tiny_games
from torch import nn

from extract.capture import Capture
from grounding.errors import BadInput


class Listening:
    """Remembers what it was given; may fail on the way."""

    def __init__(self, fail: bool = False):
        self.heard, self.fail = [], fail

    def states(self, site, states):
        if self.fail:
            raise ArithmeticError("sink")
        self.heard.append((site.name, tuple(states.shape)))
        states.detach().clone().zero_()

    def attention(self, site, query, key, bias):
        self.heard.append((site.name, tuple(query.shape), tuple(key.shape), bias is not None))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_every_site_is_heard_once_and_the_output_is_unchanged():
    model, sink = TinyModel().eval(), Listening()
    batch = model.preprocess(tiny_games(2))
    plain = torch.zeros(0)
    last = model.blocks[1].register_forward_hook(lambda module, inputs, output: plain.resize_(0).set_(output))
    with torch.inference_mode():
        model(batch)
        before = plain.clone()
        sites = model.sites()
        with Capture(model, sites, sink, [site for site in sites if site.attention_path]):
            assert hooks(model) == 1 + 4 + 3 * 3
            model(batch)
    torch.testing.assert_close(plain, before, rtol=0, atol=0)
    last.remove()
    assert hooks(model) == 0
    tokens = batch.grid[0] * batch.grid[1] + 1 + batch.input_ids.shape[1]
    assert [name for name, *rest in sink.heard if len(rest) == 1] == ["text.0", "block.0", "block.1", "decoder.0"]
    assert ("block.1", (2, 2, tokens, 8), (2, 2, tokens, 8), True) in sink.heard
    assert ("decoder.0", (2, 2, 4, 8), (2, 2, tokens, 8), True) in sink.heard


def test_hooks_are_removed_after_an_error():
    model = TinyModel()
    batch = model.preprocess(tiny_games(1))
    with pytest.raises(ArithmeticError, match="sink"), Capture(model, model.sites(), Listening(fail=True)):
        model(batch)
    assert hooks(model) == 0


def test_a_module_that_does_not_exist_is_named_and_leaves_no_hooks():
    model = TinyModel()
    sites = model.sites()
    wrong = replace(sites[1], module_path="blocks.7")
    with pytest.raises(BadInput, match=r"site 'block.0': the model has no module 'blocks.7'"):
        Capture(model, [sites[0], wrong], Listening()).__enter__()
    assert hooks(model) == 0


def test_attention_without_taps_is_refused():
    model = TinyModel()
    wrong = replace(model.sites()[1], attention_path="text_norm")
    with pytest.raises(BadInput, match=r"site 'block.0': attention 'text_norm' has no taps"):
        Capture(model, [], Listening(), [wrong]).__enter__()
    assert hooks(model) == 0


def test_a_site_that_the_pass_did_not_reach_is_named():
    model = TinyModel()
    model.unused = nn.Identity()
    lost = replace(model.sites()[0], name="lost", module_path="unused")
    with (
        pytest.raises(BadInput, match=r"site 'lost': module 'unused' ran 0 times"),
        Capture(model, [lost], Listening()),
    ):
        model(model.preprocess(tiny_games(1)))
    assert hooks(model) == 0


def test_a_module_that_runs_twice_is_named():
    model = TinyModel()
    batch = model.preprocess(tiny_games(1))
    capture = Capture(model, model.sites()[:1], Listening())
    capture.__enter__()
    model(batch)
    model(batch)
    with pytest.raises(BadInput, match=r"site 'text.0': module 'text_norm' ran 2 times"):
        capture.__exit__(None, None, None)
    assert hooks(model) == 0
