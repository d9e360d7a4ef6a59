"""Pose estimators of MMPose: heat maps and distributions of coordinates, five iterations each."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from five_steps import PlainPackage, random_teacher, run_config, train
from made_up_data import people_dataset
from made_up_people import KEYPOINTS, made_up_people

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin import recipes
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import build_model
from mmkd_plugin.views import fitting, make_logit_view

if find_spec('mmpose') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMPose: pip install mmpose', allow_module_level=True)

from mmengine.structures import InstanceData, PixelData
from mmpose.structures import PoseDataSample

WIDTH, HEIGHT, WEIGHTED = 64, 96, 14  # the input; keypoints with a weight
MAPS = dict(type='MSRAHeatmap', input_size=(WIDTH, HEIGHT), heatmap_size=(16, 24), sigma=2)
BINS = dict(
    type='SimCCLabel',
    input_size=(WIDTH, HEIGHT),
    sigma=(4.9, 5.66),
    simcc_split_ratio=2.0,
    normalize=False,
    use_dark=False,
)
CODECS = dict(HeatmapHead=MAPS, RTMCCHead=BINS, SimCCHead=dict(BINS, normalize=True))
TERMS = dict(HeatmapHead=1, RTMCCHead=2, SimCCHead=2)


def head_config(kind: str, channels: int, **other) -> dict:
    shared = dict(type=kind, in_channels=channels, out_channels=KEYPOINTS, decoder=CODECS[kind])
    coordinates = dict(input_size=(WIDTH, HEIGHT), in_featuremap_size=(2, 3), simcc_split_ratio=2.0)
    if kind == 'HeatmapHead':
        own = dict(
            deconv_out_channels=(16, 16, 16),
            deconv_kernel_sizes=(4, 4, 4),
            loss=dict(type='KeypointMSELoss', use_target_weight=True),
        )
    elif kind == 'RTMCCHead':
        loss = dict(type='KLDiscretLoss', use_target_weight=True, beta=10.0, label_softmax=True)
        gau = dict(hidden_dims=16, s=8, expansion_factor=2, dropout_rate=0.0, drop_path=0.0)
        gau.update(act_fn='SiLU', use_rel_bias=False, pos_enc=False)
        own = dict(coordinates, loss=loss, gau_cfg=gau)
    else:
        loss = dict(type='KLDiscretLoss', use_target_weight=True)
        own = dict(coordinates, loss=loss, deconv_out_channels=None)
    return {**shared, **own, **other}


def pose_config(kind: str, width: int = 8, **head) -> dict:
    """A top-down estimator on a thin ResNet-18."""
    return dict(
        type='TopdownPoseEstimator',
        data_preprocessor=dict(
            type='PoseDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=width, stem_channels=width),
        head=head_config(kind, 8 * width, **head),
        test_cfg=dict(flip_test=False),
    )


def build(kind: str, width: int = 8, seed: int = 0, **head) -> torch.nn.Module:
    config = dict(default_scope='mmpose', model=pose_config(kind, width, **head))
    with torch.random.fork_rng(devices=[]):
        model = build_model(load_model_config(config))
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter)
    return model.train()


def batch(kind: str, images: int = 2) -> tuple[torch.Tensor, list]:
    """Noise, and people of whom the first three keypoints are not annotated."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(1, KEYPOINTS)
    weights[:, : KEYPOINTS - WEIGHTED] = 0
    samples = []
    for _ in range(images):
        sample = PoseDataSample(metainfo=dict(img_shape=(HEIGHT, WIDTH)))
        labels = InstanceData(keypoint_weights=weights.clone())
        if kind == 'HeatmapHead':
            maps = torch.rand(KEYPOINTS, 24, 16, generator=generator)
            sample.gt_fields = PixelData(heatmaps=maps)
        else:
            labels.keypoint_x_labels = torch.rand(1, KEYPOINTS, 2 * WIDTH, generator=generator)
            labels.keypoint_y_labels = torch.rand(1, KEYPOINTS, 2 * HEIGHT, generator=generator)
        sample.gt_instance_labels = labels
        samples.append(sample)
    return torch.randn(images, 3, HEIGHT, WIDTH, generator=generator), samples


@pytest.fixture(scope='module')
def plain_mmpose(tmp_path_factory):
    package = PlainPackage('mmpose', tmp_path_factory.mktemp('plain'))
    yield package
    package.close()


@pytest.mark.parametrize('kind', CODECS)
def test_trains_saves_and_reloads(kind, tmp_path, plain_mmpose):
    hook = dict(teacher=random_teacher('mmpose', pose_config(kind, 16)), recipe='gdd+kd')
    data = people_dataset(made_up_people(tmp_path / 'people'), CODECS[kind])
    work_dir = tmp_path / f'work-{kind}'
    runner, seen = train(
        run_config('mmpose', pose_config(kind), data, work_dir, hook), ('gdd', 'kd')
    )
    rows = [row for row in seen.plan if row.term == 'kd']
    assert len(rows) == TERMS[kind]
    assert plain_mmpose.load(pose_config(kind), work_dir / 'iter_5.pth') == (
        'loaded TopdownPoseEstimator'
    )
    assert 'keypoints' in (work_dir / 'distillation.txt').read_text()


@pytest.mark.parametrize('kind', CODECS)
def test_the_loss_is_the_kl_of_the_heads_own_distributions(kind):
    """Of the annotated keypoints; the others count for nothing, as in the head's own loss."""
    student, teacher = build(kind), build(kind, 16, seed=1)
    images, samples = batch(kind)
    with torch.no_grad():
        expected = _kl(kind, build(kind)(images, None, mode='tensor'), teacher.eval()(images, None))
    term = dict(loss=dict(type='KDLoss', temperature=1.0), student='keypoints')
    mmkd_plugin.attach(student, teacher, [term])
    losses = student(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_kd'], expected)
    assert float(losses['kd_rows']) == 2 * WEIGHTED
    losses['loss_kd'].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone.parameters())


def _kl(kind: str, own, theirs) -> torch.Tensor:
    scale = 1.0 if kind == 'SimCCHead' else 10.0
    pairs = [(own, theirs)] if kind == 'HeatmapHead' else list(zip(own, theirs))
    values = [
        F.kl_divergence(
            scale * s[:, KEYPOINTS - WEIGHTED :].flatten(2).flatten(0, 1),
            scale * t[:, KEYPOINTS - WEIGHTED :].flatten(2).flatten(0, 1),
            1.0,
        )
        for s, t in pairs
    ]
    return torch.stack(values).mean()


def test_a_pose_estimator_is_no_classifier():
    for kind in CODECS:
        model = build(kind)
        assert recipes.family(model) == 'pose'
        assert fitting(model) == ['keypoints']
        with pytest.raises(ValueError, match="no view 'cls_logits' fits.*keypoints"):
            make_logit_view('cls_logits', model)


def test_heat_maps_of_another_size_are_resized():
    half = dict(deconv_out_channels=(16, 16), deconv_kernel_sizes=(4, 4))
    half.update(decoder=dict(MAPS, heatmap_size=(8, 12)))
    student, teacher = build('HeatmapHead'), build('HeatmapHead', 16, seed=1, **half)
    images, samples = batch('HeatmapHead')
    with torch.no_grad():
        small = teacher.eval()(images, None)
        large = torch.nn.functional.interpolate(small, (24, 16), mode='bilinear')
        expected = _kl('HeatmapHead', build('HeatmapHead')(images, None, mode='tensor'), large)
    term = dict(loss=dict(type='KDLoss', temperature=1.0), student='keypoints')
    mmkd_plugin.attach(student, teacher, [term])
    torch.testing.assert_close(student(images, samples, mode='loss')['loss_kd'], expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        (('HeatmapHead', {}), ('RTMCCHead', {}), 'heads to distil|coordinates'),
        (('HeatmapHead', {}), ('HeatmapHead', dict(out_channels=5)), '17 keypoints.* 5'),
        (
            ('RTMCCHead', {}),
            ('RTMCCHead', dict(input_size=(128, 96))),
            r'\(128, 192\) places in x and y apart.*\(256, 192\)',
        ),
        (('HeatmapHead', dict(decoder=None)), ('HeatmapHead', {}), 'no codec'),
    ],
)
def test_pairs_that_do_not_fit_are_refused(student, teacher, message):
    models = [build(kind, **head) for kind, head in (student, teacher)]
    with pytest.raises(ValueError, match=message):
        mmkd_plugin.attach(*models, [dict(loss=dict(type='KDLoss'), student='keypoints')])
    assert not hasattr(models[0], 'distiller')


def test_a_method_of_classes_is_refused():
    models = build('HeatmapHead'), build('HeatmapHead', 16)
    with pytest.raises(ValueError, match="'dkd' is for .*keypoints"):
        recipes.resolve('dkd', *models)
    with pytest.raises(ValueError, match='no label of a place'):
        term = dict(loss=dict(type='DKDLoss'), student='keypoints')
        mmkd_plugin.attach(*models, [term])
        models[0](*batch('HeatmapHead'), mode='loss')


def test_other_heads_are_refused_by_name():
    head = dict(
        type='RegressionHead', in_channels=64, num_joints=KEYPOINTS, loss=dict(type='SmoothL1Loss')
    )
    config = dict(pose_config('HeatmapHead'), neck=dict(type='GlobalAveragePooling'), head=head)
    model = build_model(load_model_config(dict(default_scope='mmpose', model=config)))
    with pytest.raises(ValueError, match='RegressionHead, has neither'):
        make_logit_view('keypoints', model)
    assert recipes.family(model) == 'pose'
