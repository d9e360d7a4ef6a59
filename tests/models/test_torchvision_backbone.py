"""TorchvisionBackbone: torchvision's own numbers, stages, messages."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from mmkd_plugin.models import ImageClassifier, TorchvisionBackbone
from mmkd_plugin.registry import MODELS

# name, channels of what it returns for a 64x64 image
NETS = [
    ('resnet18', [64, 128, 256, 512]),
    ('resnet50', [256, 512, 1024, 2048]),
    ('regnet_y_400mf', [48, 104, 208, 440]),
    ('shufflenet_v2_x0_5', [48, 96, 192, 1024]),
    ('mobilenet_v2', [16, 24, 32, 96, 1280, 1280]),
    ('mobilenet_v3_small', [16, 16, 24, 48, 576, 1024]),
    ('efficientnet_b0', [16, 24, 40, 112, 1280, 1280]),
    ('convnext_tiny', [96, 192, 384, 768, 768]),
    ('densenet121', [64, 256, 512, 1024, 1024]),
    ('mnasnet0_5', [8, 16, 24, 48, 1280, 1280]),
]


def classifier(name: str, classes: int = 1000) -> ImageClassifier:
    head = dict(type='LinearHead', num_classes=classes)
    return ImageClassifier(dict(type='TorchvisionBackbone', name=name), head).eval()


@pytest.mark.parametrize(('name', 'channels'), NETS, ids=[n for n, _ in NETS])
def test_same_numbers_as_torchvision(name, channels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.get_model(name).eval()
    model = classifier(name)
    model.load_state_dict(net.state_dict())  # strict: nothing missing, nothing left over
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), net(image))
        feats = model.extract_feat(image)
    assert [x.shape[1] for x in feats] == channels
    sides = [x.shape[2] for x in feats if x.dim() == 4]
    assert sides == sorted(sides, reverse=True)
    assert model.backbone.out_channels == channels[-1] and model.backbone.arch == name


@pytest.mark.parametrize('name', ['vgg11_bn', 'alexnet', 'wide_resnet50_2', 'resnext50_32x4d'])
def test_large_networks_have_all_the_parameters(name):
    with torch.device('meta'):
        net, model = models.get_model(name), classifier(name)
        model(torch.empty(1, 3, 64, 64))
    counts = [sum(p.numel() for p in m.parameters()) for m in (net, model)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize('size', [32, 256])
@pytest.mark.parametrize('name', [n for n, _ in NETS if not n.startswith('regnet')])  # needs data
def test_other_image_sizes(name, size):
    with torch.device('meta'):
        assert classifier(name, 7)(torch.empty(2, 3, size, size)).shape == (2, 7)


def test_converted_norms_are_used():
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(TorchvisionBackbone('resnet18')).eval()
    calls = []
    backbone.bn1.register_forward_hook(lambda *args: calls.append(1))
    backbone(torch.randn(1, 3, 32, 32))
    assert isinstance(backbone.bn1, nn.SyncBatchNorm) and calls == [1]


@pytest.mark.parametrize('as_enum', [False, True])
def test_weights_are_handed_to_torchvision(monkeypatch, as_enum):
    net = models.resnet18()
    monkeypatch.setattr(
        models.ResNet18_Weights,
        'get_state_dict',
        lambda self, *args, **kwargs: net.state_dict(),
    )
    weights = models.ResNet18_Weights.DEFAULT if as_enum else 'IMAGENET1K_V1'
    backbone = TorchvisionBackbone('resnet18', weights=weights)
    assert torch.equal(backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(name='resnet19'), "no network 'resnet19'; nearest: 'resnet18'"),
        (dict(name='vit_b_16'), r"cannot take 'vit_b_16' apart; it supports resnet\*, resnext\*"),
        (dict(name='googlenet'), "cannot take 'googlenet' apart"),
        (dict(name='resnet18', weights='V1'), "no weights 'V1' of resnet18; valid: DEFAULT, IMAGE"),
    ],
)
def test_mistakes(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='TorchvisionBackbone', **kwargs))
