"""Every logit method on every kind of head, attached: values, gradients, and bad batches."""

from __future__ import annotations

import math

import pytest
import torch
from detectors import skip_if_too_large
from region_batches import BOXES, detector, empty, images, sample

import mmkd_plugin
from mmkd_plugin.taps import TapError

KD = dict(type='KDLoss', temperature=1.0)
LOCA = dict(type='LoCaLoss', temperature=1.0)
IPWD = dict(type='IPWDLoss', temperature=1.0, normalize='batch_mean', clip_max=5.0)
CKD = dict(type='CKDLoss')
DKD = dict(type='DKDLoss', temperature=1.0, beta=0.25)
METHODS = dict(kd=KD, loca=LOCA, ipwd=IPWD, ckd=CKD)
DENSE = ('RetinaNet', 'GFL', 'ATSS', 'FCOS', 'VFNet', 'RTMDet', 'YOLOX', 'RepPoints')
ROI = ('Faster R-CNN', 'Mask R-CNN', 'Cascade R-CNN')
QUERY = ('Deformable DETR', 'DINO')
FAMILIES = (*DENSE, *ROI, *QUERY)


def pair(family, *terms, classes=4, teacher_width=32, edit=None, **kwargs):
    skip_if_too_large(family)
    student = detector(family, seed=0)
    teacher = detector(family, width=teacher_width, seed=1, classes=classes, edit=edit)
    distiller = mmkd_plugin.attach(student, teacher, list(terms), **kwargs)
    return student, distiller


def term(name, loss, view='cls_logits', **kwargs):
    return dict(loss=loss, student=view, name=name, **kwargs)


def step(student, samples, seed=0):
    torch.manual_seed(seed)  # RoI samplers draw
    if getattr(student, 'roi_head', None) is None:  # RTMDet's assigner would use the masks
        for data in samples:
            data.gt_instances.pop('masks', None)
    return student(images(samples), samples, mode='loss')


def two():
    return [sample(), sample(boxes=BOXES[:1], labels=(2,))]


def gradients(student, loss):
    student.zero_grad()
    loss.backward(retain_graph=True)
    own = [p for n, p in student.named_parameters() if not n.startswith('distiller.')]
    return torch.stack([p.grad.abs().sum() for p in own if p.grad is not None]).sum()


@pytest.mark.parametrize('family', FAMILIES)
def test_all_methods_train_the_student(family):
    terms = [term(name, loss) for name, loss in METHODS.items()]
    if family in ROI:
        terms.append(term('dkd', DKD))
    student, distiller = pair(family, *terms)
    losses = step(student, two())
    for entry in terms:
        loss = losses[f'loss_{entry["name"]}']
        assert loss.isfinite() and loss > 0, entry
        assert gradients(student, loss) > 0, entry
        assert losses[f'{entry["name"]}_rows'] > 0
    assert all(p.grad is None for p in distiller.teacher.model.parameters())
    assert losses['loss_ipwd_cls'] > 0 and 0 <= losses['loca_mis_instruction'] <= 1


@pytest.mark.parametrize('family', ['GFL', 'Faster R-CNN', 'Cascade R-CNN', 'Deformable DETR'])
def test_a_teacher_equal_to_the_student_teaches_nothing(family):
    student = detector(family)
    teacher = detector(family)
    teacher.load_state_dict(student.state_dict())
    # A batch statistic or dropout of the student would make it another function.
    terms = [term('kd', KD, select='all')]
    mmkd_plugin.attach(student, teacher, terms)
    for module in student.modules():
        if not hasattr(module, 'bbox_head') and not module._get_name().endswith(('Head', 'FPN')):
            module.training = module is student
    losses = step(student, two())
    assert losses['loss_kd'].abs() < 1e-6


def test_a_dense_loss_is_the_formula_on_the_rows_of_the_head():
    """The whole way, written out once for RetinaNet with all valid rows."""
    student, distiller = pair('RetinaNet', term('kd', KD, select='all', weight=2.0))
    seen = {}
    student.bbox_head.register_forward_hook(lambda m, a, out: seen.update(student=out[0]))
    distiller.teacher.model.bbox_head.register_forward_hook(
        lambda m, a, out: seen.update(teacher=out[0])
    )
    weights = []
    student.bbox_head.loss_cls.register_forward_pre_hook(lambda m, a: weights.append(a[2]))
    losses = step(student, two())
    rows = [
        torch.cat([m.permute(0, 2, 3, 1).reshape(-1, 4) for m in seen[role]])
        for role in ('student', 'teacher')
    ]
    counts = torch.cat([w.reshape(-1) for w in weights]) > 0
    log = torch.nn.functional.logsigmoid
    s, t = rows[0][counts], rows[1][counts]
    kl = t.sigmoid() * (log(t) - log(s)) + (-t).sigmoid() * (log(-t) - log(-s))
    # This image fills the canvas, so that no position lies in padding.
    torch.testing.assert_close(losses['loss_kd'], 2 * kl.sum(1).mean())
    assert losses['kd_rows'] == counts.sum()


BATCHES = dict(
    empty_image=lambda: [sample(), empty()],
    no_objects=lambda: [empty(), empty()],
    crowd_only=lambda: [empty(crowd=[(0.0, 0.0, 96.0, 96.0)]), sample()],
    sizes=lambda: [sample(), sample(boxes=BOXES[:1], labels=(0,), size=(64, 80))],
    mostly_padding=lambda: [sample(), empty(size=(8, 8))],
)


@pytest.mark.parametrize('family', ['RetinaNet', 'FCOS', 'YOLOX', 'Faster R-CNN', 'DINO'])
@pytest.mark.parametrize('kind', BATCHES)
def test_batches_at_the_edge(family, kind):
    terms = [term(name, loss) for name, loss in METHODS.items()]
    student, _ = pair(family, *terms)
    losses = step(student, BATCHES[kind]())
    total, _ = student.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('family', ['RetinaNet', 'Faster R-CNN'])
@pytest.mark.parametrize('name', METHODS)
def test_no_positives_is_a_loss_of_zero(family, name):
    student, _ = pair(family, term(name, METHODS[name], select='positive'))
    losses = step(student, [empty(), empty()])
    assert losses[f'loss_{name}'] == 0 and losses[f'{name}_rows'] == 0
    assert gradients(student, losses[f'loss_{name}']) == 0


@pytest.mark.parametrize('family', ['RetinaNet', 'FCOS'])
def test_what_lies_in_padding_or_a_crowd_region_does_not_matter(family):
    crowd = (48.0, 48.0, 96.0, 96.0)
    samples = [sample(size=(96, 64)), sample(boxes=BOXES[:1], labels=(0,), crowd=[crowd])]
    student, distiller = pair(family, term('kd', KD, select='all'), term('ckd', CKD))
    before = step(student, samples)

    def spoil(module, args, output):
        maps = [scores.clone() for scores in output[0]]
        for scores in maps:
            stride = 96 // scores.shape[-1]
            scores[0, :, :, -(-64 // stride) :] += 50  # right of the first image
            half = -(-48 // stride)
            scores[1, :, half:, half:] -= 50
        return (maps, *output[1:])

    distiller.teacher.model.bbox_head.register_forward_hook(spoil, prepend=True)
    after = step(student, samples)
    for key in ('loss_kd', 'loss_ckd'):
        torch.testing.assert_close(after[key], before[key])


@pytest.mark.parametrize('family', ['GFL', 'FCOS', 'Faster R-CNN'])
def test_a_new_assigner_changes_what_is_selected(family):
    """Labels are the head's own: nothing of its target assignment is copied."""
    student, _ = pair(family, term('kd', KD, select='positive'))
    before = step(student, two())['kd_rows']
    if family == 'Faster R-CNN':
        student.roi_head.bbox_assigner.pos_iou_thr = 0.05
        student.roi_head.bbox_assigner.neg_iou_thr = 0.05
    elif family == 'FCOS':
        student.bbox_head.regress_ranges = ((-1, 1),) * 5
    else:
        student.bbox_head.assigner.topk = 1
    assert step(student, two())['kd_rows'] != before


def test_nan_logits_are_reported_with_their_side():
    student, distiller = pair('Faster R-CNN', term('kd', KD))
    torch.nn.init.constant_(distiller.teacher.model.roi_head.bbox_head.fc_cls.bias, math.nan)
    losses = step(student, two())
    assert not losses['loss_kd'].isfinite()
    with pytest.raises(FloatingPointError, match="teacher logits 'roi_head.bbox_head'.*'kd'"):
        distiller.raise_if_not_finite()


def test_nan_boxes_of_the_teacher_do_not_matter_to_class_logits():
    student, distiller = pair('GFL', term('kd', KD))
    before = step(student, two())['loss_kd']
    torch.nn.init.constant_(distiller.teacher.model.bbox_head.gfl_reg.bias, math.nan)
    torch.testing.assert_close(step(student, two())['loss_kd'], before)


def test_other_numbers_of_stages_or_layers_are_refused():
    def more_layers(config):
        config.decoder.num_layers = 3

    with pytest.raises(TapError, match='has 2 heads to distil.* has 3'):
        pair('Deformable DETR', term('kd', KD), edit=more_layers)
    student, teacher = detector('Cascade R-CNN'), detector('Faster R-CNN')
    with pytest.raises(TapError, match='3 heads to distil.*1 '):
        mmkd_plugin.attach(student, teacher, [term('kd', KD)])


def test_other_classes_need_a_class_map():
    with pytest.raises(TapError, match='has 4 classes and the teacher .* 6.*class_map'):
        pair('Faster R-CNN', term('kd', KD), classes=6)
    student = detector('Faster R-CNN')
    handle = mmkd_plugin.teacher.Teacher(
        detector('Faster R-CNN', width=32, seed=1, classes=6), class_map=(5, -1, 0, 2)
    )
    terms = [term(name, loss) for name, loss in dict(METHODS, dkd=DKD).items()]
    mmkd_plugin.attach(student, handle, terms)
    losses = step(student, two())
    assert all(losses[f'loss_{entry["name"]}'].isfinite() for entry in terms)
    # the object of class 1, which the teacher would call background, is no row of any method
    whole, _ = pair('Faster R-CNN', term('kd', KD))
    assert losses['dkd_rows'] == losses['kd_rows'] < step(whole, two())['kd_rows']


def test_masks_of_other_classes():
    """The teacher's mask of a region is that of its own name for the region's class."""
    student = detector('Mask R-CNN')
    teacher = detector('Mask R-CNN', width=32, seed=1, classes=6)
    table = (5, 3, 0, -1)  # the boxes are of classes 1, 3 and 2
    handle = mmkd_plugin.teacher.Teacher(teacher, class_map=table)
    mmkd_plugin.attach(student, handle, [term('masks', KD, 'mask_logits')])
    plain, asked = teacher.roi_head._mask_forward, []

    def only_mapped(x, rois):
        found = plain(x, rois)
        asked.append(len(rois))
        for unused in (1, 2, 4, 5):
            found['mask_preds'][:, unused] = math.nan
        return found

    teacher.roi_head._mask_forward = only_mapped
    losses = step(student, two())
    assert losses['loss_masks'].isfinite() and losses['loss_masks'] > 0
    assert 0 < losses['masks_rows'] < asked[0] * 28 * 28


def test_top_rows_of_regions_are_counted_by_image():
    student, _ = pair('Faster R-CNN', term('kd', KD, select=dict(by='teacher_topk', k=3)))
    assert step(student, two())['kd_rows'] == 6


def test_a_head_without_a_view_names_those_that_there_are():
    student, teacher = detector('GFL'), detector('GFL')
    for model in (student, teacher):
        model.bbox_head = torch.nn.Conv2d(16, 4, 1)
    with pytest.raises(TapError) as caught:
        mmkd_plugin.attach(student, teacher, [term('kd', KD)])
    message = str(caught.value)
    for word in ('GFL', 'DenseLogits', 'RoILogits', 'QueryLogits', 'register_view'):
        assert word in message, message


@pytest.mark.parametrize(
    'student, teacher, entry, words',
    [
        ('GFL', 'GFL', dict(student=dict(veiw='cls_logits')), ["'veiw'", "view 'cls_logits'"]),
        ('GFL', 'GFL', dict(student=dict(path='cls_logits')), ["the view 'cls_logits'"]),
        ('GFL', 'GFL', dict(student=['cls_logits', 'dfl_logits']), ['without levels or lists']),
        ('GFL', 'GFL', dict(student='cls_logits', class_map=[0]), ['teacher=dict(...)']),
        ('Faster R-CNN', 'GFL', dict(student='cls_logits'), ["teacher='detections'"]),
        (
            'GFL',
            'Faster R-CNN',
            dict(student='dfl_logits', teacher='detections'),
            ['detections carry classes', "'cls_logits'"],
        ),
        (
            'Faster R-CNN',
            'Faster R-CNN',
            dict(student='mask_logits'),
            ['it: cls_logits, boxes. Tap'],
        ),
    ],
)
def test_slips_are_answered_with_what_works(student, teacher, entry, words):
    model = detector(student)
    with pytest.raises(ValueError) as caught:
        mmkd_plugin.attach(model, detector(teacher, width=32, seed=1), [dict(loss=KD, **entry)])
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_bins_are_no_classes():
    for loss in (LOCA, IPWD):
        with pytest.raises(TapError, match="'dfl_logits'.*Take KDLoss|'dfl_logits' has not"):
            pair('GFL', term('x', loss, 'dfl_logits'))


@pytest.mark.parametrize('class_map, word', [((5, 3), 'names 2'), ((5, 3, 99, 1), 'class 99')])
def test_a_class_map_for_masks_is_checked(class_map, word):
    handle = mmkd_plugin.teacher.Teacher(
        detector('Mask R-CNN', width=32, seed=1, classes=6), class_map=class_map
    )
    with pytest.raises(TapError, match=word):
        mmkd_plugin.attach(detector('Mask R-CNN'), handle, [term('masks', KD, 'mask_logits')])


def test_a_checkpointed_box_head_is_fine_at_its_boundary():
    student, teacher = detector('Faster R-CNN'), detector('Faster R-CNN', width=32, seed=1)
    mmkd_plugin.attach(student, teacher, [term('kd', KD)], checkpointed=['roi_head.bbox_head'])
    assert step(student, two())['loss_kd'] > 0
    with pytest.raises(TapError, match="lies inside 'bbox_head'"):
        pair('GFL', term('ipwd', IPWD), checkpointed=['bbox_head'])


def test_a_head_whose_labels_cannot_be_heard_still_has_logits():
    """Its loss gets something that no view knows: losses without labels do not mind."""
    student, _ = pair('RetinaNet', term('kd', KD))
    plain = student.bbox_head.loss_cls

    class Strange(torch.nn.Module):
        use_sigmoid = True

        def forward(self, rows, everything, avg_factor=None):
            labels, weights = everything['labels'], everything['weights']
            return plain(rows, labels, weights, avg_factor=avg_factor)

    class Hidden(torch.nn.Module):
        use_sigmoid = True

        def __init__(self):
            super().__init__()
            self.inner = Strange()

        def forward(self, rows, labels, weights, avg_factor=None):
            return self.inner(rows, dict(labels=labels, weights=weights), avg_factor=avg_factor)

    def strange(loss):
        model = detector('RetinaNet')
        model.bbox_head.loss_cls = Hidden().inner
        single = type(model.bbox_head).loss_by_feat_single

        def by_feat(cls_score, bbox_pred, anchors, labels, label_weights, *rest, avg_factor):
            wrapped = dict(labels=labels.reshape(-1), weights=label_weights.reshape(-1))
            rows = cls_score.permute(0, 2, 3, 1).reshape(-1, model.bbox_head.cls_out_channels)
            own, model.bbox_head.loss_cls = model.bbox_head.loss_cls, Hidden()
            found = single(
                model.bbox_head, cls_score, bbox_pred, anchors, labels, label_weights, *rest,
                avg_factor=avg_factor,
            )  # fmt: skip
            model.bbox_head.loss_cls = own
            return own(rows, wrapped, avg_factor=avg_factor), found[1]

        model.bbox_head.loss_by_feat_single = by_feat
        teacher = detector('RetinaNet', width=32, seed=1)
        mmkd_plugin.attach(model, teacher, [term('x', loss)])
        return model

    assert step(strange(KD), two())['loss_x'] > 0
    with pytest.raises(ValueError, match='LoCaLoss needs labels.*loss_cls.*score_weighted'):
        step(strange(LOCA), two())


def test_methods_that_do_not_suit_a_head_say_so():
    with pytest.raises(TapError, match='DKDLoss.*softmax.*KDLoss'):
        pair('GFL', term('dkd', DKD))
    with pytest.raises(TapError, match='directions of logit vectors.*KDLoss'):
        pair('Mask R-CNN', term('ckd', CKD, 'mask_logits'))
    with pytest.raises(TapError, match="GDDLoss compares feature maps.*'neck'"):
        pair('GFL', term('gdd', dict(type='GDDLoss')))
    with pytest.raises(TapError, match="student='cls_logits', teacher='detections'"):
        pair('GFL', term('kd', KD, 'detections'))
    with pytest.raises(TapError, match='a view and a module path'):
        pair('GFL', dict(term('kd', KD), teacher='bbox_head.gfl_cls'))
    with pytest.raises(ValueError, match="'positives'.*nearest.*'positive'|positive"):
        pair('GFL', term('kd', KD, select='positives'))
    with pytest.raises(ValueError, match="select='all' chooses among the rows of a view"):
        pair('GFL', dict(loss=KD, student='neck', select='all'))
    with pytest.raises(TapError, match="LoCaLoss.*'mask_logits'|one column.*KDLoss"):
        pair('Mask R-CNN', term('loca', LOCA, 'mask_logits'))


@pytest.mark.parametrize(
    'family, path', [('GFL', 'bbox_head.gfl_cls'), ('Faster R-CNN', 'rpn_head.rpn_cls')]
)
def test_no_softmax_over_the_channels_of_a_sigmoid_head(family, path):
    with pytest.raises(TapError, match=f"{path}.*sigmoid.*student='cls_logits'.*use_sigmoid"):
        pair(family, dict(loss=KD, student=path))
    student, _ = pair(family, dict(loss=dict(KD, use_sigmoid=True), student=path))
    assert step(student, two())['loss_kd'] > 0


@pytest.mark.parametrize(
    'family, entry, chosen',
    [
        ('GFL', dict(student='cls_logits'), 'score_weighted'),
        ('GFL', dict(student='dfl_logits'), 'positive'),  # background has no box
        ('GFL', dict(student='cls_logits', teacher='detections'), 'positive'),
        ('Deformable DETR', dict(student='cls_logits'), 'score_weighted'),  # most are background
        ('Faster R-CNN', dict(student='cls_logits'), 'all'),
    ],
)
def test_which_rows_count_if_nothing_is_said(family, entry, chosen):
    values = []
    for select in ({}, dict(select=chosen)):
        student, distiller = pair(family, dict(entry, loss=KD, name='kd', **select))
        losses = step(student, two())
        values.append((losses['loss_kd'], losses['kd_rows']))
        view = 'cls_logits <- detections' if 'teacher' in entry else entry['student']
        (row, *_) = distiller.plan()
        assert row.rows.startswith(f'{view}, select={chosen}') and row.weight == '1'
    torch.testing.assert_close(*values)
    assert values[0][1] > 0


def test_rows_that_repeat_are_not_contrasted():
    with pytest.raises(TapError, match="'detections'.*CKDLoss would contrast copies.*KDLoss"):
        pair('GFL', term('ckd', CKD, teacher='detections'))


# Not Faster R-CNN: mmcv's NMS has no bfloat16 on the CPU.
@pytest.mark.parametrize('family', ['GFL', 'RetinaNet', 'Deformable DETR'])
def test_half_precision(family):
    student, _ = pair(family, *[term(name, loss) for name, loss in METHODS.items()])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = step(student, two())
        total, _ = student.parse_losses(losses)
    assert all(losses[f'loss_{name}'].dtype == torch.float32 for name in METHODS)
    total.backward()
    assert total.isfinite()


def test_the_students_roi_head_runs_once_and_the_teacher_sees_its_rois():
    student, distiller = pair('Faster R-CNN', term('kd', KD))
    calls, rois = [], []
    student.roi_head.bbox_head.register_forward_hook(lambda *a: calls.append('student'))
    for role, model in (('student', student), ('teacher', distiller.teacher.model)):
        model.roi_head.bbox_roi_extractor.register_forward_pre_hook(
            lambda m, a, role=role: rois.append((role, a[1]))
        )
    step(student, two())
    assert calls == ['student'] and [role for role, _ in rois] == ['student', 'teacher']
    assert torch.equal(rois[0][1], rois[1][1])


def test_denoising_and_the_order_of_the_teachers_queries_do_not_matter():
    skip_if_too_large('DINO')
    student, distiller = pair('DINO', term('kd', KD))
    before = step(student, two())['loss_kd']

    def turn(module, args, output):
        classes, boxes, *rest = output
        return (classes.flip(2), boxes.flip(2), *rest)

    distiller.teacher.model.bbox_head.register_forward_hook(turn, prepend=True)
    torch.testing.assert_close(step(student, two())['loss_kd'], before)


def test_masks_and_bins_and_boxes_in_one_step():
    terms = [term('kd', KD), term('masks', KD, 'mask_logits')]
    student, _ = pair('Mask R-CNN', *terms)
    losses = step(student, two())
    assert losses['loss_masks'] > 0 and losses['masks_rows'] > 0
    assert gradients(student, losses['loss_masks']) > 0
    student, _ = pair('GFL', term('kd', KD), term('bins', KD, 'dfl_logits', select='positive'))
    losses = step(student, two())
    assert losses['loss_bins'] > 0 and losses['bins_rows'] > 0


@pytest.mark.parametrize(
    'teacher, student', [('Faster R-CNN', 'GFL'), ('GFL', 'FCOS'), ('Faster R-CNN', 'FCOS')]
)
def test_heterogeneous_pairs_speak_through_boxes(teacher, student):
    model = detector(student)
    boxes = dict(term('kd', KD, select='positive'), teacher='detections')
    features = dict(loss=dict(type='PKDLoss'), name='pkd', student=dict(path='neck', levels=[0, 1]))
    features['teacher'] = dict(path='neck', levels=[1, 2] if 'R-CNN' in teacher else [0, 1])
    mmkd_plugin.attach(model, detector(teacher, width=32, seed=1), [boxes, features])
    losses = step(model, two())
    assert losses['loss_kd'].isfinite() and losses['loss_pkd'] > 0
    total, _ = model.parse_losses(losses)
    total.backward()


@pytest.mark.parametrize(
    'student, teacher, strides, levels',
    [
        ('GFL', 'Faster R-CNN', [8, 16, 32], ([0, 1, 2], [1, 2, 3])),
        ('Faster R-CNN', 'RetinaNet', [8, 16, 32], ([1, 2, 3], [0, 1, 2])),
        ('RTMDet', 'RetinaNet', [8, 16, 32], ([0, 1, 2], [0, 1, 2])),
        ('RetinaNet', 'RTMDet', [8, 16, 32], ([0, 1, 2], [0, 1, 2])),
        ('Mask R-CNN', 'YOLOX', [8, 16, 32], ([1, 2, 3], [0, 1, 2])),
        ('Deformable DETR', 'FCOS', [8, 16, 32, 64], ([0, 1, 2, 3], [0, 1, 2, 3])),
        ('ATSS', 'SOLO', [8, 16, 32], ([0, 1, 2], [1, 2, 3])),
    ],
)
def test_one_name_of_a_recipe_pairs_the_levels_of_any_two_necks(student, teacher, strides, levels):
    model = detector(student)
    distiller = mmkd_plugin.attach(model, detector(teacher, width=32, seed=1), recipe='pkd:1')
    settings = distiller.settings()['terms']['pkd']
    assert (settings['student']['levels'], settings['teacher']['levels']) == levels
    assert [256 // row.student_shape[2] for row in distiller.plan()] == strides
    loss = step(model, two())['loss_pkd']
    assert loss.isfinite() and gradients(model, loss) > 0


def test_other_strides_are_refused_with_the_way_out():
    def strides(config):
        config.bbox_head.anchor_generator.strides = [16, 32, 64, 128, 256]

    with pytest.raises(TapError, match=r"strides.*8.*teacher='detections'"):
        pair('GFL', term('kd', KD), edit=strides)
