"""VGG nets with batch norm for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from mmkd_plugin.registry import MODELS

from .blocks import init_convs

WIDTHS = (64, 128, 256, 512, 512)
CONVS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


@MODELS.register_module()
class CIFARVGG(nn.Module):
    """VGG with batch norm and one linear layer, for 32x32 images.

    Five blocks of conv3x3 (with bias) - BN - ReLU. Max-pooling halves the size after blocks 0, 1
    and 2; after block 3 only for images 64 pixels high, as in the benchmark code. As there, an
    ``ImageClassifier`` draws its linear layer from N(0, 0.01), with bias 0.

    Args:
        depth: 8, 11, 13, 16 or 19.

    Shape:
        - input: (N, 3, H, W), H and W at least 8
        - output: maps of the five blocks after ReLU, strides 1, 2, 4, 8, 8 (16 for 64 pixels)
          with 64, 128, 256, 512, 512 channels

    Raises:
        ValueError: for another depth.
    """

    head_init = 'normal'

    def __init__(self, depth: int = 13) -> None:
        if depth not in CONVS:
            raise ValueError(
                f'CIFARVGG has depth {", ".join(map(str, CONVS))}, got depth={depth!r}.'
            )
        super().__init__()
        channels = 3
        for i, (width, count) in enumerate(zip(WIDTHS, CONVS[depth])):
            layers: list[nn.Module] = []
            for _ in range(count):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            # The last ReLU is in forward: a tap on the block sees the values before it.
            self.add_module(f'block{i}', nn.Sequential(*layers[:-1]))
        self.out_channels = channels
        self.arch = f'vgg{depth}'
        init_convs(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pools = (0, 1, 2, 3) if x.shape[2] == 64 else (0, 1, 2)
        maps = []
        for i in range(len(WIDTHS)):
            maps.append(relu(getattr(self, f'block{i}')(x)))
            x = max_pool2d(maps[-1], 2) if i in pools else maps[-1]
        return tuple(maps)
