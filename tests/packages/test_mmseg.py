"""Segmenters of MMSegmentation: features and pixels, five iterations each."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest

if find_spec('mmseg') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMSegmentation: pip install onedl-mmsegmentation', allow_module_level=True)

from five_steps import PlainPackage, random_teacher, run_config, train
from made_up_data import pixels
from segmenters import cascade_config, segmenter_config


def deeplab(width: int) -> dict:
    head = dict(type='DepthwiseSeparableASPPHead', dilations=(1, 2), pool_scales=None)
    head.update(c1_in_channels=width, c1_channels=width)
    return without_pools(segmenter_config(width, **head))


def upernet(width: int) -> dict:
    channels = [width * scale for scale in (1, 2, 4, 8)]
    head = dict(type='UPerHead', in_channels=channels, in_index=[0, 1, 2, 3], pool_scales=(1, 2))
    return segmenter_config(width, **head)


def segformer(width: int) -> dict:
    model = segmenter_config(width, auxiliary=False)
    model['backbone'] = dict(
        type='MixVisionTransformer',
        embed_dims=width,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        drop_path_rate=0.0,
    )
    channels = [width, 2 * width, 4 * width, 8 * width]
    head = dict(type='SegformerHead', in_channels=channels, in_index=[0, 1, 2, 3])
    model['decode_head'].update(head, pool_scales=None)
    return without_pools(model)


def without_pools(model: dict) -> dict:
    del model['decode_head']['pool_scales']
    return model


MODELS = dict(DeepLabV3Plus=deeplab, UPerNet=upernet, SegFormer=segformer, OCRNet=cascade_config)


@pytest.fixture(scope='module')
def plain_mmseg(tmp_path_factory):
    package = PlainPackage('mmseg', tmp_path_factory.mktemp('plain'))
    yield package
    package.close()


@pytest.mark.parametrize('name', MODELS)
def test_trains_saves_and_reloads(name, tmp_path, plain_mmseg):
    student, teacher = MODELS[name](8), MODELS[name](16)
    hook = dict(
        teacher=random_teacher('mmseg', teacher),
        recipe='gdd+kd',
        term_options=dict(kd=dict(begin=0, by_epoch=False)),
    )
    work_dir = tmp_path / f'work-{name}'
    data = pixels(tmp_path / 'data')
    config = run_config('mmseg', copy.deepcopy(student), data, work_dir, hook)
    runner, seen = train(config, ('gdd', 'kd'))
    last = 'decode_head.1.conv_seg' if name == 'OCRNet' else 'decode_head.conv_seg'
    assert {row.student for row in seen.plan if row.term == 'kd'} == {last}
    answer = plain_mmseg.load(student, work_dir / 'iter_5.pth')
    assert answer == f'loaded {type(runner.model).__name__}'


def test_both_heads_of_a_cascade_can_be_distilled(tmp_path):
    """The last by its view, the first by its module path: CWD on its map of logits."""
    place = dict(path='decode_head.0.conv_seg', calls=[0])  # the student calls it twice
    terms = [
        dict(loss=dict(type='KDLoss', temperature=1.0), student='seg_logits', name='last'),
        dict(loss=dict(type='CWDLoss'), student=place, name='first'),
    ]
    hook = dict(teacher=random_teacher('mmseg', cascade_config(16)), terms=terms)
    data = pixels(tmp_path / 'data')
    config = run_config('mmseg', cascade_config(8), data, tmp_path / 'work', hook)
    _, seen = train(config, ('last', 'first'))
    places = {row.term: row.student for row in seen.plan}
    assert places == dict(last='decode_head.1.conv_seg', first='decode_head.0.conv_seg')
