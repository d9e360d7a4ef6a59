"""MobileNet V1 for ImageNet."""

from __future__ import annotations

from torch import Tensor, nn

from mmkd_plugin.registry import MODELS

from .blocks import conv1x1, conv3x3, conv_bn_relu

# width and stride of the depthwise separable layers
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
STAGE_ENDS = (1, 3, 5, 11, 13)  # positions after which the size is halved, and the last one


@MODELS.register_module()
class MobileNetV1(nn.Module):
    """*MobileNets* (2017), full width: conv3x3/2, then 13 depthwise separable layers.

    Each layer is depthwise conv3x3 - BN - ReLU - conv1x1 - BN - ReLU. PyTorch's default
    initialisation, as in the benchmark code.

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 2, 4, 8, 16, 32 with 64, 128, 256, 512, 1024 channels
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        layers = [nn.Sequential(*conv_bn_relu(conv3x3(3, channels, stride=2)))]
        for width, stride in LAYERS:
            layers.append(
                nn.Sequential(
                    *conv_bn_relu(conv3x3(channels, channels, stride, groups=channels)),
                    *conv_bn_relu(conv1x1(channels, width)),
                )
            )
            channels = width
        self.model = nn.Sequential(*layers)
        self.out_channels = channels
        self.arch = 'mobilenet_v1'

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for i, layer in enumerate(self.model):
            x = layer(x)
            if i in STAGE_ENDS:
                maps.append(x)
        return tuple(maps)
