"""Changing a live model: what is changed, what is not, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from hf_models import tiny
from small_models import game, small_mdetr, small_vilt

from grounding.errors import BadInput
from probe.interventions.live import Edit, Live, edit_states

MODELS = {
    "vilt-aligner": small_vilt,
    "mdetr": small_mdetr,
    **{name: lambda name=name: tiny(name) for name in ("clip", "vilt", "blip", "grounding-dino", "detr")},
}


@pytest.fixture(scope="module", params=MODELS)
def opened(request):
    """A model, a batch of two games of different sizes, and the output of the model as it is."""
    model = MODELS[request.param]()
    batch = model.preprocess([game(), game("other", seed=3, images=2)])
    with torch.inference_mode():
        return model, batch, model(batch)


def held(model) -> list[dict]:
    """What every module has of its own, but for its tensors and parts."""
    inner = ("_parameters", "_buffers", "_modules", "_candidates")
    return [{name: value for name, value in vars(one).items() if name not in inner} for one in model.modules()]


def same(one, other) -> bool:
    tensors = [(name, value) for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(value, getattr(other, name)) for name, value in tensors)


def test_states_put_back_change_nothing_and_others_change_the_output(opened):
    model, batch, clean = opened
    with Live(model) as live:
        assert same(live.run(batch), clean)
        moved = []
        for site in model.sites():
            assert same(live.run(batch, [edit_states(model, site, lambda states: states.clone())]), clean), site.name
            noise = edit_states(model, site, lambda states: states + torch.randn_like(states))
            moved.append(not same(live.run(batch, [noise]), clean))
        assert all(moved)
        assert same(live.run(batch), clean)


def test_nothing_stays_behind_even_after_an_error(opened):
    model, batch, clean = opened
    before = held(model)

    def fail(output):
        raise BadInput("no")

    with pytest.raises(BadInput, match=r"^no$"), Live(model) as live:
        live.run(batch, [Edit(model.sites()[0].module_path, fail)])
    assert held(model) == before
    with torch.inference_mode():
        assert same(model(batch), clean)


def test_every_pass_over_the_text_is_shown_and_written():
    model = tiny("vilt")
    batch = model.preprocess([game(images=3), game("other", seed=3, images=2)])
    site, seen = model.sites()[1], []

    def first_channel_to_zero(states):
        seen.append(states.shape)
        states = states.clone()
        states[..., 0] = 0
        return states

    kept = {}
    with Live(model) as live:
        zeroed, own = edit_states(model, site, first_channel_to_zero), []
        module = model.get_submodule(site.module_path)
        handle = module.register_forward_hook(lambda module, inputs, output: kept.update(output=output))
        live.run(batch, [zeroed, *own])
        handle.remove()
    assert seen[0][:2] == (3, 2)  # passes, examples
    tokens = batch.input_ids.shape[1]
    states = kept["output"][0] if isinstance(kept["output"], tuple) else kept["output"]
    assert len(states) == 5  # three candidates of one game, two of the other
    assert not states[:, :tokens, 0].any()
    assert not states[:, -model.cells :, 0].any()
    assert states[:, :, 1].all()


def test_what_cannot_be_changed_is_named():
    florence = tiny("florence2")
    batch = florence.preprocess([game()])
    with Live(florence) as live:
        with pytest.raises(BadInput, match=r"site 'vision.0'.*can be read, not changed"):
            live.run(batch, [edit_states(florence, florence.sites()[0], lambda states: states)])
        with pytest.raises(BadInput, match="the model has no module 'nowhere'"):
            live.run(batch, [Edit("nowhere", lambda output: output)])
        late, early = florence.sites()[-1], florence.sites()[1]
        with pytest.raises(BadInput, match="did not reach them all in this order"):
            live.run(batch, [Edit(late.module_path, lambda o: o), Edit(early.module_path, lambda o: o)])
