"""What several backbones share. Their modules are called as in the public CIFAR-100 benchmark
code, so that its checkpoints load (``ImageClassifier.adapt_state_dict`` adds the prefixes)."""

from __future__ import annotations

from torch import Tensor, nn


def init_convs(module: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out, that is N(0, 2 / (k*k*C_out)), with biases of 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def conv3x3(channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 1, stride, groups=groups, bias=False)


def conv_bn_relu(conv: nn.Conv2d) -> list[nn.Module]:
    """``conv`` with batch norm and ReLU behind it."""
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Deals the channels of (N, C, H, W) out like cards: the first of every group comes first."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
