"""ResNets for small images: three stages (ResNet-20 and the like), or four (ResNet-18, 34, 50)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from mmkd_plugin.registry import MODELS

from .blocks import conv1x1, conv3x3, init_convs


class _Block(nn.Module):
    """A residual block; its path around is a 1x1 convolution where width or stride change."""

    expansion = 1
    around = 'downsample'  # name of the path around

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        path = []
        if stride != 1 or channels != out_channels:
            path = [conv1x1(channels, out_channels, stride), nn.BatchNorm2d(out_channels)]
        self.add_module(self.around, nn.Sequential(*path))

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.residual(x) + getattr(self, self.around)(x))

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BasicBlock(_Block):
    """conv3x3 - BN - ReLU - conv3x3 - BN, added to the path around, then ReLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__(channels, width, stride)
        self.conv1 = conv3x3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(x))


class FourStageBasicBlock(BasicBlock):
    around = 'shortcut'


class Bottleneck(_Block):
    """conv1x1 - conv3x3 - conv1x1 to four times the width; the stride is on the conv3x3."""

    expansion = 4
    around = 'shortcut'

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__(channels, width, stride)
        self.conv1 = conv1x1(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)

    def residual(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)), inplace=True)
        x = relu(self.bn2(self.conv2(x)), inplace=True)
        return self.bn3(self.conv3(x))


class _ResNet(nn.Module):
    """A conv3x3 without stride, then stages; all but the first halve the size."""

    def __init__(
        self, block: type[_Block], stem: int, widths: Sequence[int], blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = [f'layer{i + 1}' for i in range(len(widths))]
        channels = stem
        for i, (name, width, count) in enumerate(zip(self.stages, widths, blocks)):
            layers = []
            for j in range(count):
                layers.append(block(channels, width, stride=2 if i > 0 and j == 0 else 1))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*layers))
        self.out_channels = channels
        init_convs(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the stem's map and one map per stage, each after its last ReLU."""
        maps = [relu(self.bn1(self.conv1(x)))]
        for name in self.stages:
            maps.append(getattr(self, name)(maps[-1]))
        return tuple(maps)


@MODELS.register_module()
class CIFARResNet(_ResNet):
    """ResNet of three stages for 32x32 images: *Deep Residual Learning* (2015), section 4.2.

    Every convolution is Kaiming-normal by fan-out. The projection where the width changes is a
    1x1 convolution with BN.

    Args:
        depth: 6n + 2 with n blocks per stage: 8, 14, 20, 32, 44, 56, 110.
        widths: of the stem and the three stages. ``(32, 64, 128, 256)`` makes the "x4" nets
            (resnet8x4, resnet32x4).

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 1, 1, 2, 4 with ``widths`` channels

    Raises:
        ValueError: for another depth or number of widths.
    """

    def __init__(self, depth: int = 20, widths: Sequence[int] = (16, 16, 32, 64)) -> None:
        widths = tuple(widths)
        if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f'CIFARResNet has depth 6n + 2 (8, 14, 20, 26, 32, 38, 44, 50, 56, ..., 110), '
                f'got depth={depth!r}. CIFARFourStageResNet has depths 18, 34 and 50.'
            )
        if len(widths) != 4:
            raise ValueError(
                'widths of CIFARResNet are four numbers, stem and three stages, such as '
                f'(16, 16, 32, 64), got {widths}.'
            )
        super().__init__(BasicBlock, widths[0], widths[1:], [(depth - 2) // 6] * 3)
        known = {(16, 16, 32, 64): '', (32, 64, 128, 256): 'x4'}
        self.arch = f'resnet{depth}' + known.get(widths, '_' + '_'.join(map(str, widths)))


@MODELS.register_module()
class CIFARFourStageResNet(_ResNet):
    """ResNet-18, 34 or 50 with a stem for 32x32 images: conv3x3 without stride, no max-pooling.

    Args:
        depth: 18 and 34 (basic blocks), or 50 (bottlenecks, stride on the 3x3 convolution).

    Shape:
        - input: (N, 3, H, W)
        - output: maps of strides 1, 1, 2, 4, 8 with 64 channels and 64, 128, 256, 512 of the
          stages (256, 512, 1024, 2048 with bottlenecks)

    Raises:
        ValueError: for another depth.
    """

    BLOCKS = {
        18: (FourStageBasicBlock, (2, 2, 2, 2)),
        34: (FourStageBasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
    }

    def __init__(self, depth: int = 18) -> None:
        if depth not in self.BLOCKS:
            raise ValueError(
                f'CIFARFourStageResNet has depth 18, 34 or 50, got depth={depth!r}. CIFARResNet '
                'has depths 6n + 2 (8, 14, 20, 32, 44, 56, 110).'
            )
        block, counts = self.BLOCKS[depth]
        super().__init__(block, 64, (64, 128, 256, 512), counts)
        self.arch = f'cifar_resnet{depth}'
