"""Teachers that speak by their masks or their final answers: segmenters and whatever mmdet has."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from region_batches import CLASSES, detector, empty, images, sample
from torch import nn

import mmkd_plugin
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher.handle import set_inference
from mmkd_plugin.views import make_view
from mmkd_plugin.views.detections_answers import (
    AnswerReader,
    MaskQueryReader,
    boxes_of_masks,
    class_vectors,
)

KD = dict(
    loss=dict(type='KDLoss', temperature=1.0),
    student='cls_logits',
    teacher='detections',
    select='all',
    name='kd',
)


def test_boxes_of_masks_end_where_the_masks_do():
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 4:9, 6:12] = True
    masks[1, 0, 0] = masks[1, 19, 29] = True
    expected = [[6, 4, 12, 9], [0, 0, 30, 20], [0, 0, 0, 0]]
    assert boxes_of_masks(masks).tolist() == expected
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


def test_a_score_becomes_a_class_vector():
    labels, scores = torch.tensor([1, 0]), torch.tensor([0.6, 1.0])
    p = class_vectors(labels, scores, 4).sigmoid()
    torch.testing.assert_close(p[0], torch.tensor([0.1, 0.6, 0.1, 0.1]))
    assert (
        p[1, 0] > 0.999
        and p[1, 1:].max() < 1e-3
        and class_vectors(*[x[:0] for x in (labels, scores)], 4).shape == (0, 4)
    )


def features(*_args):
    return [torch.zeros(1, 8, 12, 12)]


def test_stuff_joins_the_background_of_mask_queries(monkeypatch):
    teacher = detector('Mask2Former')
    view = make_view('detections', teacher)
    assert isinstance(view.reader, MaskQueryReader) and view.spec.num_classes == CLASSES
    view.reader.masks = True
    logits = torch.randn(1, 2, CLASSES + 3)  # two classes of stuff, and no object
    masks = torch.full((1, 2, 96, 96), -9.0)
    masks[0, 0, 10:30, 20:50] = 9.0
    head = teacher.panoptic_head
    monkeypatch.setattr(head, 'predict', lambda *_: (logits, masks))
    found, nothing = view.reader.answer(teacher, tuple(features()), [None])[0], 1
    p = logits[0].softmax(1)
    q = found.logits.softmax(1)
    torch.testing.assert_close(q[:, :CLASSES], p[:, :CLASSES])
    torch.testing.assert_close(q[:, CLASSES], p[:, CLASSES:].sum(1))
    assert found.boxes[0].tolist() == [20, 10, 50, 30] and found.boxes[nothing].eq(0).all()
    assert found.quality[0].sigmoid() > 0.99
    assert found.masks[0].gt(0.5).sum() == 20 * 30 and found.masks.dtype == torch.float32


@pytest.mark.parametrize('family', ['SOLO', 'Mask2Former'])
def test_segmenters_teach_boxes_and_are_left_as_they_were(family):
    pupil, teacher = detector('FCOS'), detector(family, width=32, seed=1)
    distiller = mmkd_plugin.attach(pupil, teacher, [KD])
    assert distiller.teacher.depth in ('neck', 'backbone')
    flags = {name: module.training for name, module in teacher.named_modules()}
    samples = [sample(), empty()]
    pupil.train()(images(samples), samples, mode='loss')  # finds the teacher's form, too
    calls = []
    teacher.backbone.register_forward_hook(lambda *_: calls.append(1))
    losses = pupil(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    assert len(calls) == 1 and losses['kd_rows'] > 0 and losses['loss_kd'] > 0
    assert flags == {name: module.training for name, module in teacher.named_modules()}
    assert 'extract_feat' not in vars(teacher) and 'pred_instances' not in samples[0]


def test_answers_are_read_in_pixels_of_the_batch(monkeypatch):
    teacher = detector('SOLO')
    view = make_view('detections', teacher)
    assert isinstance(view.reader, AnswerReader)
    masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    masks[0, 5:15, 10:40] = True
    given = []

    def predict(inputs, data_samples, rescale):
        given.extend(data_samples)
        assert not rescale and all(not m.training for m in teacher.modules())
        answer = InstanceData(
            bboxes=torch.zeros(1, 4),
            labels=torch.tensor([2]),
            scores=torch.tensor([0.5]),
            masks=masks,
        )
        return [DetDataSample(pred_instances=answer)]

    monkeypatch.setattr(teacher, 'predict', predict)
    set_inference(teacher)
    own = sample(size=(40, 60))
    own.set_metainfo(dict(ori_shape=(400, 600), scale_factor=(0.1, 0.1)))

    class Heard:
        model = teacher

        @staticmethod
        def raw(point):
            return [tuple(features())]

    (found,) = view.detect(Heard(), [own])
    assert found.boxes.tolist() == [[10, 5, 40, 15]] and found.size == (40, 60)
    assert found.logits.argmax(1).tolist() == [2]
    torch.testing.assert_close(found.scores, torch.tensor([0.5]))
    assert given[0].ori_shape == (40, 60) and 'gt_instances' not in given[0]
    assert own.ori_shape == (400, 600)


def test_a_teacher_that_does_not_say_how_it_is_tested_is_refused():
    teacher = detector('SOLO')
    teacher.mask_head.test_cfg = None
    with pytest.raises(TapError, match='mask_head makes in a test.*no test_cfg'):
        make_view('detections', teacher)
    plain = nn.Linear(2, 2)
    with pytest.raises(TapError, match="no view 'detections' fits Linear"):
        make_view('detections', plain)
