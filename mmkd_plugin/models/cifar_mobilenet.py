"""MobileNetV2 of half width for small images."""

from __future__ import annotations

from torch import Tensor, nn

from mmkd_plugin.registry import MODELS

from .blocks import conv1x1, conv3x3, conv_bn_relu, init_convs

# expansion, width, blocks, stride of the first block
SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _InvertedResidual(nn.Module):
    """conv1x1 up - depthwise conv3x3 - conv1x1 down; added to the input where shapes allow."""

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv = nn.Sequential(
            *conv_bn_relu(conv1x1(channels, hidden)),
            *conv_bn_relu(conv3x3(hidden, hidden, stride, groups=hidden)),
            conv1x1(hidden, out_channels),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


@MODELS.register_module()
class CIFARMobileNetV2(nn.Module):
    """MobileNetV2 with half the widths, as the CIFAR-100 benchmarks use it for 32x32 images.

    It differs from *MobileNetV2* (2018) in strides (16 in all), plain ReLU, an expansion
    convolution in the first block too, no dropout. As in the benchmark code, an
    ``ImageClassifier`` draws its linear layer from N(0, 0.01), with bias 0.

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 2, 2, 4, 8, 16 with 16, 12, 16, 48, 160 channels, and that of the
          last 1x1 convolution, stride 16 with 1280 channels
    """

    head_init = 'normal'

    def __init__(self) -> None:
        super().__init__()
        channels = 16
        self.conv1 = nn.Sequential(*conv_bn_relu(conv3x3(3, channels, stride=2)))
        self.blocks = nn.ModuleList()
        for expansion, width, count, stride in SETTING:
            layers = []
            for j in range(count):
                step = stride if j == 0 else 1
                layers.append(_InvertedResidual(channels, width // 2, step, expansion))
                channels = width // 2
            self.blocks.append(nn.Sequential(*layers))
        self.conv2 = nn.Sequential(*conv_bn_relu(conv1x1(channels, 1280)))
        self.out_channels = 1280
        self.arch = 'mobilenet_v2_half'
        init_convs(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.conv1(x)
        maps = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (1, 2, 4, 6):  # where the benchmark code takes its features
                maps.append(x)
        return (*maps, self.conv2(x))
