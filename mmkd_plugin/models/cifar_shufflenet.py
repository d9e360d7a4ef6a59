"""ShuffleNet V1 and V2 for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from mmkd_plugin.registry import MODELS

from .blocks import conv1x1, conv3x3, shuffle_channels

STEM = 24


class _GroupUnit(nn.Module):
    """Unit of V1: grouped conv1x1 - shuffle - depthwise conv3x3 - grouped conv1x1.

    With stride 2 the pooled input is put beside the result instead of being added to it, so the
    branch makes only the channels that are still missing.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride = stride
        branch = out_channels - channels if stride == 2 else out_channels
        middle = branch // 4
        self.groups = 1 if channels == STEM else groups
        self.conv1 = conv1x1(channels, middle, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, middle, stride, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, branch, groups=groups)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = shuffle_channels(out, self.groups)
        out = relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return relu(torch.cat([out, avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return relu(out + x)


@MODELS.register_module()
class CIFARShuffleNetV1(nn.Module):
    """ShuffleNet with 3 groups for 32x32 images: *ShuffleNet* (2017), stem conv1x1 without stride.

    PyTorch's default initialisation, as in the benchmark code.

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 1, 2, 4, 8 with 24, 240, 480, 960 channels
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, 240, 4)
        self.layer2 = self._stage(240, 480, 8)
        self.layer3 = self._stage(480, 960, 4)
        self.out_channels = 960
        self.arch = 'shufflenet_v1'

    @staticmethod
    def _stage(channels: int, width: int, count: int) -> nn.Sequential:
        units = [_GroupUnit(channels, width, 2, groups=3)]
        units += [_GroupUnit(width, width, 1, groups=3) for _ in range(count - 1)]
        return nn.Sequential(*units)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stem = relu(self.bn1(self.conv1(x)))
        low = self.layer1(stem)
        middle = self.layer2(low)
        return stem, low, middle, self.layer3(middle)


class _SplitUnit(nn.Module):
    """Unit of V2: half of the channels pass, the others are convolved; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, 1)
        out = relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = relu(self.bn3(self.conv3(out)), inplace=True)
        return shuffle_channels(torch.cat([passed, out], 1), 2)


class _DownUnit(nn.Module):
    """First unit of a stage of V2: two convolved branches of the whole input, both of stride 2."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv3x3(channels, channels, 2, groups=channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv1x1(channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = relu(self.bn2(self.conv2(left)), inplace=True)
        right = relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = relu(self.bn5(self.conv5(right)), inplace=True)
        return shuffle_channels(torch.cat([left, right], 1), 2)


@MODELS.register_module()
class CIFARShuffleNetV2(nn.Module):
    """ShuffleNet V2 x1 for 32x32 images: *ShuffleNet V2* (2018), stem conv1x1 without stride.

    PyTorch's default initialisation, as in the benchmark code.

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 1, 2, 4, 8 with 24, 116, 232, 464 channels, and that of the last
          1x1 convolution, stride 8 with 1024 channels
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._stage(STEM, 116, 3)
        self.layer2 = self._stage(116, 232, 7)
        self.layer3 = self._stage(232, 464, 3)
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.out_channels = 1024
        self.arch = 'shufflenet_v2'

    @staticmethod
    def _stage(channels: int, width: int, count: int) -> nn.Sequential:
        units = [_SplitUnit(width) for _ in range(count)]
        return nn.Sequential(_DownUnit(channels, width), *units)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stem = relu(self.bn1(self.conv1(x)))
        low = self.layer1(stem)
        middle = self.layer2(low)
        high = self.layer3(middle)
        return stem, low, middle, high, relu(self.bn2(self.conv2(high)))
