"""The view mask_logits on RoI heads: pixels of the masks of the student's positive RoIs."""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import model_config, run_config
from region_batches import CLASSES, detector, empty, images, sample, student_step, teacher_step
from toys import train

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.views import make_view
from mmkd_plugin.views.roi_masks import RoIMasks

KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='mask_logits', select='all')
SIDE = 28


def cascade(config):
    """Gives a Cascade R-CNN the masks of Cascade Mask R-CNN."""
    masks = model_config('Mask R-CNN', 16, CLASSES).roi_head
    width = config.neck.out_channels
    masks.mask_roi_extractor.out_channels = width
    masks.mask_head.update(in_channels=width, conv_out_channels=width)
    config.roi_head.update(mask_roi_extractor=masks.mask_roi_extractor, mask_head=masks.mask_head)
    for stage in config.train_cfg.rcnn:
        stage.mask_size = SIDE


def shared(config):
    """One extractor for boxes and masks, as in Mask R-CNN with C4 features."""
    head = config.roi_head
    head.mask_roi_extractor = None
    head.mask_head.upsample_cfg = dict(type='deconv', scale_factor=2)
    config.train_cfg.rcnn.mask_size = 14


def agnostic(config):
    config.roi_head.mask_head.class_agnostic = True


def small(config):
    config.roi_head.mask_head.upsample_cfg = dict(type=None)
    config.train_cfg.rcnn.mask_size = 14


FORMS = {
    'plain': ('Mask R-CNN', None),
    'cascade': ('Cascade R-CNN', cascade),
    'shared': ('Mask R-CNN', shared),
    'agnostic': ('Mask R-CNN', agnostic),
}


def pair(form, other=None):
    """A student of one form, and a wider teacher of this or another one."""
    family, edit = FORMS[form]
    wide, changed = FORMS[other or form]
    return detector(family, edit=edit), detector(wide, width=32, seed=1, edit=changed)


def batch():
    return [
        sample(),
        sample(boxes=[(5, 5, 60, 40)], labels=[2], size=(80, 64)),
        empty(),
        empty(crowd=[(0, 0, 50, 50)]),
    ]


def step(student, samples):
    torch.manual_seed(0)
    return student.train()(images(samples), samples, mode='loss')


def mask_heads(model):
    found = model.roi_head.mask_head
    return list(found) if isinstance(found, torch.nn.ModuleList) else [found]


@pytest.mark.parametrize('form', FORMS)
def test_rows_are_the_own_classs_pixels_and_the_teacher_masks_the_same_rois(form):
    student, teacher = pair(form)
    own, theirs = make_view('mask_logits', student), make_view('mask_logits', teacher)
    assert isinstance(own, RoIMasks)
    given, calls = [], []
    for head in mask_heads(student):
        head.loss_mask.register_forward_pre_hook(lambda module, args: given.append(args))
        head.register_forward_hook(lambda *_: calls.append(1))
    samples = batch()
    predictions, _ = student_step(student, own, samples)
    taught = teacher_step(teacher, theirs, samples, predictions)
    assert len(predictions) == len(taught) == len(given) == len(calls) == len(mask_heads(student))
    for stage, (s, t) in enumerate(zip(predictions, taught)):
        (a,), (b,) = s.levels, t.levels
        masks, truth, classes = given[stage]
        count, _, side, _ = masks.shape
        assert count >= 3, 'the objects themselves are among the positives'
        assert a.logits.shape == b.logits.shape == (1, count * side * side, 1, 1)
        assert (s.kind, s.activation, s.num_classes, s.background) == ('pixel', 'sigmoid', 1, False)
        picked = torch.stack([mask[c] for mask, c in zip(masks, classes)])
        torch.testing.assert_close(a.logits.flatten(), picked.flatten(), rtol=0, atol=0)
        assert torch.equal(a.labels.flatten() == 0, truth.flatten() > 0.5)
        rois = s.handover.rois
        owners = rois[:, 0].long()
        assert torch.equal(a.images.reshape(count, -1), owners[:, None].expand(-1, side * side))
        assert set(owners.tolist()) == {0, 1}
        roi_head = teacher.eval().roi_head
        arguments = (stage,) if form == 'cascade' else ()
        with torch.no_grad():
            maps = teacher.extract_feat(images(samples))
            result = roi_head._mask_forward(*arguments, maps, rois)['mask_preds']
        expected = torch.stack([mask[c] for mask, c in zip(result, classes)])
        torch.testing.assert_close(b.logits.flatten(), expected.flatten())
        assert a.logits.requires_grad and not b.logits.requires_grad


def test_rois_of_a_shared_extractor_are_the_positive_ones():
    """Masks are made from the pooled box features: their RoIs are told by the labels."""
    student, _ = pair('shared')
    view = make_view('mask_logits', student)
    seen = []
    loss = student.roi_head.mask_head.loss_and_target

    def spy(mask_preds, sampling_results, *args, **kwargs):
        seen.append(torch.cat([result.pos_priors for result in sampling_results]))
        return loss(mask_preds, sampling_results, *args, **kwargs)

    student.roi_head.mask_head.loss_and_target = spy
    ((own,), _) = student_step(student, view, batch())
    torch.testing.assert_close(own.handover.rois[:, 1:], seen[0])


@pytest.mark.parametrize('form', FORMS)
def test_an_identical_teacher_teaches_nothing_and_a_perturbed_one_does(form):
    family, edit = FORMS[form]
    student = detector(family, edit=edit)
    teacher = copy.deepcopy(student)
    mmkd_plugin.attach(student, teacher, [KD])
    losses = step(student, batch())
    assert losses['loss_kd'].abs() < 1e-6 and losses['kd_rows'] > 0
    with torch.no_grad():
        for head in mask_heads(teacher):
            head.conv_logits.bias.add_(1)
    assert step(student, batch())['loss_kd'] > 1e-3


def test_the_loss_is_the_formula_and_trains_the_mask_branch():
    student, teacher = pair('plain')
    own, theirs = make_view('mask_logits', student), make_view('mask_logits', teacher)
    samples = batch()
    predictions, _ = student_step(student, own, samples)
    (target,) = teacher_step(teacher, theirs, samples, predictions)
    rows = [p.levels[0].logits.reshape(-1, 1) for p in (predictions[0], target)]
    expected = F.binary_kl(*rows, 1.0)
    mmkd_plugin.attach(student, teacher, [KD])
    losses = step(student, samples)
    torch.testing.assert_close(losses['loss_kd'], expected)
    losses['loss_kd'].sum().backward()
    gradient = student.roi_head.mask_head.conv_logits.weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert student.roi_head.bbox_head.fc_cls.weight.grad is None


def test_masks_of_another_size_are_resized_for_the_same_boxes():
    student = detector('Mask R-CNN')
    teacher = detector('Mask R-CNN', width=32, seed=1, edit=small)
    own, theirs = make_view('mask_logits', student), make_view('mask_logits', teacher)
    samples = batch()
    predictions, _ = student_step(student, own, samples)
    # The teacher sees an object in the left half of each box.
    halves = torch.tensor([9.0, -9.0]).repeat_interleave(7)
    teacher.roi_head.mask_head.forward = lambda x: halves.expand(len(x), CLASSES, 14, 14)
    (target,) = teacher_step(teacher, theirs, samples, predictions)
    masks = target.levels[0].logits.reshape(-1, SIDE, SIDE)
    assert (masks[:, :, :13] > 8).all() and (masks[:, :, 15:] < -8).all()


def test_features_are_what_the_mask_logits_are_made_of():
    student, _ = pair('plain')
    view = make_view('mask_logits', student, ('features',))
    ((own,), _) = student_step(student, view, batch())
    (level,), (spec,) = own.levels, view.specs(student)
    assert level.features.shape == (1, level.logits.shape[1], spec.feature_dim)
    layer = student.roi_head.mask_head.conv_logits
    rows = level.features[0] @ layer.weight[:, :, 0, 0].t() + layer.bias
    classes = own.handover.classes.repeat_interleave(SIDE * SIDE)
    torch.testing.assert_close(
        rows.gather(1, classes[:, None]), level.logits[0, :, 0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('form', ['plain', 'cascade', 'shared'])
def test_a_batch_without_objects_is_worth_nothing(form):
    student, teacher = pair(form)
    mmkd_plugin.attach(student, teacher, [KD])
    losses = step(student, [empty(), empty(crowd=[(0, 0, 90, 90)])])
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    total, _ = student.parse_losses(losses)
    total.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def test_an_agnostic_teacher_teaches_any_student_but_not_the_reverse():
    student, teacher = pair('plain', 'agnostic')
    mmkd_plugin.attach(student, teacher, [KD])
    assert step(student, batch())['loss_kd'] > 0
    student, teacher = pair('agnostic', 'plain')
    with pytest.raises(TapError, match="'roi_head.mask_head' has 4 masks .*one mask for all"):
        mmkd_plugin.attach(student, teacher, [KD])


@pytest.mark.parametrize('class_map', [(-1, 1, 2, 3), (1, -1, -1, -1), (-1, -1, -1, -1)])
def test_a_class_map_does_not_concern_masks_without_a_class(class_map):
    """The objects are of the classes 1 and 3, but the mask loss is told 0 for each."""

    def unclassed(config):
        agnostic(config)
        config.roi_head.mask_head.num_classes = 1

    def losses(student, handle):
        mmkd_plugin.attach(student, handle, [KD])
        return step(student, [sample(), sample()])

    student = detector('Mask R-CNN', edit=unclassed)
    teacher = detector('Mask R-CNN', width=32, seed=1, edit=unclassed)
    expected = losses(copy.deepcopy(student), teacher)
    found = losses(student, Teacher(teacher, class_map=class_map))
    assert found['kd_rows'] == expected['kd_rows'] > 0
    torch.testing.assert_close(found['loss_kd'], expected['loss_kd'])


def test_an_agnostic_teacher_teaches_the_classes_that_it_knows():
    """Its mask head's number of classes means nothing."""

    def unclassed(config):
        agnostic(config)
        config.roi_head.mask_head.num_classes = 1

    teacher = detector('Mask R-CNN', width=32, seed=1, edit=unclassed)
    rows = []
    for class_map in ((0, 1, 2, 3), (0, 1, 2, -1), (0, -1, 2, -1)):
        student = detector('Mask R-CNN')
        mmkd_plugin.attach(student, Teacher(teacher, class_map=class_map), [KD])
        rows.append(step(student, [sample(), sample()])['kd_rows'])
    assert rows[0] > rows[1] > rows[2] == 0
    with pytest.raises(TapError, match='class_map shares no class'):
        handle = Teacher(teacher, class_map=(-1, -1, -1, -1))
        mmkd_plugin.attach(detector('Mask R-CNN'), handle, [KD])


@pytest.mark.parametrize('class_map', [None, (0, 1, 2, 3)])
def test_an_agnostic_student_has_no_class_to_choose_a_teachers_mask_by(class_map):
    student, teacher = pair('agnostic', 'plain')
    with pytest.raises(TapError, match='which of them belong together is not known'):
        mmkd_plugin.attach(student, Teacher(teacher, class_map=class_map), [KD])


def test_other_classes_stages_and_heads_are_refused():
    student, _ = pair('plain')
    with pytest.raises(TapError, match='has 7 masks and the student .* has 4 masks'):
        mmkd_plugin.attach(student, detector('Mask R-CNN', classes=7), [KD])
    with pytest.raises(TapError, match='has 1 heads.*has 3 '):
        mmkd_plugin.attach(student, pair('cascade')[1], [KD])
    with pytest.raises(TapError, match="no view 'mask_logits' fits FasterRCNN"):
        mmkd_plugin.attach(student, detector('Faster R-CNN'), [KD])


def test_a_runner_trains_boxes_and_masks_on_the_digits(digits_root, tmp_path):
    teacher = dict(model=model_config('Mask R-CNN', 32), default_scope='mmdet')
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(config=teacher, allow_random=True),
        terms=[
            dict(KD, name='kd_mask'),
            dict(KD, student='cls_logits', name='kd_box'),
        ],
    )
    config = run_config(
        model_config('Mask R-CNN'),
        digits_root / 'annotations' / 'train.json',
        digits_root / 'train',
        tmp_path,
        masks=True,
        custom_hooks=[hook],
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
    )
    scalars = train(config).message_hub.log_scalars
    for name in ('loss_kd_mask', 'loss_kd_box'):
        values = scalars[f'train/{name}'].data[0]
        assert len(values) == 2 and all(v > 0 for v in values)
