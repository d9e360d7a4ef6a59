"""Views where a head is unusual: anchors differ by level, probabilities are small, classes."""

from __future__ import annotations

import packaged
import pytest
import torch
from mmengine.utils import digit_version
from region_batches import detector, sample, student_step, teacher_step
from torch import nn

import mmkd_plugin
from mmkd_plugin.taps import Recorder
from mmkd_plugin.taps.partial_forward import PartialForward
from mmkd_plugin.views import make_logit_view

HEADS = {
    'CenterNet': ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', 1),
    'TOOD': ('tood/tood_r50_fpn_1x_coco.py', 8),
}
SEESAW = ('seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py', 8)
SSD300 = ('ssd/ssd300_coco.py', 1)  # 4 and 6 anchors at a position


def unsure(model: nn.Module) -> None:
    """All probabilities become about 5e-4, as the background of a trained head."""
    head = model.bbox_head
    if hasattr(head, 'heatmap_head'):
        last = head.heatmap_head[-1]
        nn.init.constant_(last.bias, -7.6)
        last.weight.data.mul_(0.05)
    else:
        nn.init.constant_(head.tood_cls.bias, -7.6)
        nn.init.constant_(head.cls_prob_module[-1].bias, -7.6)


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [
        ('CenterNet', None),
        ('CenterNet', torch.bfloat16),
        ('CenterNet', torch.float16),
        ('TOOD', None),
        ('TOOD', torch.float16),
    ],
)
def test_small_probabilities_get_a_gradient_in_half_precision(name, dtype):
    if dtype == torch.float16 and digit_version(torch.__version__) < digit_version('2.2'):
        pytest.skip('autocast on CPUs knows bfloat16 only')
    config, factor = HEADS[name]
    model = packaged.student(config, factor)
    unsure(model)
    with torch.autocast('cpu', dtype, enabled=dtype is not None):
        (own,), view, recorder = packaged.read(model, packaged.batch(model, config))
    maps = recorder.read(view.points[:1])[0].tensor
    assert maps.dtype == (dtype or torch.float32) and maps.float().median() < 1e-3
    (slope,) = torch.autograd.grad(own.levels[0].logits.sum(), maps)
    assert (slope != 0).float().mean() > 0.99 and slope.isfinite().all()


def test_levels_with_other_numbers_of_anchors_teach_by_detections():
    model, teacher = packaged.student(*SSD300), packaged.teacher(*SSD300)
    data = packaged.batch(model, SSD300[0])
    losses = packaged.step(model, teacher, data, teacher='detections', select='score_weighted')
    assert losses['loss_kd'].isfinite() and losses['kd_rows'] > 0


def test_boxes_of_levels_with_other_numbers_of_anchors():
    model, teacher = packaged.student(*SSD300), packaged.teacher(*SSD300)
    data = packaged.batch(model, SSD300[0])
    loss = dict(type='BoxDistillLoss', when='always')
    term = dict(loss=loss, student='boxes', teacher='boxes', name='boxes')
    mmkd_plugin.attach(model, teacher, [term], probe_size=data['inputs'].shape[-2:])
    assert model(**data, mode='loss')['loss_boxes'].isfinite()


def test_detections_of_seesaw_have_the_probabilities_of_its_own_activation():
    config, factor = SEESAW
    teacher = packaged.teacher(config, factor)
    data = packaged.batch(teacher, config)
    head = teacher.roi_head.bbox_head
    nn.init.normal_(head.fc_cls.weight, std=1.0)
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda *told: seen.append(told[-1][0]))
    view = make_logit_view('detections', teacher, role='teacher')
    recorder = Recorder(teacher, 'teacher')
    recorder.listen(view.teacher_points)
    recorder.arm()
    with torch.no_grad():
        forward = PartialForward(teacher, [point.path for point in view.teacher_points])
        forward(data['inputs'], data['data_samples'])
        recorder.disarm()
        found = view.reader.read(recorder, data['data_samples'], None)
    logits = torch.cat([candidates.logits for candidates in found])
    assert logits.shape[1] == view.reader.spec.columns
    torch.testing.assert_close(logits.softmax(1), head.loss_cls.get_activation(seen[-1]))


def test_a_student_with_one_box_gets_the_teacher_s_box_of_its_own_class():
    def agnostic(config) -> None:
        config.roi_head.bbox_head.reg_class_agnostic = True

    student, teacher = detector('Faster R-CNN', edit=agnostic), detector('Faster R-CNN', 32, seed=1)
    nn.init.normal_(teacher.roi_head.bbox_head.fc_reg.weight, std=0.3)
    view, samples = make_logit_view('boxes', student, ('truth',)), [sample(), sample()]
    own, _ = student_step(student, view, samples)
    rows = own[0].handover.rows
    labels = rows.levels[0].labels
    objects = labels.flatten() < rows.num_classes
    assert objects.any()
    boxes, classes = make_logit_view('boxes', teacher), make_logit_view('cls_logits', teacher)
    boxes.check_pair(view, (student, teacher))
    got = teacher_step(teacher, boxes, samples, own)[0].levels[0].logits
    (theirs,) = teacher_step(teacher, classes, samples, [rows])[0].levels
    wanted = theirs.boxes.of_classes(labels.clamp(max=rows.num_classes - 1)).decode()
    for found, expected in zip(got[0, :, 0][objects], wanted[0, :, 0][objects]):
        torch.testing.assert_close(found, expected)
