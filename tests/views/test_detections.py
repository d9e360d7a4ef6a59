"""The view 'detections': a teacher's boxes, assigned to the positions of a dense student."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from detectors import model_config, run_config
from mmengine.structures import InstanceData
from region_batches import CLASSES, detector, empty, images, sample, student_step, teacher_step
from toys import train

import mmkd_plugin
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import Teacher
from mmkd_plugin.views import PairContext, make_view
from mmkd_plugin.views.assignment import assign
from mmkd_plugin.views.class_forms import log_odds
from mmkd_plugin.views.detections import Detections
from mmkd_plugin.views.detections_found import PER_IMAGE, Candidates
from mmkd_plugin.views.detections_readers import PositionReader, RegionReader

KD = dict(
    loss=dict(type='KDLoss', temperature=1.0),
    student='cls_logits',
    teacher='detections',
    select='all',
)
# What planted teachers see in each image: boxes, and logits of 4 classes and background.
BOXES = torch.tensor(
    [
        [8.0, 8.0, 40.0, 40.0],
        [10.0, 8.0, 40.0, 40.0],  # overlaps the first, of another class
        [9.0, 9.0, 40.0, 40.0],  # overlaps the first, of the same class, less sure
        [30.0, 30.0, 90.0, 70.0],
        [90.0, 90.0, 96.0, 96.0],
    ]
)
LOGITS = torch.tensor(
    [
        [5.0, 1.0, 0.0, -1.0, 0.5],
        [0.0, 4.0, 1.0, 0.0, 1.0],
        [3.0, 0.0, 0.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, 4.0, 5.0],
    ]
)
KEPT = (0, 1, 3, 4)


def plant(model, boxes=BOXES, logits=LOGITS, *, monkeypatch):
    """Makes a two-stage teacher see these boxes, with these logits, in every image."""

    def predict(maps, data_samples, rescale=False):
        return [InstanceData(bboxes=boxes.clone()) for _ in data_samples]

    def classify(features, width):
        count = len(features) // len(boxes)
        return logits.repeat(count, 1), torch.zeros(len(features), width)

    monkeypatch.setattr(model.rpn_head, 'predict', predict)
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, torch.nn.ModuleList) else [heads]:
        width = 4 if head.reg_class_agnostic else 4 * CLASSES
        monkeypatch.setattr(head, 'forward', partial(classify, width=width))


def expected_level(level, image, boxes, logits):
    """By loops over positions: index of the detection that teaches each, -1 for none."""
    own = level.boxes.decode()[image]
    found = []
    for (x, y), predictions in zip(level.centers.tolist(), own.tolist()):
        for x1, y1, x2, y2 in predictions:
            best, winner = -1.0, -1
            for i, (a, b, c, d) in enumerate(boxes.tolist()):
                if a <= x <= c and b <= y <= d:
                    inner = max(0, min(c, x2) - max(a, x1)) * max(0, min(d, y2) - max(b, y1))
                    union = (c - a) * (d - b) + max(0, x2 - x1) * max(0, y2 - y1) - inner
                    if inner / union > best:
                        best, winner = inner / union, i
            found.append(winner)
    return torch.tensor(found).reshape(own.shape[:2])


def check(student, taught, boxes, logits, limits=None):
    """Every row of every level against the loops."""
    assert len(student) == len(taught)
    used = set()
    for own, theirs in zip(student, taught):
        assert (theirs.kind, theirs.activation, theirs.background) == ('dense', 'sigmoid', False)
        for s, t in zip(own.levels, theirs.levels):
            assert s.logits.shape == t.logits.shape and s.stride == t.stride
            for image in range(len(s.logits)):
                clipped = boxes if limits is None else boxes.minimum(limits[image])
                index = expected_level(s, image, clipped, logits)
                inside = index >= 0
                if s.valid is not None:
                    inside = inside & s.valid[image]
                assert torch.equal(t.valid[image], inside)
                torch.testing.assert_close(t.logits[image][inside], logits[index[inside]])
                used |= set(index[inside].tolist())
    return used


def read(student, teacher, samples):
    own, theirs = make_view('cls_logits', student), make_view('detections', teacher)
    assert isinstance(theirs, Detections)
    predictions, _ = student_step(student, own, samples)
    return predictions, teacher_step(teacher, theirs, samples, predictions)


# -- the two functions -------------------------------------------------------------------------


def test_log_odds_are_exact_also_of_large_logits():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 9, generator=generator) * 10
    z[0] = torch.tensor([500.0] + [-500.0] * 8)
    z[1] = 3.0
    p = z.double().softmax(1)
    others = [torch.cat([z[:, :c], z[:, c + 1 :]], dim=1).double() for c in range(9)]
    exact = torch.stack([z[:, c] - others[c].logsumexp(1) for c in range(9)], dim=1)
    result = log_odds(z)
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.double().sigmoid(), p, rtol=1e-4, atol=1e-7)


def test_a_position_learns_from_the_containing_box_that_overlaps_most():
    detections = torch.tensor([[0.0, 0, 20, 20], [0, 0, 10, 10], [4, 4, 6, 6]])
    centers = torch.tensor([[5.0, 5], [5, 5], [15, 15], [25, 5], [5, 5], [5, 5]])
    boxes = torch.tensor(
        [
            [0.0, 0.0, 19.0, 19.0],
            [1.0, 1.0, 9.0, 9.0],
            [0.0, 0.0, 10.0, 10.0],  # only the first contains the centre
            [0.0, 0.0, 10.0, 10.0],  # none contains it
            [80.0, 80.0, 90.0, 90.0],  # overlaps none: the first that contains the centre
            [torch.nan] * 4,
        ]
    )
    assert assign(centers, boxes[:, None], detections)[:, 0].tolist() == [0, 1, 0, 3, 0, 0]
    assert assign(centers, boxes[:, None], detections[:0]).tolist() == [[0]] * 6


# -- pairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize('student', ['GFL', 'FCOS', 'RetinaNet', 'RTMDet'])
def test_two_stage_teacher_to_dense_student(student, monkeypatch):
    """One or nine anchors at a position, strides that the teacher has not."""
    pupil, teacher = detector(student), detector('Faster R-CNN', width=32, seed=1)
    plant(teacher, monkeypatch=monkeypatch)
    samples = [sample(), empty()]
    for found in samples:  # RTMDet would want masks of another kind
        del found.gt_instances.masks
    own, taught = read(pupil, teacher, samples)
    used = check(own, taught, BOXES[list(KEPT)], log_odds(LOGITS)[list(KEPT), :CLASSES])
    assert {0, 2} <= used, 'some boxes teach'


def test_cascade_teacher_gives_the_mean_of_its_stages(monkeypatch):
    pupil, teacher = detector('GFL'), detector('Cascade R-CNN', width=32, seed=1)
    plant(teacher, monkeypatch=monkeypatch)
    last = teacher.roi_head.bbox_head[-1]
    forward = last.forward

    def surer(features):
        logits, deltas = forward(features)
        return 4 * logits, deltas

    monkeypatch.setattr(last, 'forward', surer)
    own, taught = read(pupil, teacher, [sample(), empty()])
    logits = log_odds(2 * LOGITS)[list(KEPT), :CLASSES]  # stages say 1, 1 and 4 times LOGITS
    assert check(own, taught, BOXES[list(KEPT)], logits)


def test_boxes_end_where_the_image_ends(monkeypatch):
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    boxes, logits = torch.tensor([[10.0, 10.0, 90.0, 90.0]]), LOGITS[:1]
    plant(teacher, boxes, logits, monkeypatch=monkeypatch)
    samples = [sample(), empty(size=(64, 48))]
    own, taught = read(pupil, teacher, samples)
    limits = torch.tensor([[96.0, 96.0, 96.0, 96.0], [48.0, 64.0, 48.0, 64.0]])
    assert check(own, taught, boxes, log_odds(logits)[:, :CLASSES], limits)
    for level in taught[0].levels:
        outside = (level.centers[:, 0] > 48) | (level.centers[:, 1] > 64)
        assert not level.valid[1, outside].any()


def test_only_the_best_hundred_teach(monkeypatch):
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    grid = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)) * 8
    boxes = torch.cat([grid, grid + 7], dim=1)
    logits = torch.zeros(144, CLASSES + 1)
    logits[:, 1] = torch.linspace(0, 5, 144)
    plant(teacher, boxes, logits, monkeypatch=monkeypatch)
    own, taught = read(pupil, teacher, [empty()])
    best = slice(144 - PER_IMAGE, 144)
    assert check(own, taught, boxes[best], log_odds(logits)[best, :CLASSES])


@pytest.mark.parametrize('student', ['FCOS', 'YOLOX'])
def test_dense_teacher_to_another_dense_student(student, monkeypatch):
    """GFL teaches with planted maps: one sure cell of class 2, its sides 16 pixels away."""
    pupil, teacher = detector(student), detector('GFL', width=32, seed=1)
    head = teacher.bbox_head
    forward = head.forward

    def planted(features):
        classes, sides = (list(maps) for maps in forward(features))
        for i in range(len(classes)):
            classes[i] = torch.full_like(classes[i], -20.0)
            sides[i] = torch.zeros_like(sides[i])
        classes[0][:, 2, 5, 6] = 2.0
        bins = sides[0].unflatten(1, (4, head.reg_max + 1))
        bins[:, :, 2, 5, 6] = 50.0  # 2 strides of 8 pixels
        return classes, [bins.flatten(1, 2), *sides[1:]]

    monkeypatch.setattr(head, 'forward', planted)
    samples = [sample(), sample(boxes=[(5, 5, 60, 40)], labels=[2], size=(80, 64))]
    own, taught = read(pupil, teacher, samples)
    prior = head.prior_generator.single_level_grid_priors((12, 12), 0, device='cpu')[5 * 12 + 6]
    x, y = ((prior[:2] + prior[2:]) / 2).tolist()
    box = torch.tensor([x - 16, y - 16, x + 16, y + 16])
    sure = 0
    for s, t in zip(own[0].levels, taught[0].levels):
        inside = (s.centers >= box[:2]) & (s.centers <= box[2:])
        for image in range(2):
            rows = t.valid[image, :, 0] & inside.all(1)
            learns = t.logits[image, :, 0, 2] > 0
            assert not learns[~inside.all(1)].any()
            assert (t.logits[image, rows, 0].max(1).values <= 2.0).all()
            sure += int((learns & rows).sum())
    assert sure > 0


def test_quality_ranks_the_boxes_but_the_class_logits_teach(monkeypatch):
    """Of two overlapping boxes of FCOS the surer class has the far lower centerness."""
    pupil, teacher = detector('GFL'), detector('FCOS', width=32, seed=1)
    head = teacher.bbox_head
    forward = head.forward

    def planted(features):
        classes, sides, centerness = forward(features)
        for maps in (*classes, *sides, *centerness):
            maps.zero_()
        for maps in classes:
            maps.fill_(-20.0)
        classes[0][:, 2, 5, 6], classes[0][:, 2, 5, 7] = 2.0, 1.0
        centerness[0][:, 0, 5, 6], centerness[0][:, 0, 5, 7] = -5.0, 5.0
        sides[0].fill_(4.0)  # in strides of 8 pixels
        return classes, sides, centerness

    monkeypatch.setattr(head, 'forward', planted)
    _, taught = read(pupil, teacher, [empty()])
    logits = torch.cat([level.logits[level.valid][:, 2] for level in taught[0].levels])
    assert set(logits.tolist()) == {1.0, -20.0}


def test_the_teacher_runs_to_its_neck_and_once():
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    distiller = mmkd_plugin.attach(pupil, teacher, [KD])
    assert distiller.teacher.depth == 'neck'
    samples = [sample(), empty()]
    pupil.train()(images(samples), samples, mode='loss')  # finds the teacher's form, too
    calls = []
    for part in (teacher.backbone, teacher.neck, teacher.rpn_head, teacher.roi_head.bbox_head):
        part.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    losses = pupil(images(samples), samples, mode='loss')
    assert calls == ['ResNet', 'FPN', 'RPNHead', 'Shared2FCBBoxHead']
    assert losses['loss_kd'] > 0
    losses['loss_kd'].sum().backward()
    assert pupil.bbox_head.gfl_cls.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize('teacher', ['Faster R-CNN', 'FCOS'])
def test_a_student_under_autocast(teacher):
    pupil, model = detector('GFL'), detector(teacher, width=32, seed=1)
    mmkd_plugin.attach(pupil, model, [KD])
    samples = [sample(), empty()]
    exact = pupil.train()(images(samples), samples, mode='loss')['loss_kd']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = pupil(images(samples), samples, mode='loss')
    assert losses['loss_kd'].dtype == torch.float32
    torch.testing.assert_close(losses['loss_kd'], exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize('loss', ['KDLoss', 'LoCaLoss', 'IPWDLoss'])
def test_losses_on_sigmoid_rows_take_them(loss):
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    term = dict(loss=dict(type=loss), student='cls_logits', teacher='detections', name='x')
    distiller = mmkd_plugin.attach(pupil, teacher, [term])
    samples = [sample(), sample()]
    losses = pupil.train()(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    assert losses['loss_x'].isfinite()
    total, _ = pupil.parse_losses(losses)
    total.backward()


# -- what can go wrong -------------------------------------------------------------------------


def test_a_nan_box_is_no_detection(monkeypatch):
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    plant(teacher, monkeypatch=monkeypatch)
    head = teacher.roi_head.bbox_head
    forward = head.forward

    def some_nan(features):
        logits, deltas = forward(features)
        deltas[3::5] = torch.nan
        return logits, deltas

    monkeypatch.setattr(head, 'forward', some_nan)
    distiller = mmkd_plugin.attach(pupil, teacher, [KD])
    samples = [sample(), empty()]
    losses = pupil.train()(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    assert losses['loss_kd'].isfinite() and losses['kd_rows'] > 0
    mmkd_plugin.detach(pupil)
    own, taught = read(pupil, teacher, samples)
    left = [i for i in KEPT if i != 3]
    check(own, taught, BOXES[left], log_odds(LOGITS)[left, :CLASSES])


@pytest.mark.parametrize('teacher', ['Faster R-CNN', 'Cascade R-CNN', 'GFL', 'FCOS'])
@pytest.mark.parametrize('place', ['features', 'classes'])
def test_a_nan_in_features_or_logits_is_reported(teacher, place):
    pupil, model = detector('RetinaNet'), detector(teacher, width=32, seed=1)
    distiller = mmkd_plugin.attach(pupil, model, [KD])
    with torch.no_grad():
        if place == 'features':
            model.neck.fpn_convs[0].conv.bias[0] = torch.nan
        elif hasattr(model, 'roi_head'):
            heads = model.roi_head.bbox_head
            (heads[-1] if teacher.startswith('Cascade') else heads).fc_cls.bias[0] = torch.nan
        else:
            layer = 'gfl_cls' if teacher == 'GFL' else 'conv_cls'
            getattr(model.bbox_head, layer).bias[0] = torch.nan
    samples = [sample(), empty()]
    pupil.train()(images(samples), samples, mode='loss')
    with pytest.raises(FloatingPointError, match="teacher logits 'detections of .*bbox_head"):
        distiller.raise_if_not_finite()


@pytest.mark.parametrize('boxes', [torch.zeros(0, 4), torch.tensor([[50.0, 50.0, 50.0, 50.0]])])
def test_a_teacher_that_finds_nothing_teaches_nothing(boxes, monkeypatch):
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    plant(teacher, boxes, LOGITS[: len(boxes)], monkeypatch=monkeypatch)
    distiller = mmkd_plugin.attach(pupil, teacher, [KD])
    samples = [sample(), empty(crowd=[(0, 0, 90, 90)])]
    losses = pupil.train()(images(samples), samples, mode='loss')
    distiller.raise_if_not_finite()
    assert losses['loss_kd'] == 0 and losses['kd_rows'] == 0
    total, _ = pupil.parse_losses(losses)
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pupil.parameters())


def test_regions_of_crowds_are_not_taught(monkeypatch):
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    plant(teacher, monkeypatch=monkeypatch)
    samples = [empty(crowd=[(0, 0, 48, 96)])]
    _, taught = read(pupil, teacher, samples)
    for level in taught[0].levels:
        x = level.centers[:, 0]
        assert not level.valid[0, (x > 0) & (x < 48)].any()
    assert taught[0].levels[0].valid.any()


def test_pairs_that_cannot_be_are_refused():
    gfl = detector('GFL')

    def attach(pupil, teacher, **changes):
        mmkd_plugin.attach(pupil, teacher, [dict(KD, **changes)])

    with pytest.raises(TapError, match="'detections' reads a teacher"):
        attach(gfl, copy.deepcopy(gfl), student='detections')
    with pytest.raises(TapError, match='has 4 classes and the teacher .* 7'):
        attach(gfl, detector('Faster R-CNN', classes=7))
    with pytest.raises(TapError, match="the rows of the student.*Take student='cls_logits'"):
        attach(gfl, copy.deepcopy(gfl), student='dfl_logits')


def test_class_maps_choose_the_teachers_columns(monkeypatch):
    pupil, teacher = detector('GFL', classes=2), detector('Faster R-CNN', width=32, seed=1)
    plant(teacher, monkeypatch=monkeypatch)
    handle = Teacher(teacher)
    handle.class_map = (3, 0)
    mmkd_plugin.attach(pupil, handle, [KD])
    samples = [empty()]
    losses = pupil.train()(images(samples), samples, mode='loss')
    assert losses['loss_kd'] > 0


def read_mapped(student, teacher, *classes):
    """As `read`, where only these classes of the teacher are shared."""
    own, theirs = make_view('cls_logits', student), make_view('detections', teacher)
    predictions, _ = student_step(student, own, [empty()])
    columns = torch.arange(len(classes)), torch.tensor(classes)
    pair = PairContext(columns)
    return predictions, teacher_step(teacher, theirs, [empty()], predictions, pair=pair)


@pytest.mark.parametrize('softmax', [True, False])
def test_classes_that_the_student_lacks_take_no_place_from_others(softmax, monkeypatch):
    """More sure boxes of an unknown class than an image keeps, and a less sure one of a class."""
    grid = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)) * 8
    boxes = torch.cat([torch.cat([grid, grid + 7], dim=1), torch.tensor([[20.0, 20, 80, 80]])])
    logits = torch.full((145, CLASSES + softmax), -6.0)
    logits[:144, 3], logits[144, 0] = 3.0, 2.0
    pupil, teacher = detector('GFL', classes=2), detector('Faster R-CNN', width=32, seed=1)
    if softmax:
        plant(teacher, boxes, logits, monkeypatch=monkeypatch)
        known = log_odds(logits)[144, :CLASSES]
    else:
        teacher, known = detector('FCOS', width=32, seed=1), logits[144]
        found = Candidates(boxes, logits, None, torch.zeros(()))
        monkeypatch.setattr(PositionReader, 'read', lambda self, *_: [found])
    _, taught = read_mapped(pupil, teacher, 2, 0)
    rows = torch.cat([level.logits[level.valid] for level in taught[0].levels])
    assert (rows[:, 0] == known[0]).any()


def test_shared_classes_tell_which_boxes_are_of_one_object_and_where(monkeypatch):
    """Two boxes of one shared class, each surer of another unknown class that moves it away."""
    logits = torch.tensor([[4.0, 0.0, 0.0, 6.0, 0.0], [3.0, 0.0, 6.0, 0.0, 0.0]])
    pupil, teacher = detector('GFL'), detector('Faster R-CNN', width=32, seed=1)
    plant(teacher, BOXES[[0, 2]], logits, monkeypatch=monkeypatch)
    head = teacher.roi_head.bbox_head
    forward = head.forward

    def moved(features):
        z, deltas = forward(features)
        deltas.view(len(z), CLASSES, 4)[:, 2:, :2] = 5.0
        return z, deltas

    monkeypatch.setattr(head, 'forward', moved)
    own, taught = read_mapped(pupil, teacher, 1, 0)
    assert check(own, taught, BOXES[:1], log_odds(logits)[:1, :CLASSES]) == {0}


# -- for real ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'pair', [('GFL', 'Faster R-CNN'), ('FCOS', 'GFL'), ('FCOS', 'Faster R-CNN')]
)
def test_a_runner_trains_with_features_and_boxes_on_the_digits(pair, digits_root, tmp_path):
    student, teacher = pair
    levels = [1, 2, 3, 4] if teacher == 'Faster R-CNN' else [0, 1, 2, 3]  # strides 8 to 64
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config=dict(model=model_config(teacher, 32), default_scope='mmdet'), allow_random=True
        ),
        terms=[
            dict(
                loss=dict(type='GDDLoss'),
                student=dict(path='neck', levels=[0, 1, 2, 3]),
                teacher=dict(path='neck', levels=levels),
            ),
            dict(
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                teacher='detections',
            ),
        ],
    )
    config = run_config(
        model_config(student),
        digits_root / 'annotations' / 'train.json',
        digits_root / 'train',
        tmp_path,
        masks=False,
        custom_hooks=[hook],
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
    )
    scalars = train(config).message_hub.log_scalars
    for name in ('loss_gdd', 'loss_kd'):
        values = scalars[f'train/{name}'].data[0]
        assert len(values) == 2 and all(v > 0 for v in values)
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    detector(student, classes=10).load_state_dict(saved, strict=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_boxes_that_are_none_overlap_with_nothing(dtype):
    """Reversed, empty, boundless and NaN boxes of a student that has just begun."""
    centers = torch.full((5, 2), 5.0, dtype=dtype)
    inf, nan = float('inf'), float('nan')
    boxes = [[9, 9, 1, 1], [5, 5, 5, 5], [-inf, -inf, inf, inf], [nan] * 4, [1, 1, 9, 9]]
    own = torch.tensor(boxes, dtype=dtype)[:, None]
    detections = torch.tensor([[5, 5, 5, 5], [0, 0, 20, 20], [1, 1, 10, 10]], dtype=dtype)
    assert assign(centers, own, detections).tolist() == [[0], [0], [0], [0], [2]]


@pytest.mark.parametrize('shares', [None, [0, 1, 2, 3], [0, 1, -1, 3]])
def test_terms_on_classes_and_boxes_read_the_teacher_once_in_a_step(shares, monkeypatch):
    read, original = [], RegionReader.read

    def counted(self, *args):
        read.append(original(self, *args))
        return read[-1]

    monkeypatch.setattr(RegionReader, 'read', counted)
    terms = [
        dict(KD, name='kd'),
        dict(
            loss=dict(type='BoxDistillLoss', when='always'),
            student='boxes',
            teacher='detections',
            select='all',
            name='boxes',
        ),
    ]
    samples, values = [sample(), sample()], {}
    for some in ([terms[0]], [terms[1]], terms):
        pupil, teacher = detector('FCOS'), detector('Faster R-CNN', width=32, seed=1)
        made = Teacher(teacher, class_map=shares)
        mmkd_plugin.attach(pupil, made, some, probe_size=(96, 96))
        for seed in (0, 1):
            read.clear()
            losses = pupil.train()(images(samples, seed), samples, mode='loss')
            assert len(read) == 1, 'once, and anew in the next step'
            for key in ('loss_kd', 'loss_boxes'):
                if key in losses:
                    before = values.setdefault((key, seed), losses[key].detach())
                    assert before > 0 and torch.equal(losses[key].detach(), before)
    assert values['loss_kd', 0] != values['loss_kd', 1]
