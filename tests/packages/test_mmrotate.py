"""Rotated detectors of MMRotate: features and classes, five iterations each."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from five_steps import PlainPackage, random_teacher, run_config, train
from made_up_ships import made_up_ships, ship_dataset

from mmkd_plugin import attach, recipes
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import build_model
from mmkd_plugin.views import fitting, make_logit_view

if find_spec('mmrotate') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMRotate: pip install onedl-mmrotate', allow_module_level=True)

CONFIGS = dict(
    RetinaNet='rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    OrientedRCNN='oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    RTMDet='rotated_rtmdet/rotated_rtmdet_tiny-3x-dota.py',
)
KINDS = dict(RetinaNet='dense', OrientedRCNN='roi', RTMDet='dense')


def model_config(name: str, width: int = 8) -> dict:
    """The model of a packaged config on a thin ResNet-18."""
    model = load_model_config(f'mmrotate::{CONFIGS[name]}').model.to_dict()
    model['backbone'] = dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=width,
        stem_channels=width,
        norm_cfg=dict(type='BN', requires_grad=True),
        out_indices=(1, 2, 3) if name == 'RTMDet' else (0, 1, 2, 3),
    )
    channels = [width, 2 * width, 4 * width, 8 * width]
    if name == 'RTMDet':
        bn = dict(norm_cfg=dict(type='BN'))
        model['neck'].update(
            in_channels=channels[1:], out_channels=2 * width, num_csp_blocks=1, **bn
        )
        head = dict(in_channels=2 * width, feat_channels=2 * width, stacked_convs=1, **bn)
        # The loss of rotated IoU has no operator for CPUs; the head has an upright one, too.
        head.update(loss_bbox=dict(type='mmdet.GIoULoss'), use_hbbox_loss=True)
        head.update(loss_angle=dict(type='mmdet.L1Loss', loss_weight=0.2))
        model['bbox_head'].update(head)
        return model
    model['neck'].update(in_channels=channels, out_channels=2 * width)
    if name == 'RetinaNet':
        model['bbox_head'].update(in_channels=2 * width, feat_channels=2 * width, stacked_convs=1)
        return model
    model['rpn_head'].update(in_channels=2 * width, feat_channels=2 * width)
    model['roi_head']['bbox_roi_extractor'].update(out_channels=2 * width)
    model['roi_head']['bbox_head'].update(in_channels=2 * width, fc_out_channels=4 * width)
    for part in ('train_cfg', 'test_cfg'):
        model[part]['rpn_proposal' if part == 'train_cfg' else 'rpn'].update(
            nms_pre=50, max_per_img=50
        )
    model['train_cfg']['rcnn']['sampler'].update(num=16)
    return model


def build(name: str, width: int = 8):
    return build_model(
        load_model_config(dict(default_scope='mmrotate', model=model_config(name, width)))
    )


@pytest.fixture(scope='module')
def plain_mmrotate(tmp_path_factory):
    package = PlainPackage('mmrotate', tmp_path_factory.mktemp('plain'))
    yield package
    package.close()


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_saves_and_reloads(name, tmp_path, plain_mmrotate):
    hook = dict(teacher=random_teacher('mmrotate', model_config(name, 16)), recipe='gdd+kd')
    data = ship_dataset(made_up_ships(tmp_path / 'ships'))
    work_dir = tmp_path / f'work-{name}'
    config = run_config('mmrotate', model_config(name), data, work_dir, hook)
    runner, seen = train(config, ('gdd', 'kd'))
    assert {row.term for row in seen.plan} == {'gdd', 'kd'}
    answer = plain_mmrotate.load(model_config(name), work_dir / 'iter_5.pth')
    assert answer == f'loaded {type(runner.model).__name__}'


@pytest.mark.parametrize('name', CONFIGS)
def test_the_rows_are_those_of_the_head(name):
    model = build(name)
    (spec,) = make_logit_view('cls_logits', model).specs(model)
    assert spec.kind == KINDS[name] and spec.num_classes == 15
    assert recipes.family(model) == ('two-stage' if name == 'OrientedRCNN' else 'one-stage')


@pytest.mark.parametrize('name', CONFIGS)
def test_rotated_boxes_do_not_speak_as_detections(name):
    assert 'boxes' not in fitting(build(name))
    term = dict(loss=dict(type='KDLoss'), student='cls_logits', teacher='detections')
    with pytest.raises(ValueError, match="rotated boxes.*'detections'"):
        attach(build('RetinaNet'), build(name, 16), [term])
