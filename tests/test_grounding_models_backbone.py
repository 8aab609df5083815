"""EfficientNets as MDETR released them: timm's numbers and names, with norms that never move."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from grounding.models.backbone import EFFICIENTNETS, Backbone


def with_random_weights(module: nn.Module) -> None:
    """Every weight and statistic drawn anew; variances are small, so that the norms' epsilon matters."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.02, 0.04)
        elif ".bn" in f".{name}" and name.endswith(".weight"):
            tensor.uniform_(0.15, 0.2)
        elif tensor.is_floating_point():
            tensor.normal_(std=1 / tensor[0].numel() ** 0.5 if tensor.ndim == 4 else 0.1)


SIZES = [("timm_tf_efficientnet_b3_ns", 384), ("timm_tf_efficientnet_b5_ns", 512)]


@pytest.mark.parametrize(("name", "channels"), SIZES)
@torch.no_grad()
def test_an_efficientnet_is_timms_with_frozen_norms_of_epsilon_1e_5(name, channels):
    torch.manual_seed(0)
    reference = timm.create_model(EFFICIENTNETS[name], features_only=True, out_indices=(4,)).eval()
    with_random_weights(reference)
    backbone = Backbone(name)
    expected = {f"body.{key}": value for key, value in reference.state_dict().items() if "num_batches" not in key}
    assert backbone.state_dict().keys() == expected.keys()
    backbone.load_state_dict(expected)
    images = torch.randn(2, 3, 64, 96)
    other_epsilon = reference(images)[0]
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    features = reference(images)[0]
    for found in (backbone.eval()(images), backbone.train()(images)):
        assert found.shape == (2, channels, 2, 3)
        torch.testing.assert_close(found, features, atol=1e-5, rtol=1e-5)
    assert (features - other_epsilon).abs().max() > 1e-4
    assert (backbone.channels, backbone.stride) == (channels, 32)
    moved = [key for key, value in backbone.state_dict().items() if not torch.equal(value, expected[key])]
    assert not moved
    assert not any(".bn" in key for key, _ in backbone.named_parameters())
