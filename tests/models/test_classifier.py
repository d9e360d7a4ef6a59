"""ImageClassifier and LinearHead: modes, mixed labels, messages, foreign weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as nnf

from mmkd_plugin.checkpoints.fit import load_all, state_dict_of
from mmkd_plugin.errors import CheckpointError
from mmkd_plugin.models import CIFARResNet, ImageClassifier, LinearHead
from mmkd_plugin.teacher import Teacher

LABELS = torch.tensor([0, 2, 1, 3])
RESNET8 = dict(type='CIFARResNet', depth=8)


def classifier(backbone=RESNET8, classes=4, seed=0, **head) -> ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = dict(type='LinearHead', num_classes=classes, **head)
        return ImageClassifier(dict(backbone), head)


def images(n=4, size=8):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


class TestForward:
    def test_the_three_modes(self):
        model = classifier().eval()
        logits = model(images())
        assert logits.shape == (4, 4)
        losses = model(images(), dict(gt_label=LABELS), mode='loss')
        assert losses == {'loss_cls': nnf.cross_entropy(logits, LABELS)}
        (batch,) = model(images(), dict(gt_label=LABELS), mode='predict')
        torch.testing.assert_close(batch['pred_score'], logits.softmax(1))
        assert batch['pred_label'].tolist() == logits.argmax(1).tolist()
        assert batch['gt_label'] is LABELS
        (unknown,) = model(images(), mode='predict')
        assert set(unknown) == {'pred_score', 'pred_label'}

    def test_parts_are_what_a_partial_forward_needs(self):
        model = classifier().eval()
        feats = model.extract_feat(images())
        assert isinstance(feats, tuple)
        assert torch.equal(model.head(feats), model(images()))
        assert torch.equal(feats[-1], model.backbone(images())[-1])

    def test_one_sample_per_image_does_as_well(self):
        model = classifier().eval()
        samples = []
        for label in LABELS.tolist():
            sample = BaseDataElement()
            sample.gt_label = torch.tensor([label])
            samples.append(sample)
        expected = model(images(), dict(gt_label=LABELS), mode='loss')
        assert model(images(), samples, mode='loss') == expected
        (batch,) = model(images(), samples, mode='predict')
        assert torch.equal(batch['gt_label'], LABELS)

    def test_train_val_and_test_step(self):
        model = classifier().train()
        optim = SimpleNamespace(
            optim_context=lambda m: torch.enable_grad(), update_params=lambda loss: loss.backward()
        )
        data = dict(inputs=images(), data_samples=dict(gt_label=LABELS, index=torch.arange(4)))
        logs = model.train_step(data, optim)
        assert logs['loss'] == logs['loss_cls']
        assert all(p.grad is not None for p in model.parameters())
        (batch,) = model.eval().val_step(data)
        assert batch['pred_score'].shape == (4, 4)

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
    def test_images_that_are_no_floats(self, dtype):
        name = str(dtype).removeprefix('torch.')
        with pytest.raises(ValueError, match=f"got {name} images.*type='ClsDataPreprocessor'"):
            classifier()(torch.zeros(1, 3, 8, 8, dtype=dtype))

    def test_another_mode(self):
        with pytest.raises(ValueError, match="'tensor', 'loss' or 'predict', not 'train'"):
            classifier()(images(), mode='train')


class TestLoss:
    @pytest.mark.parametrize('lam', [0.3, torch.tensor(0.3)])
    def test_mixed_labels(self, lam):
        model = classifier().eval()
        logits = model(images())
        samples = dict(gt_label=LABELS, mixed_label=LABELS.roll(1), mixed_lam=lam)
        loss = model(images(), samples, mode='loss')['loss_cls']
        target = 0.3 * nnf.one_hot(LABELS, 4) + 0.7 * nnf.one_hot(LABELS.roll(1), 4)
        torch.testing.assert_close(loss, nnf.cross_entropy(logits, target))
        (batch,) = model(images(), samples, mode='predict')
        assert torch.equal(batch['gt_label'], LABELS)

    def test_label_smoothing(self):
        model = classifier(label_smoothing=0.1).eval()
        logits = model(images())
        target = 0.9 * nnf.one_hot(LABELS, 4) + 0.1 / 4
        loss = model(images(), dict(gt_label=LABELS), mode='loss')['loss_cls']
        torch.testing.assert_close(loss, nnf.cross_entropy(logits, target))

    def test_half_precision_logits_make_a_float32_loss(self):
        model = classifier().to(torch.bfloat16)
        losses = model(images().bfloat16(), dict(gt_label=LABELS), mode='loss')
        assert losses['loss_cls'].dtype == torch.float32

    @pytest.mark.parametrize('samples', [None, {}, dict(index=LABELS), [BaseDataElement()] * 4])
    def test_no_labels(self, samples):
        with pytest.raises(ValueError, match=r'must carry data_samples=dict\(gt_label=int64'):
            classifier()(images(), samples, mode='loss')

    def test_a_label_under_another_name(self):
        with pytest.raises(ValueError, match=r"no 'gt_label' \(nearest: 'gt_labels'\)"):
            classifier()(images(), dict(gt_labels=LABELS), mode='loss')

    @pytest.mark.parametrize('value', [4, -1])
    @pytest.mark.parametrize('key', ['gt_label', 'mixed_label'])
    def test_a_label_that_is_no_class(self, value, key):
        samples = dict(gt_label=LABELS.clone(), mixed_label=LABELS.clone(), mixed_lam=0.5)
        samples[key][2] = value
        message = f'{key} has the value {value}, but the head has num_classes=4: labels are 0 to 3'
        with pytest.raises(ValueError, match=message):
            classifier()(images(), samples, mode='loss')

    def test_another_number_of_labels(self):
        with pytest.raises(ValueError, match=r'gt_label must be of shape \(4,\).*got \(3,\)'):
            classifier()(images(), dict(gt_label=LABELS[:3]), mode='loss')


class TestHead:
    def test_maps_are_averaged_and_vectors_taken_as_they_are(self):
        head = LinearHead(4, 3)
        x = torch.randn(2, 3, 5, 7)
        torch.testing.assert_close(head((None, x)), head.fc(x.flatten(2).mean(2)))
        assert torch.equal(head((x, x[..., 0, 0])), head.fc(x[..., 0, 0]))

    def test_initialisations(self):
        torch.manual_seed(0)
        default, normal, zero, zero_bias = (
            LinearHead(100, 200, init=i) for i in ('default', 'normal', 'zero', 'zero_bias')
        )
        assert 0.9 / 200**0.5 < default.fc.weight.max() <= 1 / 200**0.5 and default.fc.bias.any()
        assert normal.fc.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not normal.fc.bias.any()
        assert not zero.fc.weight.any() and not zero.fc.bias.any()
        assert 0.9 / 200**0.5 < zero_bias.fc.weight.max() <= 1 / 200**0.5
        assert not zero_bias.fc.bias.any()

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(num_classes=4), 'needs in_channels.*taken from backbone.out_channels'),
            (dict(num_classes=0, in_channels=3), 'num_classes of LinearHead is 1, 2.*got 0'),
            (dict(num_classes=4, in_channels='a'), "in_channels of LinearHead .*got 'a'"),
            (dict(num_classes=4, in_channels=3, init='zeros'), "did you mean 'zero'"),
            (dict(num_classes=4, in_channels=3, label_smoothing=1.0), 'below 1, got 1.0'),
        ],
    )
    def test_wrong_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            LinearHead(**kwargs)


class ForeignBackbone(nn.Module):
    """Has no out_channels."""

    def forward(self, x):
        return (x,)


class TestConfig:
    @pytest.mark.parametrize('scope', ['mmengine', 'mmkd_plugin', 'mmdet', None])
    def test_builds_in_any_default_scope(self, scope):
        config = Config(
            dict(
                type='mmkd_plugin.ImageClassifier',
                backbone=RESNET8,
                head=dict(type='LinearHead', num_classes=7),
                data_preprocessor=dict(type='BaseDataPreprocessor'),
            )
        )
        with DefaultScope.overwrite_default_scope(scope):
            model = ROOT_MODELS.build(config)
        assert model.head.fc.in_features == 64 and model.head.fc.out_features == 7

    @pytest.mark.parametrize(
        'kind', [dict(type='mmkd_plugin.CIFARResNet'), dict(RESNET8, _scope_='mmkd_plugin')]
    )
    def test_scopes_in_the_parts(self, kind):
        assert classifier(dict(kind, depth=8)).backbone.arch == 'resnet8'

    def test_modules_instead_of_configs(self):
        model = ImageClassifier(CIFARResNet(8), LinearHead(5, 64))
        assert model(images()).shape == (4, 5)

    @pytest.mark.parametrize(
        ('backbone', 'head', 'message'),
        [
            (dict(type='CIFARResnet'), None, "'CIFARResnet', which is not reg.*nearest: 'CIFARRes"),
            (dict(type='mmkd_plugin.CIFARVG'), None, "not registered; nearest: 'CIFARVGG'"),
            (dict(type='nothing.CIFARVGG'), None, "'nothing.CIFARVGG', which is not registered"),
            (dict(RESNET8, dept=8), None, "backbone has an unknown key 'dept'; nearest: 'depth'"),
            (dict(depth=8), None, "backbone must be a module or a dict with a 'type'"),
            (None, dict(type='LinearHed', num_classes=4), "nearest: 'LinearHead'"),
            (None, dict(type='LinearHead', classes=4), "unknown key 'classes'; nearest: 'num_cl"),
            (None, 'LinearHead', "head must be a module or a dict.*it is 'LinearHead'"),
            (ForeignBackbone(), None, 'ForeignBackbone does not tell its out_channels; give head'),
        ],
    )
    def test_mistakes(self, backbone, head, message):
        with pytest.raises(ValueError, match=message):
            ImageClassifier(backbone or RESNET8, head or dict(type='LinearHead', num_classes=4))

    def test_an_unknown_key(self):
        head = dict(type='LinearHead', num_classes=4)
        with pytest.raises(ValueError, match="unknown key 'bakbone'; nearest: 'backbone'"):
            ImageClassifier(RESNET8, head, bakbone=1)

    def test_a_backbone_without_out_channels(self):
        head = dict(type='LinearHead', num_classes=4, in_channels=3)
        assert ImageClassifier(ForeignBackbone(), head)(images()).shape == (4, 4)

    def test_the_runner_does_not_initialise_it_again(self):
        model = classifier()
        before = copy.deepcopy(model.state_dict())
        model.init_weights()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def foreign(model: ImageClassifier, layer: str = 'fc') -> OrderedDict:
    """The model's state dict as other projects name it."""
    return OrderedDict(
        (k.replace('backbone.', '').replace('head.fc', layer), v)
        for k, v in model.state_dict().items()
    )


class TestForeignWeights:
    @pytest.mark.parametrize('layer', ['fc', 'linear', 'classifier', 'classifier.0', 'head.fc'])
    def test_any_name_of_the_classifier(self, layer):
        source, model = classifier(seed=1).eval(), classifier().eval()
        model.load_state_dict(foreign(source, layer))
        assert torch.equal(model(images()), source(images()))

    def test_our_own_state_is_left_alone(self):
        model = classifier()
        state = model.state_dict()
        assert model.adapt_state_dict(state) is state
        assert model.adapt_state_dict({}) == {}
        other = nn.Linear(2, 2).state_dict()
        assert model.adapt_state_dict(other) is other

    def test_a_linear_layer_that_is_a_convolution(self):
        source, model = classifier(seed=1), classifier()
        state = foreign(source)
        state['fc.weight'] = state['fc.weight'][..., None, None]
        model.load_state_dict(state)
        assert torch.equal(model.head.fc.weight, source.head.fc.weight)

    def test_a_training_checkpoint_with_the_weights_under_model(self, tmp_path):
        source, model = classifier(seed=1).eval(), classifier().eval()
        torch.save(dict(epoch=240, model=foreign(source)), tmp_path / 'best.pth')
        load_checkpoint(model, str(tmp_path / 'best.pth'), strict=True)
        assert torch.equal(model(images()), source(images()))

    def test_loading_through_a_wrapper_and_a_copy(self):
        source = classifier(seed=1)
        wrapper = nn.ModuleDict(dict(module=copy.deepcopy(classifier())))
        wrapper.load_state_dict({f'module.{k}': v for k, v in foreign(source).items()})
        assert torch.equal(wrapper['module'].head.fc.weight, source.head.fc.weight)

    def test_a_teacher_loads_it(self, tmp_path):
        source = classifier(seed=1).eval()
        torch.save(foreign(source), tmp_path / 'weights.pth')
        config = dict(
            model=dict(
                type='mmkd_plugin.ImageClassifier',
                backbone=RESNET8,
                head=dict(type='LinearHead', num_classes=4),
            )
        )
        teacher = Teacher.build(config, str(tmp_path / 'weights.pth'))
        assert torch.equal(teacher.model(images()), source(images()))

    @pytest.mark.parametrize(
        ('depth', 'classes', 'message'),
        [
            (14, 4, 'entries that the teacher lacks: backbone.layer1.1'),
            (8, 5, r'head.fc.weight is \(5, 64\) in the file, \(4, 64\)'),
        ],
    )
    def test_what_does_not_fit_is_reported(self, depth, classes, message):
        other = classifier(dict(RESNET8, depth=depth), classes)
        with pytest.raises(CheckpointError, match=message):
            load_all(classifier(), state_dict_of(foreign(other), 'file'), 'file', False)
