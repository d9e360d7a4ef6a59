"""Views of heads that are read in a form of their own: what all of them promise."""

from __future__ import annotations

import packaged
import pytest
import torch
from torch import nn

from mmkd_plugin.views import make_logit_view
from mmkd_plugin.views.mask_query import mask_distance

HEADS = {
    'SSD': ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', 1),
    'YOLOv3': ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', 1),
    'TOOD': ('tood/tood_r50_fpn_1x_coco.py', 8),
    'CenterNet': ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', 1),
    'CornerNet': ('cornernet/cornernet_hourglass104_32xb3-210e-mstest_coco.py', 8),
    'Sparse R-CNN': ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 8),
    'QueryInst': ('queryinst/queryinst_r50_fpn_1x_coco.py', 8),
    'MaskFormer': ('maskformer/maskformer_r50_ms-16xb1-75e_coco.py', 8),
    'Mask2Former': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 8),
    'HTC': ('htc/htc_r50_fpn_1x_coco.py', 8),
    'SCNet': ('scnet/scnet_r50_fpn_1x_coco.py', 8),
    'PISA': ('pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py', 8),
    'Seesaw': ('seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py', 8),
}
# Of the others some op of mmcv (NMS, RoIAlign, corner pooling) knows float32 only on a CPU.
NARROW = ('SSD', 'YOLOv3', 'CenterNet', 'MaskFormer', 'Mask2Former')
heads = pytest.mark.parametrize(('config', 'factor'), HEADS.values(), ids=HEADS)


@heads
def test_a_copy_teaches_nothing(config, factor):
    student = packaged.student(config, factor)
    data = packaged.batch(student, config)
    losses = packaged.step(student, packaged.teacher(config, factor, seed=0), data)
    assert losses['loss_kd'].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ('config', 'factor', 'narrow'),
    [(*HEADS[name], False) for name in HEADS] + [(*HEADS[name], True) for name in NARROW],
    ids=[*HEADS, *(f'{name}, bfloat16' for name in NARROW)],
)
def test_another_teacher_gives_the_student_a_gradient(config, factor, narrow):
    student, teacher = packaged.student(config, factor), packaged.teacher(config, factor)
    data = packaged.batch(student, config)
    with torch.autocast('cpu', torch.bfloat16, enabled=narrow):
        losses = packaged.step(student, teacher, data)
    loss = losses['loss_kd']
    assert loss.isfinite() and loss > 1e-3 and losses['kd_rows'] > 0
    loss.backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert sum(g.abs().sum().item() for g in grads) > 0 and all(g.isfinite().all() for g in grads)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_logits_of_tood_are_those_that_a_sigmoid_makes_its_maps_of():
    config, factor = HEADS['TOOD']
    model = packaged.student(config, factor)
    data = packaged.batch(model, config)
    (own,), view, recorder = packaged.read(model, data)
    maps = [capture.tensor for capture in recorder.read(view.points[:1])]
    for level, probabilities in zip(own.levels, maps):
        rows = probabilities.flatten(2).transpose(1, 2)
        torch.testing.assert_close(level.logits.sigmoid().squeeze(2), rows)
    assert any((level.labels < 80).any() for level in own.levels)
    with pytest.raises(ValueError, match='joins two maps'):
        make_logit_view('cls_logits', model, ('features',))


@pytest.mark.parametrize('epoch', [0, 9], ids=['initial loss', 'later loss'])
def test_tood_says_its_labels_to_either_of_its_losses(epoch):
    config, factor = HEADS['TOOD']
    model = packaged.student(config, factor)
    packaged.at_epoch(epoch)
    (own,), _, _ = packaged.read(model, packaged.batch(model, config))
    assert own.no_labels is None
    assert sum(int((level.labels < 80).sum()) for level in own.levels) > 0


def test_yolov3_rows_are_slices_of_its_maps_with_objectness_and_labels():
    config, factor = HEADS['YOLOv3']
    model = packaged.student(config, factor)
    data = packaged.batch(model, config)
    (own,), view, recorder = packaged.read(model, data)
    packed = [capture.tensor for capture in recorder.read(view.points[:1])]
    found = 0
    for level, maps in zip(own.levels, packed):
        rows = maps.permute(0, 2, 3, 1).reshape(len(maps), -1, 3, 85)
        assert torch.equal(level.logits, rows[..., 5:]) and torch.equal(level.quality, rows[..., 4])
        assert level.labels.shape == level.label_weights.shape == rows.shape[:3]
        found += int((level.labels < 80).sum())
    assert 0 < found <= 6  # a box each of three objects in two images, at most
    boxes = own.levels[0].boxes.decode()
    size = (data['inputs'].shape[-1] / 2) ** 2
    assert boxes.shape == (*own.levels[0].logits.shape[:3], 4) and boxes.abs().max() < size


def test_ssd_has_a_background_column_and_no_labels():
    config, factor = HEADS['SSD']
    model = packaged.student(config, factor)
    (own,), view, _ = packaged.read(model, packaged.batch(model, config))
    assert own.background and own.activation == 'softmax' and view.spec.columns == 81
    assert [level.logits.shape[2] for level in own.levels] == [6] * 6
    assert 'without a module' in own.no_labels
    with pytest.raises(ValueError, match='labels cannot be heard'):
        make_logit_view('cls_logits', model, ('labels',))


class Heard(list):
    """What the loss modules at some paths are given: (prediction, target, weight)."""

    def __init__(self, model: nn.Module, *paths: str) -> None:
        super().__init__()
        for path in paths:
            model.get_submodule(path).register_forward_pre_hook(self._hear, with_kwargs=True)

    def _hear(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        weight = args[2] if len(args) > 2 else kwargs.get('weight')
        self.append((args[0].detach(), args[1], weight))


STAGES = [f'roi_head.bbox_head.{stage}.loss_cls' for stage in range(6)]
QUERIES = {
    'Sparse R-CNN': STAGES,
    'QueryInst': STAGES,
    'MaskFormer': ['panoptic_head.loss_cls'],
    'Mask2Former': ['panoptic_head.loss_cls'],
    'Seesaw': ['roi_head.bbox_head.loss_cls'],
    'HTC': STAGES[:3],
    'SCNet': STAGES[:3],
}


@pytest.mark.parametrize('name', QUERIES)
def test_rows_and_labels_are_those_of_the_loss_of_the_classes(name):
    config, factor = HEADS[name]
    model = packaged.student(config, factor)
    heard = Heard(model, *QUERIES[name])
    predictions, view, _ = packaged.read(model, packaged.batch(model, config))
    assert len(predictions) == len(heard) == len(view.specs(model))
    for own, (logits, labels, weights) in zip(predictions, heard):
        (level,) = own.levels
        assert torch.equal(level.labels.flatten(), labels)
        assert torch.equal(level.label_weights.flatten(), weights)
        assert 0 < int((labels < own.num_classes).sum()) < len(labels)
        if name == 'Seesaw':  # whose probabilities are those of a softmax over the rows
            loss = model.roi_head.bbox_head.loss_cls
            rows = level.logits.squeeze(2).softmax(-1)
            torch.testing.assert_close(rows.flatten(0, 1), loss.get_activation(logits))
        else:
            assert torch.equal(level.logits.flatten(0, 2), logits.reshape(-1, logits.shape[-1]))


@pytest.mark.parametrize(
    ('name', 'tables'),
    [
        ('MaskFormer', ['panoptic_head.query_embed.weight']),
        ('Mask2Former', ['panoptic_head.query_embed.weight', 'panoptic_head.query_feat.weight']),
        (
            'Sparse R-CNN',
            ['rpn_head.init_proposal_bboxes.weight', 'rpn_head.init_proposal_features.weight'],
        ),
    ],
)
def test_the_order_of_the_queries_of_a_teacher_does_not_matter(name, tables):
    config, factor = HEADS[name]
    student, teacher = packaged.student(config, factor), packaged.teacher(config, factor, seed=0)
    for path in tables:
        parameter = teacher.get_parameter(path)
        parameter.data = parameter.data.flip(0)
    losses = packaged.step(student, teacher, packaged.batch(student, config))
    assert losses['loss_kd'].item() == pytest.approx(0, abs=1e-4)


def test_masks_that_share_nothing_are_at_distance_one_and_half_of_a_mask_at_a_third():
    left = torch.full((4, 4), -50.0)
    left[:, :2] = 50
    half = torch.full((4, 4), -50.0)
    half[:2, :2] = 50
    found = mask_distance(left[None, None], torch.stack([left, -left, half])[None])
    torch.testing.assert_close(found, torch.tensor([[[0.0, 1.0, 1 / 3]]]))


def test_the_peaks_of_centernet_are_its_labels_and_its_bumps_count_less():
    config, factor = HEADS['CenterNet']
    model = packaged.student(config, factor)
    heard = Heard(model, 'bbox_head.loss_center_heatmap')
    data = packaged.batch(model, config)
    (own,), _, _ = packaged.read(model, data)
    (level,), ((seen, target, _),) = own.levels, heard
    torch.testing.assert_close(level.logits.sigmoid().squeeze(2).mT.reshape(seen.shape), seen)
    objects = level.labels < 80
    assert objects.sum() == (target == 1).sum() == 6  # three objects in each of two images
    assert (level.label_weights[objects] == 1).all()
    most = target.flatten(2).amax(1)
    expected = torch.where(most == 1, 1.0, (1 - most) ** 4)
    torch.testing.assert_close(level.label_weights.squeeze(-1), expected)
    boxes = data['data_samples'][0].gt_instances.bboxes
    found = level.centers[objects[0, :, 0]].sort(0)[0]
    assert (found - ((boxes[:, :2] + boxes[:, 2:]) / 2).sort(0)[0]).abs().max() <= 2  # half a cell


def test_cornernet_has_a_level_for_each_corner_and_stack():
    config, factor = HEADS['CornerNet']
    model = packaged.student(config, factor)
    heard = Heard(model, 'bbox_head.loss_heatmap')
    (own,), _, _ = packaged.read(model, packaged.batch(model, config))
    assert len(own.levels) == len(heard) == 4
    corners = [int((level.labels < 80).sum()) for level in own.levels]
    assert corners == [6] * 4
    for level, (seen, target, _) in zip(own.levels, [heard[i] for i in (0, 2, 1, 3)]):
        assert torch.equal(level.logits.squeeze(2).mT.reshape(seen.shape).sigmoid(), seen)
        assert torch.equal((target == 1).any(1).flatten(1), level.labels.squeeze(-1) < 80)


def test_boxes_of_a_detector_teach_centers_and_no_corners():
    faster = packaged.teacher('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    term = dict(teacher='detections', select='positive')
    config, factor = HEADS['CenterNet']
    student = packaged.student(config, factor)
    losses = packaged.step(student, faster, packaged.batch(student, config), **term)
    assert losses['loss_kd'].isfinite() and losses['loss_kd'] >= 0
    config, factor = HEADS['CornerNet']
    student = packaged.student(config, factor)
    with pytest.raises(ValueError, match='are corners'):
        packaged.step(student, faster, packaged.batch(student, config), **term)


@pytest.mark.parametrize('head', ['fsaf/fsaf_r50', 'free_anchor/freeanchor_r50'])
def test_a_loss_that_needs_labels_is_refused_on_heads_that_tell_none(head):
    model = packaged.student(f'{head}_fpn_1x_coco.py')
    make_logit_view('cls_logits', model)
    with pytest.raises(ValueError, match='name no object for a prediction. Use a loss and a sel'):
        make_logit_view('cls_logits', model, ('labels',))
