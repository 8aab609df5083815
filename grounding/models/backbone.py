"""Convolutional backbones for MDETR: ResNets and EfficientNets with frozen batch norm, and a small one."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from grounding.errors import unknown_choice

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
EFFICIENTNETS = {  # as MDETR's checkpoints name them -> as timm does
    "timm_tf_efficientnet_b3_ns": "tf_efficientnet_b3",
    "timm_tf_efficientnet_b5_ns": "tf_efficientnet_b5",
}
SMALL_CHANNELS = (24, 48, 64, 96)


class SmallResNet(nn.Module):
    """A residual network of stride 16 for miniature images: two convolutions and two residual stages, group norm.

    Group norm sees the padding of a batch: for images of one size, as the miniature's are.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *SMALL_CHANNELS)
        self.stem = nn.Sequential(*(_halving(widths[i], widths[i + 1]) for i in range(2)))
        self.layer1, self.layer2 = (_stage(widths[i], widths[i + 1]) for i in range(2, 4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, 3, H, W]`` -> ``{"0": [B, C, H / 16, W / 16]}``."""
        return {"0": self.layer2(self.layer1(self.stem(images)))}


def _halving(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, _group_norm(after), nn.ReLU(inplace=True))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


def _stage(before: int, after: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), _group_norm(after))
    return nn.Sequential(BasicBlock(before, after, 2, shortcut, norm_layer=_group_norm))


def _efficientnet(name: str) -> nn.Module:
    """timm's EfficientNet as MDETR uses it: the last stage's features, norms frozen and of epsilon 1e-5 (timm's have
    1e-3), the activations that timm keeps inside its norms left where they are.
    """
    import timm
    from timm.layers import freeze_batch_norm_2d

    body = timm.create_model(EFFICIENTNETS[name], pretrained=False, features_only=True, out_indices=(4,))
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    return freeze_batch_norm_2d(body)


def _noise(side: int = 128) -> Tensor:
    """``[16, 3, side, side]``, the same each time: coarse and fine, as pictures are, and as strong as the strongest."""
    generator = torch.Generator().manual_seed(0)
    scales = [torch.randn(16, 3, cells, cells, generator=generator) for cells in (1, 2, 4, 16, side)]
    return torch.stack([nn.functional.interpolate(scale, (side, side)) for scale in scales]).sum(0)


class Backbone(nn.Module):
    """Features of the last stage. channels: their width; stride: pixels a cell."""

    def __init__(self, name: str):
        super().__init__()
        self.last: str | int = "0"
        if name == "small":
            self.body: nn.Module = SmallResNet()
            self.channels, self.stride = SMALL_CHANNELS[-1], 16
        elif name in RESNETS:
            resnet = getattr(torchvision.models, name)(weights=None, norm_layer=FrozenBatchNorm2d)
            self.channels, self.stride = resnet.fc.in_features, 32
            self.body = IntermediateLayerGetter(resnet, {"layer4": "0"})
        elif name in EFFICIENTNETS:
            self.body, self.last = _efficientnet(name), 0
            self.channels, self.stride = self.body.feature_info.channels()[-1], 32  # type: ignore[union-attr, operator]
        else:
            raise unknown_choice("backbone", name, ("small", *RESNETS, *EFFICIENTNETS))

    @torch.no_grad()
    def measure_norms(self) -> None:
        """Give frozen norms the size of what they see of noise; for fresh weights alone.

        Norms of variance 1 normalise nothing: features of a ResNet-101 have a standard deviation over 10,000, of an
        EfficientNet of 0.0001. Means stay 0: subtracted, they make pictures unlike the noise grow from stage to stage.
        """

        def measure(norm: Any, inputs: tuple[Tensor]) -> None:
            norm.running_var.copy_(inputs[0].square().mean((0, 2, 3)))

        norms = [module for module in self.modules() if hasattr(module, "running_var")]
        hooks = [norm.register_forward_pre_hook(measure) for norm in norms]  # later ones see what earlier ones now give
        if norms:
            self(_noise())
        for hook in hooks:
            hook.remove()

    def freeze_stem(self) -> None:
        """Take a ResNet's first convolution and stage out of training, as MDETR does; other backbones learn whole."""
        if isinstance(self.body, IntermediateLayerGetter):
            for part in ("conv1", "layer1"):
                self.body[part].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> ``[B, C, rows, columns]``."""
        return self.body(images)[self.last]
