"""Classifiers of MMPreTrain as students and teachers: three kinds of heads, no class of ours."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config
from torch import Tensor
from torch.nn import functional as nnf
from torch.utils.data import Dataset
from toys import train

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.registry import DATASETS
from mmkd_plugin.teacher import build_model, make_teacher

if find_spec('mmpretrain') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMPreTrain: pip install onedl-mmpretrain', allow_module_level=True)

from mmpretrain.structures import DataSample

CLASSES = 10
CROSS_ENTROPY = dict(type='CrossEntropyLoss', loss_weight=1.0)
NORMALISE = dict(mean=[125.0, 123.0, 114.0], std=[52.0, 51.0, 51.0], to_rgb=False)


def model_config(backbone: dict, neck: dict | None, head: dict, **preprocessor) -> dict:
    head = dict(num_classes=CLASSES, loss=CROSS_ENTROPY, **head)
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=neck,
        head=head,
        data_preprocessor=dict(num_classes=CLASSES, **{**NORMALISE, **preprocessor}),
    )


POOL = dict(type='GlobalAveragePooling')
MODELS = dict(
    LinearClsHead=model_config(
        dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8),
        POOL,
        dict(type='LinearClsHead', in_channels=64),
    ),
    StackedLinearClsHead=model_config(
        dict(type='MobileNetV3', arch='small'),
        POOL,
        dict(type='StackedLinearClsHead', in_channels=576, mid_channels=[32]),
    ),
    VisionTransformerClsHead=model_config(
        dict(
            type='VisionTransformer',
            arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
            img_size=32,
            patch_size=8,
        ),
        None,
        dict(type='VisionTransformerClsHead', in_channels=32, hidden_dim=16),
    ),
)
# student and teacher: every kind of head on both sides
PAIRS = list(zip(MODELS, [*list(MODELS)[1:], *list(MODELS)[:1]]))
LAST_LAYERS = dict(
    LinearClsHead='head.fc',
    StackedLinearClsHead='head.layers.1.fc',
    VisionTransformerClsHead='head.layers.head',
)


@DATASETS.register_module()
class PretrainNoise(Dataset):
    """CIFAR-like images of noise with MMPreTrain's data samples; item i is always the same."""

    metainfo = dict(classes=tuple('abcdefghij'))

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % CLASSES))


def full_config(name: str) -> dict:
    return dict(default_scope='mmpretrain', model=copy.deepcopy(MODELS[name]))


def build(name: str, seed: int = 0):
    """Without dropout and with a head that does not start at zero."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(load_model_config(full_config(name)))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def batch(n: int = 4) -> tuple[Tensor, list]:
    images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, [DataSample().set_gt_label(3 * i % CLASSES) for i in range(n)]


def distilled(student, teacher, loss: dict, **kwargs):
    term = dict(loss=loss, student='cls_logits', name='kd')
    mmkd_plugin.attach(student, teacher, [term], probe_size=(32, 32), **kwargs)
    return student.train()


@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
@pytest.mark.parametrize('loss', ['KDLoss', 'DKDLoss'])
def test_loss_and_gradient_are_those_of_the_logits(student, teacher, loss):
    images, samples = batch()
    teacher = build(teacher, 1).eval()
    model, twin = build(student), build(student).train()
    as_it_is = dict(model=teacher, fold=False, channels_last=False)
    distilled(model, as_it_is, dict(type=loss), task_weight=0.0)
    losses = model(images, samples, mode='loss')
    losses['loss_kd'].backward()

    logits = twin(images, mode='tensor')
    with torch.no_grad():
        target = teacher(images, mode='tensor')
    labels = torch.cat([sample.gt_label for sample in samples])
    expected = (
        F.kl_divergence(logits, target, 4.0) if loss == 'KDLoss' else F.dkd(logits, target, labels)
    )
    expected.backward()
    torch.testing.assert_close(losses['loss_kd'], expected)
    gradients = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)
    # the task's own loss is shown, but nothing of it is optimised
    torch.testing.assert_close(losses['task'], nnf.cross_entropy(logits, labels))
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize('name', MODELS)
def test_the_view_finds_the_last_layer(name):
    model = distilled(build(name), build(name, 1), dict(type='KDLoss'))
    (row,) = model.distiller.plan()
    assert LAST_LAYERS[name] in row.student and row.student_shape == ('rows', CLASSES)
    assert model.distiller.teacher.depth == 'head'


@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
def test_training_through_the_runner(tmp_path, student, teacher):
    weights = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=build(teacher, 1).state_dict()), weights)
    loader = dict(
        dataset=dict(type='PretrainNoise', _scope_='mmkd_plugin'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=4,
        num_workers=0,
        collate_fn=dict(type='pseudo_collate'),
    )
    terms = [dict(loss=dict(type=t), student='cls_logits') for t in ('KDLoss', 'DKDLoss')]
    runner = train(
        Config(
            dict(
                **full_config(student),
                custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
                work_dir=str(tmp_path / 'work'),
                train_dataloader=loader,
                train_cfg=dict(by_epoch=True, max_epochs=1),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
                val_dataloader=loader,
                val_cfg=dict(),
                val_evaluator=dict(type='Accuracy', topk=(1,)),
                default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
                custom_hooks=[
                    dict(
                        type='mmkd_plugin.DistillHook',
                        teacher=dict(config=full_config(teacher), checkpoint=str(weights)),
                        terms=terms,
                        probe_size=(32, 32),
                    )
                ],
                randomness=dict(seed=1),
                log_level='WARNING',
            )
        )
    )
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    for key in ('loss_kd', 'loss_dkd'):
        values, _ = scalars[f'train/{key}'].data
        assert len(values) == 2 and all(0 < v < 1e4 for v in values)
    assert 'val/accuracy/top1' in scalars
    saved = torch.load(tmp_path / 'work' / 'epoch_1.pth', map_location='cpu', weights_only=False)
    build(student).load_state_dict(saved['state_dict'])  # strict: the plain model's names


def test_a_package_config_makes_a_teacher():
    teacher = make_teacher(
        dict(config='mmpretrain::resnet/resnet18_8xb16_cifar10.py', allow_random=True)
    )
    student = distilled(build('LinearClsHead'), teacher, dict(type='KDLoss'))
    losses = student(*batch(), mode='loss')
    assert torch.isfinite(losses['loss_kd'])


def test_another_normalisation_of_the_teacher_is_converted():
    images, samples = batch()
    own = build('LinearClsHead', 1).eval()
    config = full_config('LinearClsHead')
    config['model']['data_preprocessor'].update(mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True)
    other = build_model(load_model_config(config)).eval()
    other.load_state_dict(own.state_dict())
    student = distilled(build('LinearClsHead'), other, dict(type='KDLoss'))
    loss = student(images, samples, mode='loss')['loss_kd']
    mean, std = (torch.tensor(NORMALISE[k]).view(3, 1, 1) for k in ('mean', 'std'))
    with torch.no_grad():
        target = own(((images * std + mean) / 255.0).flip(1), mode='tensor')
    logits = build('LinearClsHead').train()(images, mode='tensor')
    torch.testing.assert_close(loss, F.kl_divergence(logits, target, 4.0))


def test_mixed_images_have_no_label_for_dkd():
    from mmpretrain.models.utils import RandomBatchAugment

    images, samples = batch()
    student = distilled(build('LinearClsHead'), build('LinearClsHead', 1), dict(type='DKDLoss'))
    mixup = RandomBatchAugment(dict(type='Mixup', alpha=0.8))
    labels = torch.cat([s.gt_label for s in samples])
    images, scores = mixup(images, nnf.one_hot(labels, CLASSES).float())
    for sample, score in zip(samples, scores):
        sample.set_gt_score(score)
    with pytest.raises(ValueError, match='one label per image'):
        student(images, samples, mode='loss')


def test_parts_of_both_packages_fit_together():
    images, samples = batch()
    ours = dict(
        type='mmkd_plugin.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8),
        head=dict(type='LinearHead', num_classes=CLASSES, in_channels=64),
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', **NORMALISE),
    )
    theirs = model_config(
        dict(type='mmkd_plugin.CIFARResNet', depth=8),
        POOL,
        dict(type='LinearClsHead', in_channels=64),
    )
    student = build_model(load_model_config(dict(default_scope='mmkd_plugin', model=ours)))
    teacher = build_model(load_model_config(dict(default_scope='mmpretrain', model=theirs)))
    for pair in ((student, teacher), (copy.deepcopy(teacher), copy.deepcopy(student))):
        losses = distilled(*pair, dict(type='KDLoss'))(images, samples, mode='loss')
        assert len(losses) == 2 and all(torch.isfinite(loss) for loss in losses.values())
