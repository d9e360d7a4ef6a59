"""Logits of pixels: MMSegmentation's decode heads and the semantic head of Panoptic FPN."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as nnf

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.taps import Recorder, TapError
from mmkd_plugin.views.make import make_view

pytest.importorskip('mmseg')

from region_batches import detector, images, sample, student_step, teacher_step
from segmenters import (
    CLASSES,
    IGNORED,
    SIZE,
    cascade_config,
    seg_batch,
    segmenter,
    segmenter_config,
)
from waiting import Waits

KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='seg_logits', name='kd')


def read(student, samples, batch, view=None, needs=()):
    """What the view reads in a training step of the student."""
    view = view or make_view('seg_logits', student, needs, 'terms[0].student')
    recorder = Recorder(student, 'student')
    recorder.listen(view.points)
    recorder.arm()
    student(batch, samples, mode='loss')
    recorder.disarm()
    (predictions,) = view.read(recorder, samples)
    recorder.close()
    return predictions


def frozen_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


@pytest.mark.parametrize('config, path', [
    (segmenter_config(), 'decode_head.conv_seg'),
    (segmenter_config(loss_decode=[
        dict(type='CrossEntropyLoss', loss_name='loss_ce'),
        dict(type='DiceLoss', loss_name='loss_dice'),
    ]), 'decode_head.conv_seg'),
    (cascade_config(), 'decode_head.1.conv_seg'),
])  # fmt: skip
@pytest.mark.parametrize('name', ['seg_logits', 'cls_logits'])
def test_rows_are_the_pixels_of_the_heads_own_map(config, path, name):
    student = segmenter(copy.deepcopy(config))
    view = make_view(name, student, ('features',), 'terms[0].student')
    seen = {}
    layer = student.get_submodule(path)
    layer.register_forward_hook(lambda m, args, out: seen.update(features=args[0], out=out))
    batch, samples = seg_batch()
    p = read(student, samples, batch, view)
    (level,) = p.levels
    n, c, h, w = seen['out'].shape
    assert (n, c, h, w) == (2, CLASSES, 8, 8)
    assert level.logits.shape == (n, h * w, 1, c)
    assert level.logits.data_ptr() == seen['out'].data_ptr(), 'a view, not a copy'
    torch.testing.assert_close(level.logits[1, 3 * w + 5, 0], seen['out'][1, :, 3, 5])
    torch.testing.assert_close(level.features[1, 3 * w + 5], seen['features'][1, :, 3, 5])
    assert (p.kind, p.activation, p.num_classes, p.background) == ('pixel', 'softmax', c, False)
    # labels come in blocks of 8 x 8, like the logits
    truth = torch.stack([s.gt_sem_seg.data[0, 4::8, 4::8] for s in samples]).flatten(1)
    assert torch.equal(level.valid[..., 0], truth != IGNORED)
    assert torch.equal(level.labels[..., 0][truth != IGNORED], truth[truth != IGNORED])
    assert level.labels.max() < CLASSES
    (spec,) = view.specs(student)
    assert (spec.columns, spec.feature_dim, spec.kind) == (CLASSES, layer.in_channels, 'pixel')


def test_one_sigmoid_output_is_one_class():
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    config = segmenter_config(
        classes=2, auxiliary=False, out_channels=1, loss_decode=loss, threshold=0.3
    )
    student = segmenter(config)
    batch, samples = seg_batch(classes=2)
    p = read(student, samples, batch)
    assert p.activation == 'sigmoid' and p.num_classes == 1
    truth = torch.stack([s.gt_sem_seg.data[0, 4::8, 4::8] for s in samples]).flatten(1)
    (level,) = p.levels
    assert torch.equal(level.labels[..., 0][truth < 2], 1 - truth[truth < 2])


def test_labels_are_those_that_the_loss_gets(monkeypatch):
    student = segmenter(segmenter_config())
    batch, samples = seg_batch()
    own = type(student.decode_head)._stack_batch_gt

    def other(self, data_samples):
        return (own(self, data_samples) + 1) % CLASSES

    monkeypatch.setattr(type(student.decode_head), '_stack_batch_gt', other)
    (level,) = read(student, samples, batch).levels
    truth = torch.stack([s.gt_sem_seg.data[0, 4::8, 4::8] for s in samples]).flatten(1)
    assert torch.equal(level.labels[..., 0], (truth + 1) % CLASSES) and level.valid.all()


def attached(student, teacher, **term):
    mmkd_plugin.attach(student, teacher, [dict(KD, **term)], probe_size=(SIZE, SIZE))
    return student, teacher


def test_the_loss_is_the_formula_on_the_valid_pixels():
    student, teacher = segmenter(segmenter_config()), segmenter(segmenter_config(16), 1)
    batch, samples = seg_batch()
    (level,) = read(copy.deepcopy(student), samples, batch).levels
    attached(student, teacher)
    losses = student(batch, samples, mode='loss')
    assert 'aux.loss_ce' in losses
    with torch.no_grad():
        maps = teacher.eval()(batch)  # mode='tensor': the logits of the decode head
    assert maps.shape[-2:] == (8, 8)
    rows = maps.flatten(2).transpose(1, 2)[level.valid[..., 0]]
    expected = F.kl_divergence(level.logits[level.valid], rows)
    torch.testing.assert_close(losses['loss_kd'], expected)
    assert losses['kd_rows'] == level.valid.sum()


@pytest.mark.parametrize('config', [segmenter_config(), cascade_config()])
def test_a_copy_of_the_student_teaches_nothing(config):
    student = frozen_statistics(segmenter(copy.deepcopy(config)))
    attached(student, segmenter(copy.deepcopy(config)))
    batch, samples = seg_batch()
    losses = student(batch, samples, mode='loss')
    torch.testing.assert_close(losses['loss_kd'], torch.zeros(()), rtol=0, atol=1e-6)
    losses['loss_kd'].backward()


def test_ignored_and_padded_pixels_have_no_influence():
    """The teacher's logits there are spoilt; neither loss nor gradient notices."""

    def step(spoilt):
        student = frozen_statistics(segmenter(segmenter_config()))
        teacher = segmenter(segmenter_config(), 1)
        batch, samples = seg_batch(valid=(64, 40))
        wrong = torch.stack([s.gt_sem_seg.data[0, 4::8, 4::8] == IGNORED for s in samples])
        if spoilt:
            teacher.decode_head.conv_seg.register_forward_hook(
                lambda m, args, out: (
                    out + 100 * wrong[:, None] * torch.arange(CLASSES)[:, None, None]
                )
            )
        attached(student, teacher)
        losses = student(batch, samples, mode='loss')
        losses['loss_kd'].backward()
        return losses['loss_kd'].detach(), student.decode_head.conv_seg.weight.grad

    for plain, spoilt in zip(step(False), step(True)):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, spoilt)


def test_a_batch_of_ignored_pixels_gives_zero():
    student, teacher = segmenter(segmenter_config()), segmenter(segmenter_config(), 1)
    attached(student, teacher)
    batch, samples = seg_batch()
    for found in samples:
        found.gt_sem_seg.data.fill_(IGNORED)
    losses = student(batch, samples, mode='loss')
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    losses['loss_kd'].backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_a_teacher_of_another_stride_is_resized():
    student = segmenter(segmenter_config())
    teacher = segmenter(segmenter_config(stride=16), 1)
    batch, samples = seg_batch()
    (level,) = read(copy.deepcopy(student), samples, batch).levels
    attached(student, teacher)
    losses = student(batch, samples, mode='loss')
    with torch.no_grad():
        maps = teacher.eval()(batch)
    assert maps.shape[-2:] == (4, 4)
    maps = nnf.interpolate(maps, size=(8, 8), mode='bilinear', align_corners=False)
    rows = maps.flatten(2).transpose(1, 2)[level.valid[..., 0]]
    torch.testing.assert_close(losses['loss_kd'], F.kl_divergence(level.logits[level.valid], rows))


def test_reading_pixels_does_not_wait_for_the_device():
    student, teacher = segmenter(segmenter_config()), segmenter(segmenter_config(stride=16), 1)
    batch, samples = seg_batch()
    views = [make_view('seg_logits', model, (), 'x') for model in (student, teacher)]
    recorders = []
    for model, view, mode in zip((student, teacher), views, ('loss', 'tensor')):
        recorders.append(Recorder(model, 'student'))
        recorders[-1].listen(view.points if mode == 'loss' else view.teacher_points)
        recorders[-1].arm()
        model(batch, samples, mode=mode)
    with Waits() as waits:
        own = views[0].read(recorders[0], samples)
        views[1].read(recorders[1], samples, student=own)
    assert not waits.seen


def test_every_method_runs_on_pixels():
    for kind in ('DKDLoss', 'LoCaLoss', 'CKDLoss', 'IPWDLoss'):
        student, teacher = segmenter(segmenter_config()), segmenter(segmenter_config(16), 1)
        attached(student, teacher, loss=dict(type=kind))
        batch, samples = seg_batch()
        losses = student(batch, samples, mode='loss')
        total, _ = student.parse_losses(losses)
        total.backward()
        gradient = student.decode_head.conv_seg.weight.grad
        assert losses['loss_kd'] > 0 and gradient.isfinite().all(), kind


def test_other_classes_and_heads_are_refused():
    student = segmenter(segmenter_config())
    with pytest.raises(TapError, match='has 5 classes and the teacher .* 7'):
        attached(student, segmenter(segmenter_config(classes=7)))
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    student = segmenter(segmenter_config(loss_decode=loss))
    term = dict(KD, student='cls_logits')
    with pytest.raises(TapError, match='rows cannot be matched'):
        mmkd_plugin.attach(student, detector('RetinaNet', classes=CLASSES), [term])
    with pytest.raises(TapError, match='classifies pixels, RetinaNet does not'):
        mmkd_plugin.attach(detector('RetinaNet', classes=CLASSES), student, [term])


def test_a_head_that_classifies_twice_is_refused(monkeypatch):
    student = segmenter(segmenter_config())
    forward = student.decode_head.forward
    monkeypatch.setattr(student.decode_head, 'forward', lambda x: forward(x) + forward(x))
    batch, samples = seg_batch()
    with pytest.raises(TapError, match='reads heads that call it once'):
        read(student, samples, batch)


def panoptic(width=16, seed=0):
    def edit(config):
        config.type = 'PanopticFPN'
        config.semantic_head = dict(
            type='PanopticFPNHead',
            num_things_classes=4,
            num_stuff_classes=3,
            in_channels=width,
            inner_channels=width,
            norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
            loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
        )
        config.panoptic_fusion_head = dict(
            type='HeuristicFusionHead', num_things_classes=4, num_stuff_classes=3
        )
        config.test_cfg.panoptic = dict(mask_overlap=0.5, stuff_area_limit=64)

    return detector('Mask R-CNN', width, seed, edit=edit)


def panoptic_batch():
    from mmengine.structures import PixelData

    samples = [sample(), sample(size=(80, 64))]
    for i, found in enumerate(samples):
        # things are 0 to 3, stuff 4 to 6; blocks of 4 x 4 like the logits
        labels = (torch.arange(24)[:, None] + torch.arange(24) + i) % 7
        labels = labels.repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
        height, width = found.img_shape
        labels[:, height:] = 255
        labels[:, :, width:] = 255
        found.gt_sem_seg = PixelData(sem_seg=labels)
    return samples


def test_panoptic_fpn_has_pixels_beside_its_regions():
    student, teacher = panoptic(), panoptic(32, 1)
    view = make_view('seg_logits', student, (), 'terms[0].student')
    samples = panoptic_batch()
    own, _ = student_step(student, view, samples)
    ((level,),) = [p.levels for p in own]
    assert level.logits.shape == (2, 24 * 24, 1, 4) and own[0].num_classes == 4
    raw = torch.stack([s.gt_sem_seg.sem_seg[0, ::4, ::4] for s in samples]).flatten(1)
    expected = torch.where(raw >= 4, raw - 4, 3)  # stuff first, all things in the last column
    assert torch.equal(level.valid[..., 0], raw != 255)
    assert torch.equal(level.labels[..., 0][raw != 255], expected[raw != 255])
    rows = teacher_step(teacher, make_view('seg_logits', teacher, (), 'x'), samples, own)
    assert rows[0].levels[0].logits.shape == level.logits.shape
    assert type(make_view('cls_logits', student, (), 'x')).__name__ == 'RoILogits'

    student, teacher = panoptic(), panoptic(32, 1)
    mmkd_plugin.attach(student, teacher, [KD, dict(KD, student='cls_logits', name='boxes')])
    losses = student(images(samples), samples, mode='loss')
    assert losses['loss_kd'] > 0 and losses['loss_boxes'] > 0
    assert losses['kd_rows'] == (raw != 255).sum()


PLAIN = """
import sys, json
sys.modules['mmkd_plugin'] = None  # importing it raises from here on
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
register_all_modules()
model = MODELS.build(Config(dict(model=json.loads(sys.argv[1]))).model)
saved = torch.load(sys.argv[2], map_location='cpu', weights_only=False)
model.load_state_dict(saved['state_dict'], strict=True)
print('loaded', type(model).__name__)
"""


def seg_run(digits_root, work_dir, hook):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    crop = dict(type='RandomCrop', crop_size=(48, 48))  # padded to 64 x 64 by the preprocessor
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(digits_root),
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=tuple('abcdefghijk')),
        pipeline=[*pipeline, crop, dict(type='PackSegInputs')],
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=segmenter_config(classes=11),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=False),
                dataset=dataset,
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
                checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            ),
            custom_hooks=[hook],
            work_dir=str(work_dir),
            log_level='WARNING',
            randomness=dict(seed=0),
            experiment_name='tiny',
        )
    )


def test_a_run_with_the_hook_leaves_a_plain_checkpoint(digits_root, tmp_path):
    teacher = dict(model=segmenter_config(16, classes=11), default_scope='mmseg')
    gdd = dict(loss=dict(type='GDDLoss'), student='backbone', weight=1.0, name='gdd')
    gdd['student'] = dict(path='backbone', levels=[-1])
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(config=teacher, allow_random=True),
        terms=[dict(KD, select='all'), gdd],
    )
    config = seg_run(digits_root, tmp_path, hook)
    runner = Runner.from_cfg(config)
    before = copy.deepcopy(runner.model.decode_head.conv_seg.weight.detach())
    runner.train()
    scalars = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).open()]
    assert len(scalars) == 2 and all(0 < step['loss_kd'] < 100 for step in scalars)
    # two crops of 48 x 48 in 64 x 64: 6 x 6 of 8 x 8 cells each
    assert all(step['kd_rows'] == 2 * 36 and step['loss_gdd'] > 0 for step in scalars)
    assert not torch.equal(before, runner.model.decode_head.conv_seg.weight)
    model = json.dumps(segmenter_config(classes=11))
    answer = subprocess.run(
        [sys.executable, '-c', PLAIN, model, str(tmp_path / 'iter_2.pth')],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert answer.stdout.strip().endswith('loaded EncoderDecoder'), answer.stderr[-2000:]
