"""SOLO's grids (classes and masks) and CondInst's masks, pixel by pixel."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from region_batches import CLASSES, detector, empty, images, sample, student_step, teacher_step
from torch import nn
from torch.nn import functional as nnf
from waiting import Waits

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.taps import Recorder, TapError
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.views import PairContext
from mmkd_plugin.views.dynamic_masks import _recognise
from mmkd_plugin.views.make import make_view

MASKS = dict(loss=dict(type='KDLoss', temperature=1.0), student='mask_logits', name='kd')
GRIDS = [8, 6, 5, 4, 3]


def batch():
    return [sample(), sample(labels=(2, 0), size=(80, 64))]


def view_of(model, name='mask_logits', role='student', needs=()):
    return make_view(name, model, needs, f'terms[0].{role}')


def solo(width=16, seed=0, **head):
    return detector('SOLO', width, seed, edit=lambda config: config.mask_head.update(head))


def condinst(width=16, seed=0, **head):
    return detector('CondInst', width, seed, edit=lambda config: config.mask_head.update(head))


MODELS = dict(SOLO=solo, CondInst=condinst)


def targets_of(model):
    """What the head hands to its mask loss in the next step."""
    seen = []
    model.mask_head.loss_mask.register_forward_pre_hook(lambda m, args: seen.append(args[:2]))
    return seen


# SOLO's classes


@pytest.mark.parametrize('config', ['solo/solo_r50_fpn_1x_coco.py',
                                    'solo/decoupled-solo_r50_fpn_1x_coco.py',
                                    'solov2/solov2_r50_fpn_1x_coco.py'])  # fmt: skip
def test_classes_of_the_cells(config):
    student = of_config(config)
    view = view_of(student, 'cls_logits', needs=('features',))
    seen = {}
    head = student.mask_head
    head.loss_cls.register_forward_pre_hook(lambda m, args: seen.update(loss=args))
    (p,), _ = student_step(student, view, batch())
    scores, labels = seen['loss'][:2]
    assert [x.logits.shape for x in p.levels] == [(2, s * s, 1, CLASSES) for s in GRIDS]
    assert (p.kind, p.activation, p.background) == ('dense', 'sigmoid', False)
    # the order in which the head lays out its own rows: by grid, then image, then cell
    assert torch.equal(torch.cat([x.logits.flatten(0, 2) for x in p.levels]), scores)
    assert torch.equal(torch.cat([x.labels.flatten() for x in p.levels]), labels)
    assert (labels < CLASSES).any()
    (spec,) = view.specs(student)
    assert (spec.columns, spec.feature_dim) == (CLASSES, p.levels[0].features.shape[-1])
    assert p.levels[0].logits.data_ptr() != scores.data_ptr(), 'the map, not the copy of the loss'


def test_cells_in_padding_and_in_ignore_regions_do_not_count():
    """In a frame of another shape than the image: cells are not square."""
    frame, size, crowd = (96, 192), (96, 112), (60.0, 0.0, 100.0, 40.0)
    samples = [
        sample(size=size, canvas=frame, crowd=[crowd]),
        sample(size=frame, canvas=frame),
    ]
    (p,), _ = student_step(solo(), view_of(solo(), 'cls_logits'), samples)
    for level, grid in zip(p.levels, GRIDS):
        valid = level.valid.reshape(2, grid, grid)
        assert valid[1].all()
        for i in range(grid):
            for j in range(grid):
                y, x = (i + 0.5) / grid * frame[0], (j + 0.5) / grid * frame[1]
                covered = crowd[0] <= x <= crowd[2] and crowd[1] <= y <= crowd[3]
                assert valid[0, i, j] == (y < size[0] and x < size[1] and not covered)
    student = solo()
    term = dict(MASKS, student='cls_logits', select='all')
    mmkd_plugin.attach(student, solo(32, 1), [term])
    losses = student(images(samples), samples, mode='loss')
    assert losses['kd_rows'] == sum(x.valid.sum() for x in p.levels) < 2 * sum(s * s for s in GRIDS)


def test_reading_classes_does_not_wait_for_the_device():
    student, teacher = solo(), solo(32, 1)
    views = [view_of(student, 'cls_logits'), view_of(teacher, 'cls_logits')]
    recorder, other = Recorder(student, 'student'), Recorder(teacher, 'teacher')
    recorder.listen(views[0].points)
    other.listen(views[1].teacher_points)
    for listening in (recorder, other):
        listening.arm()
    samples = [sample(crowd=[(0, 0, 50, 50)]), *batch()]
    student(images(samples), samples, mode='loss')
    teacher.mask_head(teacher.extract_feat(images(samples)))
    with Waits() as waits:
        own = views[0].read(recorder, samples)
        views[1].read(other, samples, student=own)
    assert not waits.seen and own[0].levels[0].labels is not None


def test_reading_masks_waits_once_for_each_grid():
    student = solo()
    view = view_of(student)
    recorder = Recorder(student, 'student')
    recorder.listen(view.points)
    recorder.arm()
    samples = batch()
    student(images(samples), samples, mode='loss')
    with Waits() as waits:
        view.read(recorder, samples)
    assert waits.seen == ['aten::nonzero'] * len(GRIDS)


def of_config(path: str):
    """Another member of SOLO's family, shrunk like it."""
    from detectors import _shrink, _shrink_backbone

    from mmkd_plugin.teacher import build_model

    model = get_config(f'mmdet::{path}').model
    _shrink(model, 16, CLASSES)
    _shrink_backbone(model, 16, 4)
    model.mask_head.num_grids = GRIDS
    model.mask_head.norm_cfg = dict(type='GN', num_groups=4, requires_grad=True)
    if 'mask_feature_head' in model.mask_head:
        model.mask_head.update(feat_channels=16)
        model.mask_head.mask_feature_head.update(
            feat_channels=8,
            out_channels=8,
            norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
        )
    torch.manual_seed(0)
    return build_model(Config(dict(model=model, default_scope='mmdet'))).train()


def test_grids_of_other_sizes_and_heads_without_mask_logits_are_refused():
    with pytest.raises(TapError, match=r'grids of the student are \[8, 6, 5, 4, 3\].*9'):
        mmkd_plugin.attach(
            solo(), solo(num_grids=[9, 6, 5, 4, 3]), [dict(MASKS, student='cls_logits')]
        )
    decoupled = of_config('solo/decoupled-solo_r50_fpn_1x_coco.py')
    for model in (decoupled, of_config('solov2/solov2_r50_fpn_1x_coco.py')):
        with pytest.raises(TapError, match='has no mask logits for each cell'):
            view_of(model)
    with pytest.raises(TapError, match='trains a classifier on features'):
        view_of(solo(), needs=('features',))
    with pytest.raises(TapError, match='does not: no rows correspond'):
        mmkd_plugin.attach(solo(), condinst(), [MASKS])
    with pytest.raises(TapError, match='does not: no rows correspond'):
        mmkd_plugin.attach(condinst(), solo(), [MASKS])


# masks


@pytest.mark.parametrize('kind', MODELS)
def test_rows_are_the_pixels_that_the_students_loss_gets(kind):
    student = MODELS[kind]()
    seen = targets_of(student)
    (p,), _ = student_step(student, view_of(student), batch())
    assert (p.kind, p.activation, p.num_classes) == ('pixel', 'sigmoid', 1)
    filled = [x for x in p.levels if x.logits.numel()]
    assert len(filled) == len(seen) > 0
    for level, (masks, targets) in zip(filled, seen):
        assert level.logits.shape == (1, masks.numel(), 1, 1)
        assert torch.equal(level.logits.flatten(), masks.flatten())
        assert torch.equal(level.labels.flatten() == 0, targets.flatten() > 0.5)
        assert {0, 1} == set(level.labels.flatten().tolist())
        height, width = masks.shape[-2:]
        where = level.images.reshape(masks.shape)
        assert (where == where[:, :1, :1]).all(), 'one image per mask'
        inside = level.valid.reshape(masks.shape)
        rows = torch.arange(height)[:, None] < height * 80 / 96
        columns = torch.arange(width) < width * 64 / 96
        assert inside[where[:, 0, 0] == 0].all()
        padded = inside[where[:, 0, 0] == 1]
        assert torch.equal(padded, (rows & columns).expand_as(padded))
    assert {0, 1} == {i for x in filled for i in x.images.unique().tolist()}


def test_solo_teacher_gives_the_masks_of_the_same_cells():
    student, teacher = solo(), solo(32, 1)
    cells = []
    student.mask_head.loss_cls.register_forward_pre_hook(lambda m, args: cells.append(args[1]))
    samples = batch()
    own, _ = student_step(student, view_of(student), samples)
    ((theirs,),) = [teacher_step(teacher, view_of(teacher, role='t'), samples, own)]
    with torch.no_grad():
        teacher.mask_head.train()
        maps, _ = teacher.mask_head(teacher.extract_feat(images(samples)))
    labels = cells[0].split([2 * s * s for s in GRIDS])
    for level, label, masks, s in zip(theirs.levels, labels, maps, own[0].levels):
        positive = label.reshape(2, -1) < CLASSES
        torch.testing.assert_close(level.logits.flatten(), masks[positive].flatten())
        assert level.logits.shape == s.logits.shape


def test_condinst_teacher_makes_masks_by_its_kernels_at_the_same_positions():
    student, teacher = condinst(), condinst(32, 1)
    infos = []
    student.mask_head.register_forward_pre_hook(lambda m, args: infos.extend(args[1]))
    samples = batch()
    own, _ = student_step(student, view_of(student), samples)
    ((theirs,),) = [teacher_step(teacher, view_of(teacher, role='t'), samples, own)]
    with torch.no_grad():
        pyramid = teacher.extract_feat(images(samples))
        kernels = teacher.bbox_head(pyramid)[3]
        kernels = torch.cat([k.flatten(2) for k in kernels], dim=2).transpose(1, 2)
        for i, info in enumerate(infos):
            info.param_preds = kernels[i][info.pos_inds]
        (masks,) = teacher.mask_head(pyramid, infos)
    for level, expected, s in zip(theirs.levels, masks, own[0].levels):
        torch.testing.assert_close(level.logits.flatten(), expected.flatten())
        assert level.logits.shape == s.logits.shape


def test_condinst_rows_follow_the_subset_that_the_student_trains_on():
    samples = batch()
    student, teacher = condinst(max_masks_to_train=3, topk_masks_per_img=-1), condinst(32, 1)
    whole = condinst()
    infos, chosen = [], targets_of(student)
    student.mask_head.register_forward_pre_hook(lambda m, args: infos.extend(args[1]))
    own, _ = student_step(student, view_of(student), samples)
    kept = own[0].handover.positives
    assert [len(x.pos_inds) for x in kept] == [3, 3]
    assert all(len(info.pos_inds) > 3 for info in infos)
    everything, _ = student_step(whole, view_of(whole), samples)
    for i, (info, positives) in enumerate(zip(infos, kept)):
        place = [info.pos_inds.tolist().index(p) for p in positives.pos_inds.tolist()]
        masks = everything[0].levels[i].logits.reshape(len(info.pos_inds), -1)
        torch.testing.assert_close(chosen[i][0].flatten(1), masks[place])
    theirs = teacher_step(teacher, view_of(teacher, role='t'), samples, own)
    assert [x.logits.shape for x in theirs[0].levels] == [x.logits.shape for x in own[0].levels]


def test_masks_are_recognised_by_their_values():
    masks = torch.randn(7, 9, 11)
    order = torch.tensor([4, 0, 6])
    positions, found = _recognise(masks[order], masks)
    assert torch.equal(positions, order) and found.all()
    positions, found = _recognise(masks, masks)
    assert torch.equal(positions, torch.arange(7)) and found is None
    with Waits() as waits:
        positions, found = _recognise(torch.stack((masks[4], masks[4] + 1)), masks)
    assert not waits.seen
    assert positions[0] == 4 and found.tolist() == [True, False]


def test_a_mask_that_the_head_did_not_make_is_not_paired_with_that_of_another_object():
    student = condinst(topk_masks_per_img=-1)

    def change(module, args):  # of each image the first mask
        return torch.cat((args[0][:1] + 1, args[0][1:])), *args[1:]

    student.mask_head.loss_mask.register_forward_pre_hook(change)
    (p,), _ = student_step(student, view_of(student), [sample(), sample()])
    for level, positives in zip(p.levels, p.handover.positives):
        valid = level.valid.reshape(len(positives), -1)
        assert len(valid) > 1 and not valid[0].any() and valid[1:].all()


@pytest.mark.parametrize('kind', MODELS)
def test_masks_of_classes_that_the_teacher_does_not_know_do_not_count(kind):
    """The objects are of the classes 1, 3 and 2, 0."""
    samples, model, teacher = batch(), MODELS[kind](), MODELS[kind](32, 1)

    def losses(class_map):
        student = copy.deepcopy(model)
        mmkd_plugin.attach(student, Teacher(teacher, class_map=class_map), [MASKS])
        return student(images(samples), copy.deepcopy(samples), mode='loss')

    whole, same = losses(None), losses((3, 2, 1, 0))
    assert same['kd_rows'] == whole['kd_rows']
    torch.testing.assert_close(same['loss_kd'], whole['loss_kd'])
    parts = [losses((-1, 1, 2, -1)), losses((0, -1, -1, 3))]
    rows = [x['kd_rows'] for x in parts]
    assert rows[0] > 0 and rows[1] > 0 and sum(rows) == whole['kd_rows']
    mean = sum(x['loss_kd'] * x['kd_rows'] for x in parts) / sum(rows)
    torch.testing.assert_close(mean, whole['loss_kd'])


@pytest.mark.parametrize('kind, subset', [('SOLO', {}), ('CondInst', dict(max_masks_to_train=5))])
def test_known_rows_are_those_of_objects_of_known_classes(kind, subset):
    samples, student, teacher = batch(), MODELS[kind](**subset), MODELS[kind](32, 1)
    seen = targets_of(student)
    own, _ = student_step(student, view_of(student), samples)
    pair = PairContext(class_map=torch.tensor([0, 1, -1, -1]))
    (theirs,) = teacher_step(teacher, view_of(teacher, role='t'), samples, own, pair=pair)
    filled = [x for x in zip(own[0].levels, theirs.levels) if x[1].logits.numel()]
    for (s, t), (masks, targets) in zip(filled, seen, strict=True):
        known = t.valid.reshape(len(masks), -1)
        owners = s.images.reshape(len(masks), -1)[:, 0].tolist()
        for target, image, rows in zip(targets, owners, known, strict=True):
            truth = samples[image].gt_instances
            step = truth.masks.height // target.shape[0]
            whole = truth.masks.to_tensor(torch.float32, 'cpu')
            difference = whole[:, step // 2 :: step, step // 2 :: step] - target
            label = truth.labels[difference.abs().flatten(1).sum(1).argmin()]
            assert torch.equal(rows, (label < 2).expand_as(rows))


@pytest.mark.parametrize('name', ['mask_logits', 'cls_logits'])
@pytest.mark.parametrize(
    'class_map, word',
    [((-1,) * 4, 'shares no class'), ((0, 1), 'names 2 classes'), ((0, 1, 2, 9), 'class 9')],
)
def test_class_maps_that_do_not_fit_are_refused(name, class_map, word):
    for make in (solo, condinst):
        with pytest.raises(TapError, match=word):
            handle = Teacher(make(32, 1), class_map=class_map)
            mmkd_plugin.attach(make(), handle, [dict(MASKS, student=name)])


@pytest.mark.parametrize('kind', MODELS)
def test_loss_of_a_copy_and_of_another_teacher(kind):
    samples = batch()
    student = MODELS[kind]()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    mmkd_plugin.attach(student, MODELS[kind](), [MASKS])
    losses = student(images(samples), copy.deepcopy(samples), mode='loss')
    torch.testing.assert_close(losses['loss_kd'], torch.zeros(()), rtol=0, atol=1e-5)
    losses['loss_kd'].backward()

    student, teacher, twin = MODELS[kind](), MODELS[kind](32, 1), MODELS[kind]()
    mmkd_plugin.attach(student, teacher, [MASKS])
    losses = student(images(samples), copy.deepcopy(samples), mode='loss')
    (own,), _ = student_step(twin, view_of(twin), copy.deepcopy(samples))
    (theirs,) = teacher_step(teacher, view_of(teacher, role='t'), samples, [own])
    s, t, valid = (
        torch.cat([getattr(x, key).flatten() for x in p.levels if x.logits.numel()])
        for p, key in ((own, 'logits'), (theirs, 'logits'), (own, 'valid'))
    )
    expected = F.binary_kl(s[valid][:, None], t[valid][:, None])
    torch.testing.assert_close(losses['loss_kd'], expected)
    assert losses['kd_rows'] == valid.sum()
    losses['loss_kd'].backward()
    gradients = [p.grad for p in student.mask_head.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize('kind', MODELS)
def test_padded_pixels_have_no_influence(kind):
    samples = [sample(size=(80, 64), canvas=(96, 96)), sample(size=(80, 64))]
    student, teacher = MODELS[kind](), MODELS[kind](32, 1)
    own, _ = student_step(student, view_of(student), copy.deepcopy(samples))
    theirs = teacher_step(teacher, view_of(teacher, role='t'), samples, own)

    def value():
        from mmkd_plugin.losses import KDLoss
        from mmkd_plugin.terms.selected_loss import evaluate
        from mmkd_plugin.terms.selection import parse_select

        loss = KDLoss(temperature=1.0)
        loss.adopt('sigmoid', False)
        loss.connect((1, 1), (1, 1), None)
        return evaluate(loss, own[0], theirs[0], parse_select('all', 'select'))[0]

    before = value()
    for s, t in zip(own[0].levels, theirs[0].levels):
        if t.logits.numel():
            t.logits = torch.where(s.valid[..., None], t.logits, float('nan'))
    assert before > 0
    torch.testing.assert_close(value(), before)


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('select', ['all', 'positive'])
def test_images_without_objects(kind, select):
    student, teacher = MODELS[kind](), MODELS[kind](32, 1)
    mmkd_plugin.attach(student, teacher, [dict(MASKS, select=select)])
    samples = [empty(), empty()]
    losses = student(images(samples), samples, mode='loss')
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    losses['loss_kd'].backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    samples = [empty(), sample()]
    losses = student(images(samples), samples, mode='loss')
    assert losses['loss_kd'] > 0 and losses['kd_rows'] > 0


def test_masks_of_another_size_are_resized():
    """A teacher whose masks are half as large."""
    student, teacher = solo(), solo(seed=1)
    for layer in teacher.mask_head.conv_mask_list:
        layer.register_forward_hook(lambda m, args, out: nnf.avg_pool2d(out, 2))
    samples = batch()
    own, _ = student_step(student, view_of(student), samples)
    theirs = teacher_step(teacher, view_of(teacher, role='t'), samples, own)
    assert [x.logits.shape for x in theirs[0].levels] == [x.logits.shape for x in own[0].levels]
    cells, size = own[0].handover.cells[0], own[0].handover.sizes[0]
    with torch.no_grad():
        maps, _ = teacher.mask_head(teacher.extract_feat(images(samples)))
        expected = nnf.interpolate(maps[0][cells][:, None], size=size, mode='bilinear')
    torch.testing.assert_close(theirs[0].levels[0].logits.flatten(), expected.flatten())
