"""Classifiers of MMPreTrain through the Runner: transformers, margin and multi-label heads."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec('mmpretrain') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMPreTrain: pip install onedl-mmpretrain', allow_module_level=True)

from five_steps import PlainPackage, random_teacher, run_config, train
from made_up_data import classes

import mmkd_plugin
from mmkd_plugin import recipes
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import build_model
from mmkd_plugin.views.tokens import token_map

SIDE, CLASSES = 32, 2


def classifier(backbone: dict, head: dict, neck: dict | None = None) -> dict:
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=neck,
        head=head,
        data_preprocessor=dict(mean=[125.0] * 3, std=[52.0] * 3, to_rgb=True),
    )


def vit(width: int, **other) -> dict:
    arch = dict(embed_dims=width, num_layers=2, num_heads=2, feedforward_channels=2 * width)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=SIDE, patch_size=8, **other)
    head = dict(
        type='LinearClsHead', num_classes=CLASSES, in_channels=width
    )  # ViT's own begins with 0
    return classifier(backbone, head)


def resnet(width: int, **head) -> dict:
    backbone = dict(type='ResNet_CIFAR', depth=18, stem_channels=width, base_channels=width)
    head = dict(dict(num_classes=CLASSES, in_channels=8 * width), **head)
    return classifier(backbone, head, dict(type='GlobalAveragePooling'))


def margin(width: int) -> dict:
    return resnet(width, type='ArcFaceClsHead', loss=dict(type='CrossEntropyLoss'))


def several_labels(width: int) -> dict:
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    model = resnet(width, type='MultiLabelLinearClsHead', loss=loss)
    model['data_preprocessor'].update(num_classes=CLASSES, to_onehot=True)
    return model


def labelled_more_than_once(folder: Path) -> dict:
    """The images of :func:`classes` in the form of MMPreTrain's MultiLabelDataset."""
    data = classes(folder)
    entries = [
        dict(img_path=f'{name}/{i}.png', gt_label=[0, 1] if i else [0])
        for name in 'ab'
        for i in range(2)
    ]
    text = json.dumps(dict(metainfo=dict(classes=['a', 'b']), data_list=entries))
    (folder / 'labels.json').write_text(text)
    return dict(
        type='MultiLabelDataset',
        data_root=str(folder),
        ann_file='labels.json',
        pipeline=data['pipeline'],
    )


MODELS = dict(
    ViT=(vit, classes), margin=(margin, classes), labels=(several_labels, labelled_more_than_once)
)


@pytest.fixture(scope='module')
def plain_mmpretrain(tmp_path_factory):
    package = PlainPackage('mmpretrain', tmp_path_factory.mktemp('plain'))
    yield package
    package.close()


@pytest.mark.parametrize('name', MODELS)
def test_trains_saves_and_reloads(name, tmp_path, plain_mmpretrain):
    model, data = MODELS[name]
    hook = dict(teacher=random_teacher('mmpretrain', model(16)), recipe='gdd+kd')
    work_dir = tmp_path / f'work-{name}'
    config = run_config('mmpretrain', model(8), data(tmp_path / 'data'), work_dir, hook)
    config.train_dataloader.collate_fn = dict(type='default_collate')
    runner, seen = train(config, ('gdd', 'kd'))
    (row,) = [row for row in seen.plan if row.term == 'gdd']
    assert row.student_shape[1] == (8 if name == 'ViT' else 64)
    answer = plain_mmpretrain.load(model(8), work_dir / 'iter_5.pth')
    assert answer == 'loaded ImageClassifier'


def build(config: dict) -> torch.nn.Module:
    return build_model(load_model_config(dict(default_scope='mmpretrain', model=config)))


def test_a_transformer_s_tokens_are_the_map_that_it_would_give():
    """With a recipe the last layer's; by featmap the same, after the last norm."""
    model = build(vit(8)).eval()
    (term,) = recipes.resolve('gdd', model, model)['terms']
    assert term['student'] == dict(path='backbone.layers.1', tokens=1)
    seen = []
    model.backbone.layers[1].register_forward_hook(lambda m, a, out: seen.append(out))
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    model.backbone.out_type = 'featmap'
    (expected,) = model.backbone(images)
    tokens = model.backbone.ln1(seen[0])
    torch.testing.assert_close(token_map(tokens, 1, 'ln1'), expected)
    (term,) = recipes.resolve('gdd', model, model)['terms']
    assert term['student'] == dict(path='backbone', levels=[-1])


def test_tokens_teach_a_convolution():
    """A transformer teaches the features of a network of another kind, at its size."""
    term = dict(
        loss=dict(type='CWDLoss'),
        student=dict(path='backbone', levels=[-1]),
        teacher=dict(path='backbone.ln1', tokens=1),
        resize='bilinear',
    )
    student = build(resnet(8, type='LinearClsHead')).train()
    distiller = mmkd_plugin.attach(student, build(vit(16)), [term], probe_size=(SIDE, SIDE))
    (row,) = distiller.plan()
    assert row.teacher_shape == (1, 16, 4, 4) and row.student_shape == (1, 64, 4, 4)


@pytest.mark.parametrize(
    ('tokens', 'message'),
    [('one', 'how many tokens come first'), (2, 'make no square'), (99, 'no tokens')],
)
def test_tokens_that_are_no_map_are_refused(tokens, message):
    place = dict(path='backbone.layers.1', tokens=tokens)
    with pytest.raises(ValueError, match=message):
        mmkd_plugin.attach(
            build(vit(8)), build(vit(16)), [dict(loss=dict(type='CWDLoss'), student=place)]
        )
