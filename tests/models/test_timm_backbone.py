"""TimmBackbone: messages without timm; with it, the facts of Big Transfer."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import nn

from mmkd_plugin.models import ImageClassifier, TimmBackbone


def bit(name: str = 'resnetv2_50x1_bit', classes: int = 10) -> ImageClassifier:
    head = dict(type='LinearHead', num_classes=classes, init='zero')
    return ImageClassifier(dict(type='TimmBackbone', name=name), head)


def test_without_timm_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_timm(name, *args, **kwargs):
        if name.partition('.')[0] == 'timm':
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_timm)
    with pytest.raises(ImportError, match='not installed: pip install timm'):
        TimmBackbone()


class TestWithTimm:
    @pytest.fixture(autouse=True)
    def timm(self):
        return pytest.importorskip('timm', reason='needs timm: pip install timm')

    @pytest.mark.parametrize(
        ('name', 'classes', 'params'),
        [
            ('resnetv2_50x1_bit', 1000, 25_549_352),
            ('resnetv2_50x1_bit', 102, 23_709_350),
            ('resnetv2_50x1_bit', 37, 23_576_165),
            ('resnetv2_152x2_bit', 1000, 236_335_208),
            ('resnetv2_152x2_bit', 102, 232_656_102),
            ('resnetv2_152x2_bit', 37, 232_389_797),
        ],
    )
    def test_parameters(self, name, classes, params):
        with torch.device('meta'):
            model = bit(name, classes)
            (last,) = model.extract_feat(torch.empty(1, 3, 128, 128))
        assert sum(p.numel() for p in model.parameters()) == params
        assert last.shape == (1, model.backbone.out_channels, 4, 4)
        assert model.backbone.out_channels == (2048 if '50x1' in name else 4096)
        assert model.backbone.arch == name

    def test_structure(self):
        with torch.device('meta'):
            net = bit().backbone.net
        modules = list(net.modules())
        convs = [m for m in modules if isinstance(m, nn.Conv2d)]
        norms = [m for m in modules if isinstance(m, nn.GroupNorm)]
        assert not any(isinstance(m, nn.BatchNorm2d) for m in modules)
        assert all(type(m).__name__ == 'StdConv2d' for m in convs)
        assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-5)}
        assert net.stem.conv.kernel_size == (7, 7) and net.stem.conv.stride == (2, 2)
        assert net.stem.pool.kernel_size == 3 and net.stem.pool.stride == 2
        assert net.stages[1].blocks[0].conv2.stride == (2, 2)
        assert [len(stage.blocks) for stage in net.stages] == [3, 4, 6, 3]

    def test_kernels_from_scratch_have_variance_one_over_fan_in(self):
        torch.manual_seed(0)
        model = ImageClassifier(
            dict(type='TimmBackbone', name='resnetv2_50x1_bit'),
            dict(type='LinearHead', num_classes=10),
        )
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert len(convs) == 53
        for conv in convs:
            expected = conv.weight[0].numel() ** -0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
            assert conv.weight.abs().max() <= 2.3 * expected, 'cut off at two deviations'
        assert not model.head.fc.weight.any()

    @pytest.mark.parametrize('name', ['resnetv2_50x1_bit', 'resnetv2_50'])
    def test_weights_and_other_networks_stay_as_timm_makes_them(self, timm, tmp_path, name):
        with torch.random.fork_rng(devices=[]):
            file = tmp_path / 'weights.pth'
            torch.save(timm.create_model(name, num_classes=0).state_dict(), file)
        kwargs = dict(checkpoint_path=str(file)) if name.endswith('_bit') else {}
        with torch.random.fork_rng(devices=[]):
            expected = timm.create_model(name, num_classes=0, **kwargs).stem.conv.weight
        found = TimmBackbone(name, **kwargs).net.stem.conv.weight
        assert torch.equal(found, expected)

    def test_convolutions_do_not_see_scale_and_mean_of_their_weights(self):
        conv = TimmBackbone().net.stages[0].blocks[0].conv2
        x = torch.randn(1, conv.in_channels, 5, 5)
        before = conv(x)
        with torch.no_grad():
            conv.weight.mul_(3.0).add_(1.0)
        torch.testing.assert_close(conv(x), before, rtol=1e-3, atol=1e-4)

    def test_a_training_step(self):
        torch.manual_seed(0)
        model = bit().train()
        images, samples = torch.randn(2, 3, 32, 32), dict(gt_label=torch.tensor([1, 2]))
        assert not model(images).any()  # the head starts at zero
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            losses.append(model(images, samples, mode='loss')['loss_cls'])
            losses[-1].backward()
            optimizer.step()
        assert losses[0].item() == pytest.approx(torch.tensor(10.0).log().item())
        assert losses[1] < losses[0]
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize('size', [8, 256])
    def test_other_image_sizes(self, size):
        with torch.device('meta'):
            assert bit()(torch.empty(1, 3, size, size)).shape == (1, 10)

    def test_whole_state_dicts_of_timm_load(self, timm):
        with torch.random.fork_rng(devices=[]):
            net = timm.create_model('resnetv2_50x1_bit', num_classes=10).eval()
            nn.init.normal_(net.head.fc.weight)
        model = bit().eval()
        model.load_state_dict(net.state_dict())
        image = torch.randn(1, 3, 32, 32)
        with torch.no_grad():  # timm's linear layer is a 1x1 convolution: rounding differs
            torch.testing.assert_close(model(image), net(image), rtol=1e-4, atol=1e-4)

    def test_weights_that_cannot_be_downloaded(self, timm, monkeypatch):
        def offline(*args, **kwargs):
            raise OSError('no connection')

        monkeypatch.setattr(timm, 'create_model', offline)
        backbone = dict(type='TimmBackbone', name='resnetv2_50x1_bit', pretrained=True)
        head = dict(type='LinearHead', num_classes=10)
        with pytest.raises(ValueError, match='not be downloaded.*no connection.*pretrained=False'):
            ImageClassifier(backbone, head)

    def test_mistakes(self):
        with pytest.raises(ValueError, match="no network 'resnetv2_50x1_bits'; nearest: 'resnetv2"):
            TimmBackbone('resnetv2_50x1_bits')
        with torch.device('meta'), pytest.raises(ValueError, match=r'shape \(1, 197, 192\)'):
            TimmBackbone('vit_tiny_patch16_224')(torch.empty(1, 3, 224, 224))
