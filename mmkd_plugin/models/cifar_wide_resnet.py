"""Wide residual networks for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from mmkd_plugin.registry import MODELS

from .blocks import conv1x1, conv3x3, init_convs


class _PreActivationBlock(nn.Module):
    """BN - ReLU - conv3x3 - BN - ReLU - conv3x3, added to what came in.

    Where the width changes, the path around is a 1x1 convolution of the activated input.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv3x3(channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.convShortcut = conv1x1(channels, width, stride) if channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        activated = relu(self.bn1(x), inplace=True)
        around = x if self.convShortcut is None else self.convShortcut(activated)
        out = relu(self.bn2(self.conv1(activated)), inplace=True)
        return around + self.conv2(out)


class _Stage(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, count: int) -> None:
        super().__init__()
        blocks = [_PreActivationBlock(channels, width, stride)]
        blocks += [_PreActivationBlock(width, width, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@MODELS.register_module()
class CIFARWideResNet(nn.Module):
    """Wide ResNet for 32x32 images: *Wide Residual Networks* (2016). No dropout.

    As in the benchmark code, the bias of an ``ImageClassifier``'s linear layer starts at 0.

    Args:
        depth: 6n + 4 with n blocks per stage: 10, 16, 22, 28, 40.
        width: factor on the widths 16, 32, 64 of the three stages.

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 1, 1, 2, 4 with 16, 16w, 32w, 64w channels. All but the last are
          the sums of residual blocks, before any norm; the last is after the final BN and ReLU.

    Raises:
        ValueError: for another depth or width.
    """

    head_init = 'zero_bias'

    def __init__(self, depth: int = 40, width: int = 2) -> None:
        if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
            raise ValueError(
                f'CIFARWideResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40), got depth={depth!r}.'
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f'width of CIFARWideResNet is 1, 2, 3, ..., got {width!r}.')
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = _Stage(16, 16 * width, 1, count)
        self.block2 = _Stage(16 * width, 32 * width, 2, count)
        self.block3 = _Stage(32 * width, 64 * width, 2, count)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.out_channels = 64 * width
        self.arch = f'wrn_{depth}_{width}'
        init_convs(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stem = self.conv1(x)
        low = self.block1(stem)
        middle = self.block2(low)
        return stem, low, middle, relu(self.bn1(self.block3(middle)))
