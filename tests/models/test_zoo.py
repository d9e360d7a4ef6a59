"""The networks of the benchmark protocol: parameters, multiply-adds, maps, initialisation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from mmkd_plugin.models import ImageClassifier
from mmkd_plugin.registry import MODELS

X4 = (32, 64, 128, 256)
RESNET = [(16, 32), (16, 32), (32, 16), (64, 8)]
RESNET_X4 = [(32, 32), (64, 32), (128, 16), (256, 8)]
VGG = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]


def resnet(depth, **kwargs):
    return dict(type='CIFARResNet', depth=depth, **kwargs)


def wrn(depth, width):
    return dict(type='CIFARWideResNet', depth=depth, width=width)


def vgg(depth):
    return dict(type='CIFARVGG', depth=depth)


def four_stage(depth):
    return dict(type='CIFARFourStageResNet', depth=depth)


def wide(width):
    return [(16, 32), (16 * width, 32), (32 * width, 16), (64 * width, 8)]


# config, arch, parameters and multiply-adds with 100 classes, maps of a 32x32 image
CIFAR = [
    (resnet(8), 'resnet8', 83_892, 12_507_392, RESNET),
    (resnet(14), 'resnet14', 181_108, 26_663_168, RESNET),
    (resnet(20), 'resnet20', 278_324, 40_818_944, RESNET),
    (resnet(32), 'resnet32', 472_756, 69_130_496, RESNET),
    (resnet(44), 'resnet44', 667_188, 97_442_048, RESNET),
    (resnet(56), 'resnet56', 861_620, 125_753_600, RESNET),
    (resnet(110), 'resnet110', 1_736_564, 253_155_584, RESNET),
    (resnet(8, widths=X4), 'resnet8x4', 1_233_540, 177_071_104, RESNET_X4),
    (resnet(32, widths=X4), 'resnet32x4', 7_433_860, 1_083_040_768, RESNET_X4),
    (wrn(16, 1), 'wrn_16_1', 180_916, 26_663_168, wide(1)),
    (wrn(16, 2), 'wrn_16_2', 703_284, 101_118_464, wide(2)),
    (wrn(40, 1), 'wrn_40_1', 569_780, 83_286_272, wide(1)),
    (wrn(40, 2), 'wrn_40_2', 2_255_156, 327_610_880, wide(2)),
    (vgg(8), 'vgg8', 3_965_028, 96_192_512, VGG),
    (vgg(11), 'vgg11', 9_277_284, 209_438_720, VGG),
    (vgg(13), 'vgg13', 9_462_180, 284_936_192, VGG),
    (vgg(16), 'vgg16', 14_774_436, 398_182_400, VGG),
    (vgg(19), 'vgg19', 20_086_692, 511_428_608, VGG),
    (
        dict(type='CIFARMobileNetV2'),
        'mobilenet_v2_half',
        812_836,
        6_523_648,
        [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2), (1280, 2)],
    ),
    (
        dict(type='CIFARShuffleNetV1'),
        'shufflenet_v1',
        949_258,
        38_691_456,
        [(24, 32), (240, 16), (480, 8), (960, 4)],
    ),
    (
        dict(type='CIFARShuffleNetV2'),
        'shufflenet_v2',
        1_355_528,
        44_504_448,
        [(24, 32), (116, 16), (232, 8), (464, 4), (1024, 4)],
    ),
    (
        four_stage(18),
        'cifar_resnet18',
        11_220_132,
        555_468_800,
        [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)],
    ),
    (
        four_stage(50),
        'cifar_resnet50',
        23_705_252,
        1_298_014_208,
        [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)],
    ),
]

# with 1000 classes, and the maps of a 224x224 image
IMAGENET = [
    (
        dict(type='TorchvisionBackbone', name='resnet18'),
        'resnet18',
        11_689_512,
        1_814_073_344,
        [(64, 56), (128, 28), (256, 14), (512, 7)],
    ),
    (
        dict(type='TorchvisionBackbone', name='resnet34'),
        'resnet34',
        21_797_672,
        3_663_761_408,
        [(64, 56), (128, 28), (256, 14), (512, 7)],
    ),
    (
        dict(type='TorchvisionBackbone', name='resnet50'),
        'resnet50',
        25_557_032,
        4_089_184_256,
        [(256, 56), (512, 28), (1024, 14), (2048, 7)],
    ),
    (
        dict(type='MobileNetV1'),
        'mobilenet_v1',
        4_231_976,
        568_740_352,
        [(64, 112), (128, 56), (256, 28), (512, 14), (1024, 7)],
    ),
]

ROWS = [(*row, 100, 32) for row in CIFAR] + [(*row, 1000, 224) for row in IMAGENET]


def classifier(backbone: dict, classes: int = 100) -> ImageClassifier:
    return ImageClassifier(dict(backbone), dict(type='LinearHead', num_classes=classes)).eval()


def multiply_adds(model: nn.Module, image: torch.Tensor) -> int:
    """Of convolutions and linear layers, for one image."""
    total = 0

    def count(module, args, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    model(image)
    return total


@pytest.mark.parametrize(
    ('backbone', 'arch', 'params', 'macs', 'maps', 'classes', 'size'),
    ROWS,
    ids=[row[1] for row in ROWS],
)
def test_row_of_the_protocol(backbone, arch, params, macs, maps, classes, size):
    with torch.device('meta'):  # shapes only: nothing is computed
        model = classifier(backbone, classes)
        image = torch.empty(1, 3, size, size)
        assert sum(p.numel() for p in model.parameters()) == params
        assert all(p.requires_grad for p in model.parameters())
        assert [tuple(x.shape[1:]) for x in model.extract_feat(image)] == [
            (channels, side, side) for channels, side in maps
        ]
        assert model.backbone.out_channels == maps[-1][0]
        assert model.backbone.arch == arch
        assert multiply_adds(model, image) == macs


@pytest.mark.parametrize('size', [8, 16, 64, 256])
@pytest.mark.parametrize('row', CIFAR, ids=[row[1] for row in CIFAR])
def test_other_image_sizes(row, size):
    with torch.device('meta'):
        model = classifier(row[0])
        feats = model.extract_feat(torch.empty(2, 3, size, size))
        assert [x.shape[1] for x in feats] == [channels for channels, _ in row[4]]
        assert model(torch.empty(2, 3, size, size)).shape == (2, 100)


SMALL = [
    resnet(8),
    four_stage(18),
    wrn(10, 2),
    vgg(8),
    dict(type='CIFARMobileNetV2'),
    dict(type='CIFARShuffleNetV1'),
    dict(type='CIFARShuffleNetV2'),
    dict(type='MobileNetV1'),
]


@pytest.mark.parametrize('backbone', SMALL, ids=[c['type'] for c in SMALL])
def test_every_parameter_learns_and_outputs_keep_their_values(backbone):
    model = classifier(backbone, 5).train()
    image = torch.randn(4, 3, 16, 16)
    feats = model.extract_feat(image)
    kept = [(x, x._version, x.detach().clone()) for x in feats]
    model.head(feats).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for x, version, value in kept:  # nothing later in the network overwrites a map
        assert x._version == version
        torch.testing.assert_close(x.detach(), value, rtol=0, atol=0)


@pytest.mark.parametrize('backbone', SMALL, ids=[c['type'] for c in SMALL])
def test_copies_and_half_precision(backbone):
    model = classifier(backbone, 5)
    image = torch.randn(2, 3, 16, 16)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(image), model(image))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(model(image)).all()
    assert model.double()(image.double()).dtype == torch.float64


@pytest.mark.parametrize(
    'backbone', [resnet(20), wrn(16, 2), vgg(13), four_stage(18), dict(type='CIFARMobileNetV2')]
)
def test_convolutions_are_kaiming_normal_by_fan_out(backbone):
    torch.manual_seed(0)
    layers = [m for m in MODELS.build(dict(backbone)).modules() if isinstance(m, nn.Conv2d)]
    assert layers
    for conv in layers:
        expected = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))
        count = conv.weight.numel()
        if count > 2000:
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.08)
            assert abs(conv.weight.mean().item()) < 5 * expected / math.sqrt(count)
        if conv.bias is not None:
            assert not conv.bias.any()


@pytest.mark.parametrize('kind', ['CIFARShuffleNetV1', 'CIFARShuffleNetV2', 'MobileNetV1'])
def test_the_others_start_as_pytorch_does(kind):
    torch.manual_seed(0)
    for conv in MODELS.build(dict(type=kind)).modules():
        if isinstance(conv, nn.Conv2d) and conv.weight.numel() > 2000:
            bound = 1 / math.sqrt(conv.weight[0].numel())  # uniform within +-bound
            assert 0.9 * bound < conv.weight.abs().max().item() <= bound


@pytest.mark.parametrize(
    ('backbone', 'std', 'zero_bias'),
    [
        (dict(type='CIFARMobileNetV2'), 0.01, True),
        (vgg(8), 0.01, True),
        (wrn(16, 2), 'default', True),
        (resnet(20), 'default', False),
        (four_stage(18), 'default', False),
        (dict(type='CIFARShuffleNetV1'), 'default', False),
        (dict(type='CIFARShuffleNetV2'), 'default', False),
        (dict(type='MobileNetV1'), 'default', False),
    ],
    ids=lambda x: x['type'] if isinstance(x, dict) else None,
)
def test_the_linear_layer_starts_as_in_the_benchmark_code(backbone, std, zero_bias):
    torch.manual_seed(0)
    layer = classifier(backbone).head.fc
    expected = 1 / math.sqrt(3 * layer.in_features) if std == 'default' else std
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert bool(layer.bias.any()) is not zero_bias


def test_a_config_may_start_the_linear_layer_otherwise():
    head = dict(type='LinearHead', num_classes=100, init='default')
    assert ImageClassifier(wrn(16, 2), head).head.fc.bias.any()


def test_the_pool_after_block_3_is_for_64_pixels_only():
    with torch.device('meta'):
        backbone = MODELS.build(vgg(8))
        last = {size: backbone(torch.empty(1, 3, size, size))[-1].shape[-1] for size in (32, 64)}
    assert last == {32: 4, 64: 4}


def test_a_vgg_block_ends_before_its_relu():
    backbone = MODELS.build(vgg(8)).eval()
    seen = []
    backbone.block4.register_forward_hook(lambda m, args, out: seen.append(out))
    *_, last = backbone(torch.randn(1, 3, 32, 32))
    assert seen[0].min() < 0
    assert torch.equal(seen[0].relu(), last)


def test_the_wide_resnet_ends_in_norm_and_relu_but_its_stages_do_not():
    backbone = MODELS.build(wrn(10, 2)).eval()
    *stages, last = backbone(torch.randn(2, 3, 32, 32))
    assert last.min() == 0
    assert all(stage.min() < 0 for stage in stages)
    # a path around exists only where the width changes, and wrn_*_1 starts with the stem's width
    paths = [backbone.block1.layer[0].convShortcut, MODELS.build(wrn(10, 1)).block1.layer[0]]
    assert paths[0] is not None and paths[1].convShortcut is None


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (resnet(18), r'6n \+ 2 \(8, 14, 20.*got depth=18\. CIFARFourStageResNet has depths 18'),
        (resnet(2), r'6n \+ 2 .*got depth=2'),
        (resnet('20'), r"6n \+ 2 .*got depth='20'"),
        (resnet(20, widths=(16, 32, 64)), r'four numbers.*got \(16, 32, 64\)'),
        (four_stage(20), r'18, 34 or 50, got depth=20\. CIFARResNet has depths'),
        (wrn(20, 2), r'6n \+ 4 \(10, 16, 22, 28, 34, 40\), got depth=20'),
        (wrn(16, 0), r'width of CIFARWideResNet is 1, 2, 3, \.\.\., got 0'),
        (vgg(12), r'CIFARVGG has depth 8, 11, 13, 16, 19, got depth=12'),
    ],
)
def test_wrong_arguments(backbone, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(backbone)


def test_other_widths_have_a_name_of_their_own():
    with torch.device('meta'):
        assert MODELS.build(resnet(8, widths=[4, 4, 8, 16])).arch == 'resnet8_4_4_8_16'
