"""EfficientNets as MDETR released them: timm's numbers and names, with norms that never move."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from small_models import small_mdetr, wordpiece
from torch import nn

from grounding.checkpoint import load_checkpoint, save_checkpoint
from grounding.models.backbone import EFFICIENTNETS, Backbone
from grounding.released.fresh import fresh_model


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


@pytest.mark.parametrize("name", ["resnet18", "resnet101", *EFFICIENTNETS])
@torch.no_grad()
def test_a_fresh_backbone_has_features_of_ordinary_size(name):
    """Of pictures unlike the noise that norms are set by too, and within half precision at every layer."""
    torch.manual_seed(0)
    backbone = Backbone(name)
    plain = deepcopy(backbone)
    white = torch.full((1, 3, 128, 128), 2.4)
    white[..., 40:80, 40:80] = -2
    pictures = {"noise": torch.randn(1, 3, 128, 128), "white": white}
    state = torch.get_rng_state()
    backbone.measure_norms()
    assert torch.equal(torch.get_rng_state(), state)
    found = backbone.state_dict()
    moved = [key for key, value in plain.state_dict().items() if not torch.equal(value, found[key])]
    assert {key.split(".")[-1] for key in moved} == {"running_var"}
    for picture in pictures.values():
        assert 0.02 < backbone(picture).std() < 20
    assert all(deepcopy(backbone).half()(picture.half()).isfinite().all() for picture in pictures.values())


def test_a_small_backbone_has_no_norms_to_set():
    backbone = Backbone("small")
    before = deepcopy(backbone.state_dict())
    backbone.measure_norms()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_checkpoints_norms_are_loaded_and_not_set(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, _ = fresh_model(small_mdetr(backbone="resnet18", multiple=32).config, wordpiece(), seed=3)
    again, _ = fresh_model(model.config, wordpiece(), seed=3)
    save_checkpoint(tmp_path / "made", model, {})
    monkeypatch.setattr(Backbone, "measure_norms", lambda self: 1 / 0)
    loaded = load_checkpoint(tmp_path / "made").model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value)
        assert torch.equal(again.state_dict()[name], value)
    assert (loaded["mdetr.backbone.0.body.bn1.running_var"] != 1).all()
