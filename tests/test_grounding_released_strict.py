"""Models made without values: what the file does not hold is right all the same, and nothing is left behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from released_files import released_mdetr, released_vilt, state
from small_models import small_mdetr
from torch import nn

from grounding.models import build_model
from grounding.released.strict import Weights, load_strictly, without_values


def test_parameters_have_a_shape_only_and_buffers_have_values():
    with without_values():
        model, collecting = build_model(small_mdetr().config, None), gc.isenabled()
    assert not collecting
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    buffers = dict(model.named_buffers())
    assert torch.equal(buffers["image_mean"], small_mdetr().image_mean)
    assert {buffer.device.type for buffer in buffers.values()} == {"cpu"}


def test_models_have_values_again_afterwards_even_after_an_error():
    gc.enable()
    before = (nn.init.normal_, nn.init.kaiming_uniform_, True)
    with without_values():
        untouched = nn.init.ones_(torch.zeros(3)) is None
    assert untouched
    with pytest.raises(KeyError), without_values():
        {}["an error while a model is made"]
    assert (nn.init.normal_, nn.init.kaiming_uniform_, gc.isenabled()) == before
    assert nn.Linear(50, 50).weight.std() > 0.05
    gc.disable()
    try:
        with without_values():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "build",
    [
        released_vilt,
        released_mdetr,
        lambda: released_mdetr(text_pooler=False, pre_norm=True, backbone="small"),
        lambda: released_mdetr(backbone="timm_tf_efficientnet_b3_ns"),
    ],
    ids=["vilt", "resnet", "small", "efficientnet"],
)
def test_a_loaded_model_differs_in_nothing_from_one_that_was_made_with_values(build):
    own: Any = build()
    generator = torch.get_rng_state()
    loaded, report = load_strictly(own.config, Weights(state(own)), None, "file")
    assert torch.equal(torch.get_rng_state(), generator)
    assert not report.missing
    for kind in ("parameters", "buffers"):
        expected, found = (dict(getattr(model, f"named_{kind}")()) for model in (own, loaded))
        assert list(found) == list(expected)
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name
            assert (value.dtype, value.device) == (expected[name].dtype, expected[name].device), name
            assert value.requires_grad == expected[name].requires_grad, name
    assert not any(module.training for module in loaded.modules())
