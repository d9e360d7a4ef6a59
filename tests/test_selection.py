"""Selections of rows: values, gradients, what must not leak, and no waiting for the device."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from ranks import run_ranks
from waiting import Waits

from mmkd_plugin import functional as F
from mmkd_plugin.functional import checks
from mmkd_plugin.losses import CKDLoss, DKDLoss, IPWDLoss, KDLoss, LoCaLoss, LogitLoss
from mmkd_plugin.terms import chunked
from mmkd_plugin.terms.pairing import rows as pairing
from mmkd_plugin.terms.selected_loss import evaluate
from mmkd_plugin.terms.selection import Selection, parse_select
from mmkd_plugin.views.predictions import Level, Predictions

IMAGES, ANCHORS, CLASSES, FEATURES = 2, 3, 5, 4
SIZES = ((4, 6), (2, 3))  # heights and widths of the levels
ROWS = ANCHORS * sum(h * w for h, w in SIZES)  # of an image


class Head:
    """Maps of a student and a teacher as a dense head of anchors gives them, and their rows."""

    def __init__(
        self,
        activation: str = 'sigmoid',
        dtype: torch.dtype = torch.float64,
        layout: torch.memory_format = torch.contiguous_format,
        images: int = IMAGES,
        kind: str = 'dense',
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        self.background = activation == 'softmax'
        self.columns = CLASSES + self.background
        self.activation, self.kind = activation, kind

        def maps(channels: int) -> list[torch.Tensor]:
            shapes = ((images, channels, h, w) for h, w in SIZES)
            made = (2 * torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
            return [x.to(dtype).contiguous(memory_format=layout) for x in made]

        self.student, self.teacher = maps(ANCHORS * self.columns), maps(ANCHORS * self.columns)
        self.quality, self.features = maps(ANCHORS), maps(FEATURES)
        for x in self.student:
            x.requires_grad_()
        shapes = [(images, h * w, ANCHORS) for h, w in SIZES]
        foreground = [torch.rand(shape, generator=g) < 0.2 for shape in shapes]
        self.labels = [
            torch.where(f, torch.randint(CLASSES, f.shape, generator=g), CLASSES)
            for f in foreground
        ]
        self.label_weights = [(torch.rand(s, generator=g) > 0.1).float() for s in shapes]
        self.valid = [torch.rand(s, generator=g) > 0.2 for s in shapes]

    def predictions(self, **drop: None) -> tuple[Predictions, Predictions]:
        def view(x: torch.Tensor, columns: int) -> torch.Tensor:
            return x.unflatten(1, (ANCHORS, columns)).flatten(3).permute(0, 3, 1, 2)

        made = []
        for maps in (self.student, self.teacher):
            levels = [Level(view(x, self.columns)) for x in maps]
            made.append(
                Predictions(
                    'bbox_head', self.kind, levels, self.activation, CLASSES, self.background
                )
            )
        student, teacher = made
        for i, (s, t) in enumerate(zip(student.levels, teacher.levels)):
            s.labels, s.label_weights, s.valid = (
                x[i] for x in (self.labels, self.label_weights, self.valid)
            )
            s.features = self.features[i].flatten(2).transpose(1, 2)
            t.quality = view(self.quality[i], 1)[..., 0]
            for name, value in drop.items():
                setattr(s, name, value)
        return student, teacher

    def rows(self) -> dict[str, torch.Tensor]:
        """Everything as (N * rows, ...), in float64, by loops over images, levels and places."""
        found: dict[str, list] = {}
        for n in range(len(self.student[0])):
            for level, (h, w) in enumerate(SIZES):
                for p in range(h * w):
                    y, x = divmod(p, w)
                    for a in range(ANCHORS):
                        part = slice(a * self.columns, (a + 1) * self.columns)
                        quality = self.quality[level][n, a, y, x].double().sigmoid()
                        for key, value in dict(
                            student=self.student[level][n, part, y, x].double(),
                            teacher=self.teacher[level][n, part, y, x].double(),
                            features=self.features[level][n, :, y, x],
                            quality=quality,
                            labels=self.labels[level][n, p, a],
                            label_weights=self.label_weights[level][n, p, a],
                            valid=self.valid[level][n, p, a],
                            images=torch.tensor(n),
                            priors=torch.tensor(a),
                        ).items():
                            found.setdefault(key, []).append(value)
        rows = {key: torch.stack(values) for key, values in found.items()}
        t = rows['teacher']
        p = t.sigmoid() if self.activation == 'sigmoid' else t.softmax(1)
        rows['score'] = p[:, :CLASSES].amax(1) * rows['quality']
        s = rows['student'].detach()
        p = s.sigmoid() if self.activation == 'sigmoid' else s.softmax(1)
        rows['student_score'] = p[:, :CLASSES].amax(1)
        rows['mask'] = rows['valid'] & (rows['label_weights'] > 0)
        rows['positive'] = rows['mask'] & (rows['labels'] < CLASSES)
        return rows

    def gradients(self, value: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(value, self.student))


def expected_weights(rows: dict, selection: Selection, images: int = IMAGES) -> torch.Tensor:
    """What a selection means, spelled out image by image."""
    chosen = chosen_rows(rows, selection, images)
    return chosen if selection.weights is None else chosen * rows['student_score']


def chosen_rows(rows: dict, selection: Selection, images: int) -> torch.Tensor:
    mask = rows['mask']
    if selection.by == 'all':
        return mask.double()
    if selection.by == 'score_weighted':
        return mask * rows['score']
    weights = torch.zeros(len(mask), dtype=torch.float64)
    for n in range(images):
        own = [i for i in range(len(mask)) if rows['images'][i] == n and mask[i]]
        if selection.by == 'positive':
            own = [i for i in own if rows['positive'][i]]
        first = lambda i: -bool(selection.positives and rows['positive'][i])  # noqa: E731
        own.sort(key=lambda i: (first(i), -rows['score'][i].item()))
        weights[own[: selection.k]] = 1
    return weights


def made(loss: LogitLoss, head: Head) -> LogitLoss:
    torch.manual_seed(0)
    loss.adopt(head.activation, head.background)
    columns = head.columns
    loss.connect((1, columns), (1, columns), (1, FEATURES), priors=ANCHORS)
    return loss.to(torch.float64)


def naive(loss: LogitLoss, rows: dict, weights: torch.Tensor) -> torch.Tensor:
    """The loss of the chosen rows alone; a softmax head learns no row with another label."""
    chosen = weights > 0
    extras = {name: rows[name][chosen] for name in loss.needs}
    return loss(rows['student'][chosen], rows['teacher'][chosen], weights=weights[chosen], **extras)


SELECTS = (
    'all',
    'positive',
    'score_weighted',
    'teacher_topk',
    dict(by='teacher_topk', k=20),
    dict(by='teacher_topk', k=20, positives=True),
    dict(by='positive', k=4),
    dict(by='teacher_topk', k=20, weights='student_score'),
    dict(by='positive', weights='student_score', reduction='sum'),
    dict(by='all', reduction='sum'),
)
each_select = pytest.mark.parametrize('select', SELECTS, ids=str)


@pytest.fixture(params=[2**18, 40], ids=['one part', 'many parts'])
def parts(request, monkeypatch) -> None:
    monkeypatch.setattr(chunked, 'PART', request.param)
    monkeypatch.setattr(chunked, 'PARTS', 2**20)


@each_select
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('loss', 'activation'),
    [
        (KDLoss(2.0), 'sigmoid'),
        (KDLoss(1.0), 'softmax'),
        (DKDLoss(), 'softmax'),
        (LoCaLoss(), 'softmax'),
        (LoCaLoss(), 'sigmoid'),
        (IPWDLoss(normalize='batch_mean', clip_max=2), 'sigmoid'),
        (IPWDLoss(), 'softmax'),
        (CKDLoss(per_image=True), 'sigmoid'),
        (CKDLoss(), 'softmax'),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, LogitLoss) else x,
)
def test_equals_the_loss_on_the_rows_chosen_by_hand(loss, activation, select, layout, parts):
    head = Head(activation, layout=layout)
    loss = made(loss, head)
    selection = parse_select(select, 'select')
    value, count = evaluate(loss, *head.predictions(), selection)
    value_grads, report = head.gradients(value), dict(loss.report)
    rows = head.rows()
    weights = expected_weights(rows, selection)
    expected = naive(loss, rows, weights)
    if selection.reduction == 'sum':
        expected = expected * weights.sum()
    assert weights.sum() > 0 and value > 0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(value_grads, head.gradients(expected), rtol=1e-8, atol=1e-12)
    assert count.item() == pytest.approx(weights.sum().item(), rel=1e-9)
    assert count.dtype == torch.float64 and not count.requires_grad
    assert report.keys() == loss.report.keys()
    for key, number in report.items():
        torch.testing.assert_close(number, loss.report[key], rtol=1e-6, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('select', SELECTS[:4], ids=str)
@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
def test_narrow_logits_are_computed_in_float32(dtype, select, activation):
    head = Head(activation, dtype)
    loss = made(KDLoss(2.0), head).float()
    selection = parse_select(select, 'select')
    with torch.autocast('cpu', torch.bfloat16):
        value, count = evaluate(loss, *head.predictions(), selection)
    grads = head.gradients(value)
    rows = head.rows()
    expected = naive(loss, rows, expected_weights(rows, selection))
    assert value.dtype == count.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype]
    for grad, e in zip(grads, head.gradients(expected)):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize('select', ['all', *SELECTS[4:], 'score_weighted'], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradients_lie_in_memory_as_the_maps(select, layout):
    head = Head(layout=layout)
    value, _ = evaluate(made(KDLoss(), head), *head.predictions(), parse_select(select, 'select'))
    for grad, x in zip(head.gradients(value), head.student):
        assert grad.stride() == x.stride()


@each_select
@pytest.mark.parametrize('loss', [KDLoss, LoCaLoss, CKDLoss, IPWDLoss])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_rows_that_do_not_count_have_no_influence(loss, select, bad):
    head = Head(dtype=torch.float64)
    loss = made(loss(), head)
    selection = parse_select(select, 'select')
    value, count = evaluate(loss, *head.predictions(), selection)
    expected = head.gradients(value)
    for i, (h, w) in enumerate(SIZES):
        out = ~(head.valid[i] & (head.label_weights[i] > 0))
        assert out.any()
        out = out.view(-1, h, w, ANCHORS).permute(0, 3, 1, 2)
        with torch.no_grad():
            for x, columns in ((head.student[i], CLASSES), (head.teacher[i], CLASSES)):
                x.unflatten(1, (ANCHORS, columns)).masked_fill_(out.unsqueeze(2), bad)
            head.quality[i].masked_fill_(out, bad)
            # the features of a position serve all its anchors
            head.features[i].masked_fill_(out.all(1, keepdim=True), bad)
        head.labels[i] = torch.where(out.permute(0, 2, 3, 1).flatten(1, 2), 255, head.labels[i])
    again, count_again = evaluate(loss, *head.predictions(), selection)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(count_again, count, rtol=1e-12, atol=0)
    torch.testing.assert_close(head.gradients(again), expected, rtol=1e-9, atol=1e-14)


@each_select
@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_a_nan_in_a_row_that_counts_is_not_hidden(select, role):
    head = Head()
    for labels, valid, weights in zip(head.labels, head.valid, head.label_weights):
        labels[:, 0], valid[:, 0], weights[:, 0] = 1, True, 1
    for teacher in head.teacher:
        teacher.unflatten(1, (ANCHORS, CLASSES))[:, :, :, 0, 0] = 9  # among the surest, in any case
    head.quality[0][:, :, 0, 0] = 9
    with torch.no_grad():
        getattr(head, role)[0][0, 0, 0, 0] = float('nan')
    value, _ = evaluate(made(KDLoss(), head), *head.predictions(), parse_select(select, 'select'))
    assert value.isnan()


@each_select
@pytest.mark.parametrize('loss', [KDLoss, LoCaLoss, CKDLoss, IPWDLoss])
@pytest.mark.parametrize('case', ['all padding', 'no positives', 'no rows', 'no images'])
def test_nothing_to_learn_from_gives_zero_with_a_gradient(loss, select, case):
    head = Head(images=0 if case == 'no images' else IMAGES, kind='dense')
    loss = made(loss(), head)
    selection = parse_select(select, 'select')
    student, teacher = head.predictions()
    if case == 'all padding':
        head.valid = [torch.zeros_like(x) for x in head.valid]
        for x in (*head.student, *head.teacher):
            x.data.fill_(float('nan'))
        student, teacher = head.predictions()
    elif case == 'no positives':
        head.labels = [torch.full_like(x, CLASSES) for x in head.labels]
        student, teacher = head.predictions()
        if selection.by != 'positive':
            selection = Selection('positive', 2048)
    elif case == 'no rows':
        for level in (*student.levels, *teacher.levels):
            for name in ('logits', 'labels', 'label_weights', 'valid', 'quality', 'features'):
                x = getattr(level, name)
                setattr(level, name, x if x is None else x[:, :0])
    value, count = evaluate(loss, student, teacher, selection)
    total = value + sum(loss.auxiliary.values())
    grads = head.gradients(total)
    assert value.item() == total.item() == count.item() == 0
    assert all(g.eq(0).all() for g in grads)
    assert all(x.isfinite() for x in loss.report.values())


@each_select
@pytest.mark.parametrize('kind', ['dense', 'pixel', 'query'])
@pytest.mark.parametrize(
    ('loss', 'activation'),
    [
        (KDLoss, 'sigmoid'),
        (DKDLoss, 'softmax'),
        (LoCaLoss, 'sigmoid'),
        (LoCaLoss, 'softmax'),
        (lambda: CKDLoss(per_image=True), 'sigmoid'),
        (lambda: IPWDLoss(normalize='batch_mean', clip_max=5), 'sigmoid'),
    ],
)
@pytest.mark.parametrize('mapped', [False, True])
def test_never_waits_for_the_device(loss, activation, select, kind, mapped, monkeypatch):
    # labels are looked at on the CPU only
    monkeypatch.setattr(checks, 'is_compiling', lambda: True)
    head = Head(activation, kind=kind)
    loss = loss()
    columns = shared(head) if mapped else None
    loss.adopt(activation, head.background)
    width = len(columns[0]) if mapped else head.columns
    loss.connect((1, width), (1, width), (1, FEATURES), priors=ANCHORS)
    loss = loss.double()
    with Waits() as waits:
        value, _ = evaluate(loss, *head.predictions(), parse_select(select, 'select'), columns)
        (value + sum(loss.auxiliary.values())).backward()
    assert not waits.seen and waits.count > 10


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_an_accelerator_has_few_large_parts(device):
    """Each part is a row of launches there, and fits the caches of a CPU here."""
    maps = [torch.empty(1, size * size, 9, 80, device=device) for size in (128, 64, 32)]
    parts = list(chunked._Plan(KDLoss(), None, None, None, 1).parts(maps))
    assert sum(part.length for part in parts) == sum(x.shape[1] for x in maps)
    limit = chunked.PARTS if device == 'cpu' else chunked.PARTS_OF_ACCELERATORS
    assert limit / 2 < len(parts) <= limit + len(maps)  # a map ends a part


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@each_select
@pytest.mark.parametrize('loss', [KDLoss, LoCaLoss, CKDLoss, IPWDLoss])
def test_a_gpu_is_never_waited_for(loss, select):
    """And it finds what the CPU finds, of which the tests above say what it must be."""
    here, there = Head(dtype=torch.float32), Head(dtype=torch.float32)
    for name in ('student', 'teacher', 'quality', 'features', 'labels', 'label_weights', 'valid'):
        setattr(there, name, [x.detach().cuda() for x in getattr(there, name)])
    for x in there.student:
        x.requires_grad_()
    loss, selection = made(loss(), here).float(), parse_select(select, 'select')
    expected, _ = evaluate(copy.deepcopy(loss), *here.predictions(), selection)
    loss = loss.cuda()
    for debug in ('default', 'error'):  # the first call may build handles and kernels
        torch.cuda.set_sync_debug_mode(debug)
        try:
            value, count = evaluate(loss, *there.predictions(), selection)
            (value + sum(loss.auxiliary.values())).backward()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-5)


def shared(head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """Student classes 0, 2, 3 are the teacher's 4, 0, 1; and the background is the background."""
    tail = [CLASSES] if head.background else []
    return torch.tensor([0, 2, 3, *tail]), torch.tensor([4, 0, 1, *tail])


@each_select
@pytest.mark.parametrize(
    ('loss', 'activation'),
    [
        (KDLoss, 'sigmoid'),
        (KDLoss, 'softmax'),
        (DKDLoss, 'softmax'),
        (LoCaLoss, 'sigmoid'),
        (CKDLoss, 'softmax'),
    ],
)
def test_shared_classes_are_compared_alone(loss, activation, select, parts):
    head = Head(activation)
    loss = made(loss(), head)
    columns = shared(head)
    selection = parse_select(select, 'select')
    value, count = evaluate(loss, *head.predictions(), selection, columns)
    rows = head.rows()
    t = rows['teacher']
    p = t.sigmoid() if activation == 'sigmoid' else t.softmax(1)
    rows['score'] = p[:, [4, 0, 1]].amax(1) * rows['quality']
    s = rows['student'].detach()
    p = s.sigmoid() if activation == 'sigmoid' else s.softmax(1)
    rows['student_score'] = p[:, [0, 2, 3]].amax(1)
    new = {0: 0, 2: 1, 3: 2, CLASSES: 3}
    labels = torch.tensor([new.get(int(x), -1) for x in rows['labels']])
    if 'labels' in loss.needs or head.background:  # where the teacher would say 'background'
        rows['mask'] = rows['mask'] & (labels >= 0)
    rows['positive'] = rows['mask'] & (labels >= 0) & (labels < 3)
    rows['labels'] = labels
    rows['student'], rows['teacher'] = (
        rows[k][:, c] for k, c in zip(('student', 'teacher'), columns)
    )
    weights = expected_weights(rows, selection)
    expected = naive(loss, rows, weights)
    if selection.reduction == 'sum':
        expected = expected * weights.sum()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        head.gradients(value), head.gradients(expected), rtol=1e-8, atol=1e-12
    )
    assert count.item() == pytest.approx(weights.sum().item(), rel=1e-9)


class SpyLoss(LogitLoss):
    """Keeps what it was given."""

    needs = ('labels', 'features', 'images', 'priors')

    def compute(self, student, teacher, weights=None, **extras):
        self.seen = dict(student=student, teacher=teacher, weights=weights, **extras)
        return (student * 0).sum()


@each_select
def test_everything_that_is_known_of_a_row_comes_with_it(select):
    head, loss = Head(), SpyLoss()
    selection = parse_select(select, 'select')
    evaluate(loss, *head.predictions(), selection)
    rows = head.rows()
    weights = expected_weights(rows, selection)
    seen = {k: v[loss.seen['weights'] > 0] for k, v in loss.seen.items()}
    order = [x.sum(1).argsort() for x in (seen['student'], rows['student'][weights > 0])]
    for key, x in seen.items():
        wanted = weights if key == 'weights' else rows[key]
        torch.testing.assert_close(x[order[0]], wanted[weights > 0][order[1]], rtol=1e-6, atol=0)


def test_a_selection_has_a_fixed_size_and_padding_counts_nothing():
    head, loss = Head(), SpyLoss()
    for by, k, chosen in (('positive', 60, 60), ('teacher_topk', 7, 7), ('positive', 500, ROWS)):
        for labels in (head.labels, [torch.full_like(x, CLASSES) for x in head.labels]):
            student, teacher = head.predictions()
            for level, own in zip(student.levels, labels):
                level.labels = own
            _, count = evaluate(loss, student, teacher, Selection(by, k))
            assert len(loss.seen['student']) == IMAGES * chosen
            assert count == (loss.seen['weights'] > 0).sum()


def test_random_rows_change_and_follow_the_seed_of_the_run():
    class Rng:
        def __init__(self, seed):
            self.source = torch.Generator().manual_seed(seed)

        def generator(self, device):
            return self.source

    head, loss = Head(kind='pixel'), SpyLoss()
    selection = parse_select(dict(by='random', k=9), 'select')
    rows = head.rows()
    valid = {tuple(x.tolist()) for x in rows['student'][rows['mask']]}

    def draw() -> list:
        evaluate(loss, *head.predictions(), selection)
        assert loss.seen['weights'].eq(1).all() and len(loss.seen['student']) == IMAGES * 9
        drawn = [tuple(x.tolist()) for x in loss.seen['student']]
        assert set(drawn) <= valid and len(set(drawn)) == len(drawn)
        assert loss.seen['images'].tolist() == [0] * 9 + [1] * 9
        return sorted(drawn)

    loss.rng = Rng(3)
    first, second = draw(), draw()
    assert first != second
    loss.rng = Rng(3)
    state = torch.get_rng_state()
    assert [draw(), draw()] == [first, second]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('select', ['all', dict(by='teacher_topk', k=5)])
def test_images_of_dense_heads_are_contrasted_apart(select, monkeypatch):
    g = torch.Generator().manual_seed(0)
    student, teacher = (
        Predictions('bbox_head', 'dense', [Level(x)], 'sigmoid', 4)
        for x in (torch.randn(3, 12, 1, 4, generator=g) for _ in 'st')
    )
    loss = CKDLoss(per_image=True)
    values, seen = [], []
    contrastive = F.contrastive
    monkeypatch.setattr(F, 'contrastive', lambda *x: (seen.append(x[5]), contrastive(*x))[1])
    for small in (0, 2**20):  # image by image, and with a mask
        module = sys.modules['mmkd_plugin.functional.contrastive']  # the function hides it
        monkeypatch.setattr(module, 'SMALL', small)
        value, _ = evaluate(loss, student, teacher, parse_select(select, 'select'))
        values.append(value)
    torch.testing.assert_close(*values)
    assert seen == [12 if select == 'all' else 5] * 2 and loss.rows_of_image is None
    apart = [
        evaluate(
            CKDLoss(),
            *(
                Predictions('', 'dense', [Level(x.levels[0].logits[[i]])], 'sigmoid', 4)
                for x in (student, teacher)
            ),
            parse_select(select, 'select'),
        )[0]
        for i in range(3)
    ]
    torch.testing.assert_close(values[0], sum(apart) / 3)


def test_regions_stand_behind_one_another():
    g = torch.Generator().manual_seed(0)
    logits = [torch.randn(1, 12, 1, 4, generator=g, dtype=torch.float64) for _ in 'st']
    images = torch.tensor([[0] * 5 + [1] * 7])
    labels = torch.tensor([[[x] for x in (3, 0, 3, 1, 3, 3, 2, 2, 3, 3, 0, 3)]])
    student, teacher = (
        Predictions('roi_head.bbox_head', 'roi', [Level(x)], 'softmax', 3, True) for x in logits
    )
    student.levels[0].labels, student.levels[0].images = labels, images
    s, t = (x.view(12, 4) for x in logits)
    rows = labels.flatten() < 3
    value, count = evaluate(KDLoss(), student, teacher, Selection('positive', 2))
    torch.testing.assert_close(value, F.kl_divergence(s[rows], t[rows], 4.0))
    assert count == 5
    for per_image in (False, True):
        loss = CKDLoss(per_image=per_image)
        value, count = evaluate(loss, student, teacher, Selection('all'))
        groups = images[0] if per_image else None
        torch.testing.assert_close(value, F.contrastive(s, t, groups=groups))
    _, count = evaluate(KDLoss(), student, teacher, Selection('teacher_topk', 3), images=2)
    assert count == 6
    # no RoI at all
    for head in (student, teacher):
        head.levels[0].logits = head.levels[0].logits[:, :0]
    student.levels[0].labels = labels[:, :0]
    for select in ('all', 'positive', 'score_weighted', 'teacher_topk'):
        value, count = evaluate(KDLoss(), student, teacher, parse_select(select, 'select'))
        assert value.item() == count.item() == 0


def test_an_image_head_is_the_loss_itself():
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(6, 4, generator=g) for _ in 'st')
    student, teacher = (
        Predictions('head', 'image', [Level(x.view(6, 1, 1, 4))], 'softmax', 4) for x in (s, t)
    )
    student.levels[0].labels = torch.arange(6).remainder(4).view(6, 1, 1)
    for loss in (KDLoss(), CKDLoss(), DKDLoss(), LoCaLoss()):
        value, count = evaluate(loss, student, teacher, Selection('all'))
        extras = dict(labels=student.levels[0].labels.flatten()) if loss.needs else {}
        assert torch.equal(value, loss(s, t, **extras)) and count == 6
    student.levels[0].labels[0] = 9
    with pytest.raises(ValueError, match='labels must lie in 0 to 3'):
        evaluate(DKDLoss(), student, teacher, Selection('all'))


def test_a_score_of_the_head_s_own_is_taken():
    head = Head()
    student, teacher = head.predictions()
    for level in teacher.levels:
        level.score = torch.zeros_like(level.quality)
    teacher.levels[1].score[1, 2, 1] = 0.5
    student.levels[1].valid[1, 2, 1] = student.levels[1].label_weights[1, 2, 1] = 1
    loss = SpyLoss()
    value, count = evaluate(KDLoss(), student, teacher, Selection('score_weighted'))
    rows = [x.levels[1].logits[1, 2, 1][None] for x in (student, teacher)]
    torch.testing.assert_close(value, F.kl_divergence(*rows, 4.0))
    assert count == 0.5
    evaluate(loss, student, teacher, Selection('teacher_topk', 1))
    assert torch.equal(loss.seen['student'][1:], rows[0])


def test_compiled_like_eager():
    torch._dynamo.reset()
    head = Head(dtype=torch.float32)
    for select in ('score_weighted', 'teacher_topk', dict(by='positive', k=4)):
        selection = parse_select(select, 'select')
        loss = made(KDLoss(), head).float()

        def run(loss=loss, selection=selection):
            return evaluate(loss, *head.predictions(), selection)[0]

        compiled = torch.compile(run, backend='aot_eager')
        torch.testing.assert_close(compiled(), run())
        torch.testing.assert_close(head.gradients(compiled()), head.gradients(run()))


def test_too_many_rows_for_a_loss_that_needs_all_at_once(monkeypatch):
    head = Head()
    monkeypatch.setattr(pairing, 'MAX_ROWS', IMAGES * ROWS - 1)
    evaluate(made(KDLoss(), head), *head.predictions(), Selection('all'))
    message = rf"IPWDLoss would compare {IMAGES * ROWS} rows of 'bbox_head' at once.*teacher_topk"
    with pytest.raises(ValueError, match=message):
        evaluate(made(IPWDLoss(), head), *head.predictions(), Selection('all'))


@pytest.mark.parametrize(
    ('loss', 'select', 'missing', 'message'),
    [
        (LoCaLoss, 'all', 'labels', "LoCaLoss needs labels.*'bbox_head'.*data_samples"),
        (KDLoss, 'positive', 'labels', "select='positive' needs labels.*'bbox_head'"),
        (IPWDLoss, 'positive', 'features', 'IPWDLoss needs features.*KDLoss'),
    ],
)
def test_what_is_missing_is_named(loss, select, missing, message):
    head = Head()
    with pytest.raises(ValueError, match=message):
        evaluate(
            made(loss(), head),
            *head.predictions(**{missing: None}),
            parse_select(select, 'select'),
        )


@pytest.mark.parametrize(
    ('config', 'selection'),
    [
        (None, None),
        ('all', Selection('all')),
        ('positive', Selection('positive', 2048)),
        ('teacher_topk', Selection('teacher_topk', 512)),
        (
            dict(by='teacher_topk', k=9, positives=True),
            Selection('teacher_topk', 9, True),
        ),
        (dict(by='random'), Selection('random', 512)),
        (
            dict(by='positive', weights='student_score', reduction='sum'),
            Selection('positive', None, False, 'student_score', 'sum'),
        ),
        (dict(by='positive', reduction='sum', k=7), Selection('positive', 7, reduction='sum')),
    ],
)
def test_select_is_parsed(config, selection):
    assert parse_select(config, 'select') == selection


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('positives', "terms.0..select must be one of .*'positives'; did you mean 'positive'"),
        (dict(by='teacher_top'), "did you mean 'teacher_topk'"),
        (dict(by='teacher_topk', top=5), "unknown key 'top'"),
        (dict(k=5), 'select must be one of .*or a dict such as'),
        (5, 'select must be one of .*got 5'),
        (dict(by='all', k=5), "'all' takes all rows; leave k=5 out"),
        (dict(by='teacher_topk', k=0), 'k=0 must be a number of rows per image'),
        (dict(by='teacher_topk', k=True), 'k=True must be'),
        (dict(by='teacher_topk', k=None), 'k=None must be'),
        (dict(by='random', k='9'), "k='9' must be"),
        (dict(by='teacher_topk', positives='False'), "positives='False' must be True or False"),
        (dict(by='positive', positives=True), "positives=True .*belongs to 'teacher_topk'"),
        (dict(by='teacher_topk', positives=1), 'positives=1 must be True or False'),
        (dict(by='teacher_topk', k=None), 'k=None must be a number of rows per image'),
        (dict(by='positive', weights='score'), "weights must be one of 'student_score', got"),
        (dict(by='score_weighted', weights='student_score'), "by the teacher's score already"),
        (
            dict(by='positive', reduction='some'),
            "reduction must be one of 'mean', 'sum', got 'some'",
        ),
    ],
)
def test_wrong_selects_raise(config, message):
    with pytest.raises(ValueError, match=message):
        parse_select(config, 'terms[0].select')


def test_defaults_of_the_losses_are_valid_for_every_kind():
    for loss in (KDLoss, DKDLoss, LoCaLoss, CKDLoss, IPWDLoss, SpyLoss):
        assert set(loss.default_select) == {
            *('dense', 'roi', 'query', 'pixel', 'image', 'keypoint')
        }
        for kind, config in loss.default_select.items():
            assert parse_select(config, 'select').by == (
                config['by'] if isinstance(config, dict) else config
            )
            assert kind != 'image' or config == 'all'


RANKS = {'KD': dict(), 'IPWD': dict(normalize='batch_mean', clip_max=1.3)}
SCRIPT = """
import torch
import torch.distributed as dist
import test_selection as case

dist.init_process_group('gloo')
torch.save(case.distributed(dist.get_rank(), 2), f'{out}/{{dist.get_rank()}}.pth')
dist.destroy_process_group()
"""


def distributed(rank: int, world: int) -> dict:
    """Value, auxiliary loss and gradients of a rank's images, as a term and DDP combine them."""
    results = {}
    for select in ('positive', 'score_weighted', dict(by='teacher_topk', k=5)):
        for name, options in RANKS.items():
            head = Head(images=3)
            for labels in head.labels:
                labels[2] = CLASSES  # an image without positives
            loss = made(IPWDLoss(**options) if name == 'IPWD' else KDLoss(), head)
            student, teacher = head.predictions()
            # two images for the first rank, one without positives for the second
            own = slice(0, 3) if world == 1 else (slice(0, 2), slice(2, 3))[rank]
            for level in (*student.levels, *teacher.levels):
                for key in ('logits', 'labels', 'label_weights', 'valid', 'quality', 'features'):
                    x = getattr(level, key)
                    setattr(level, key, None if x is None else x[own])
            value, count = evaluate(loss, student, teacher, parse_select(select, 'select'))
            total = count.clone()
            if world > 1:
                torch.distributed.all_reduce(total)
            value = value * count / (total / world)
            grads = torch.autograd.grad(value, head.student, allow_unused=True)
            results[str(select), name] = value.detach(), grads
    return results


def test_two_processes_with_unequal_positives_equal_one(tmp_path):
    run_ranks(SCRIPT.format(out=str(tmp_path)))
    ranks = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    for key, (value, grads) in distributed(0, 1).items():
        mean = sum(results[key][0] for results in ranks) / 2
        torch.testing.assert_close(mean, value, rtol=1e-10, atol=0)
        for i, grad in enumerate(grads):
            parts = sum(results[key][1][i] for results in ranks) / 2
            torch.testing.assert_close(parts, grad, rtol=1e-8, atol=1e-12)


def test_a_loss_that_wants_all_rows_at_once_takes_some_of_many_pixels():
    """Four images of 512 x 512 at stride 2 have more pixels than IPWD puts behind one another."""
    pixels, classes = 256 * 256, 3
    shape = (4, pixels, 1)
    s, t = (
        Predictions('decode_head', 'pixel', [Level(torch.randn(*shape, classes))], 'softmax', 3)
        for _ in range(2)
    )
    s.levels[0].logits.requires_grad_()
    s.levels[0].labels = torch.randint(classes, shape)
    s.levels[0].features = torch.randn(4, pixels, 2)
    loss = IPWDLoss()
    loss.adopt('softmax', False)
    loss.connect((1, classes), (1, classes), (1, 2))
    with pytest.raises(ValueError, match='more than 131072'):
        evaluate(loss, s, t, parse_select('all', 'select'))
    value, count = evaluate(loss, s, t, parse_select(loss.default_select['pixel'], 'select'))
    assert value.isfinite() and count == 4 * 4096
