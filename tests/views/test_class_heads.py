"""The view cls_logits on every head of MMPreTrain: right, or refused before training."""

from __future__ import annotations

import inspect
from importlib.util import find_spec

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.nn import functional as nnf

import mmkd_plugin
from mmkd_plugin import functional as F
from mmkd_plugin.taps import TapError
from mmkd_plugin.views import make_view
from mmkd_plugin.views.activation import activation_of

if find_spec('mmpretrain') is None:  # an installed but broken one must not pass as missing
    pytest.skip('needs MMPreTrain: pip install onedl-mmpretrain', allow_module_level=True)

from mmpretrain.models import heads as mmpretrain_heads
from mmpretrain.models import losses as mmpretrain_losses
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

CLASSES, WIDTH = 5, 6
KD = dict(loss=dict(type='KDLoss', temperature=2.0), student='cls_logits', name='kd')
BCE = dict(type='CrossEntropyLoss', use_sigmoid=True)
# What a backbone gives to a head: vectors, maps, one vector for each of two tokens.
VECTORS, MAPS, TOKENS = 'vectors', 'maps', 'tokens'

# name: (arguments, what it reads, activation, whether one layer's input are its features)
SERVED = dict(
    LinearClsHead=(dict(), VECTORS, 'softmax', True),
    StackedLinearClsHead=(dict(mid_channels=[4, CLASSES]), VECTORS, 'softmax', True),
    VisionTransformerClsHead=(dict(hidden_dim=4), VECTORS, 'softmax', True),
    VigClsHead=(dict(hidden_dim=4), VECTORS, 'softmax', True),
    ArcFaceClsHead=(dict(num_subcenters=2, scale=16.0), VECTORS, 'softmax', True),
    MultiLabelLinearClsHead=(dict(), VECTORS, 'sigmoid', True),
    CSRAClsHead=(dict(num_heads=2, lam=0.1), MAPS, 'sigmoid', False),
    ConformerHead=(dict(in_channels=[WIDTH, WIDTH]), TOKENS, 'softmax', False),
    DeiTClsHead=(dict(), TOKENS, 'softmax', False),
    EfficientFormerClsHead=(dict(distillation=False), VECTORS, 'softmax', True),
    LeViTClsHead=(dict(distillation=False), VECTORS, 'softmax', True),
    # Their logits are made by the backbone (VGG, LeNet).
    ClsHead=(None, VECTORS, 'softmax', False),
    MultiLabelClsHead=(None, VECTORS, 'sigmoid', False),
)
# name: (arguments, what the refusal says)
REFUSED = dict(
    MultiTaskHead=(
        dict(task_heads=dict(a=dict(type='LinearClsHead', num_classes=2, in_channels=WIDTH))),
        "head.task_heads.<task>.fc'",
    ),
    RegressionHead=(dict(), 'predicts numbers'),
    LinearRegressionHead=(dict(num_classes=CLASSES, in_channels=WIDTH), 'predicts numbers'),
)
# Of pre-training and of models with text; there is no classifier that has one. Built without their
# __init__: they are refused by what they are.
NO_CLASSIFIERS = (
    'BEiTV1Head', 'BEiTV2Head', 'CAEHead', 'ContrastiveHead', 'GroundingHead', 'ITCHead', 'ITMHead',
    'LatentCrossCorrelationHead', 'LatentPredictHead', 'MAEPretrainHead', 'MIMHead',
    'MixMIMPretrainHead', 'MoCoV3Head', 'SeqGenerationHead', 'SimMIMHead', 'SparKPretrainHead',
    'SwAVHead', 'VQAGenerationHead', 'iTPNClipHead',
)  # fmt: skip


class Backbone(nn.Module):
    """Means of the images in whatever form a head reads."""

    def __init__(self, form: str, width: int, num_classes: int = -1) -> None:
        super().__init__()
        self.form, self.num_classes = form, num_classes
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, inputs):
        maps = self.conv(inputs)
        vectors = maps.mean((2, 3))
        forms = dict(vectors=vectors, maps=maps, tokens=[vectors, vectors.roll(1, 1)])
        return (forms[self.form],)


class Classifier(BaseModel):
    """As MMPreTrain's, whose own needs a registered backbone."""

    def __init__(self, head: nn.Module, form: str, seed: int) -> None:
        super().__init__()
        bare = not list(head.parameters())
        self.backbone = Backbone(form, *([CLASSES] * 2 if bare else [WIDTH]))
        self.head = head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.5)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.backbone(inputs)
        if mode == 'loss':
            return self.head.loss(features, data_samples)
        return self.head(features)


def build(name: str, seed: int = 0, **more) -> Classifier:
    arguments, form = SERVED[name][:2]
    if arguments is not None:
        arguments = dict(dict(num_classes=CLASSES, in_channels=WIDTH), **arguments)
    return Classifier(MODELS.build(dict(type=name, **(arguments or {}), **more)), form, seed)


def batch(labels=(0, 3, 1, 3)):
    images = torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return images, [DataSample().set_gt_label(label) for label in labels]


def distilled(student, teacher, loss, **kwargs):
    term = dict(KD, loss=loss)
    mmkd_plugin.attach(student, teacher, [term], probe_size=(8, 8), **kwargs)
    return student.train()


def test_every_head_is_known():
    """A head that a new version brings is looked at before it is called right."""
    registered = {
        name
        for name, cls in MODELS.module_dict.items()
        if cls.__module__.startswith('mmpretrain.models.heads.')
    } | {
        name
        for name, cls in inspect.getmembers(mmpretrain_heads, inspect.isclass)
        if cls.__module__.startswith('mmpretrain.models.heads.')
    }
    known = {*SERVED, *REFUSED, *NO_CLASSIFIERS}
    assert registered - known == set()
    # The official release lacks some.
    assert known - registered <= {'RegressionHead', 'LinearRegressionHead'}


def logits_of(model, images):
    """What the head predicts from, by MMPreTrain's own code in a test."""
    output = model(images, mode='tensor')
    return sum(output) if isinstance(output, tuple) else output


def divergence(activation, student, teacher, temperature=2.0):
    formula = F.binary_kl if activation == 'sigmoid' else F.kl_divergence
    return formula(student, teacher, temperature)


@pytest.mark.parametrize('name', SERVED)
def test_the_loss_is_that_of_what_the_head_predicts_from(name):
    activation = SERVED[name][2]
    labels = (
        [[0, 1], [2], [3], []] if 'MultiLabel' in name or name == 'CSRAClsHead' else [0, 3, 1, 3]
    )
    images, samples = batch(labels)
    student, teacher = build(name), build(name, 1)
    (spec,) = make_view('cls_logits', student).specs(student)
    assert (spec.activation, spec.num_classes) == (activation, CLASSES)
    twin, target = logits_of(build(name).train(), images), logits_of(teacher.eval(), images)
    losses = distilled(student, teacher, KD['loss'])(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_kd'], divergence(activation, twin, target))
    assert losses['loss_kd'] > 1e-3
    losses['loss_kd'].backward()
    assert student.backbone.conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize('name', SERVED)
def test_features_are_those_of_the_one_layer_or_refused(name):
    student, activation, single = build(name), *SERVED[name][2:]
    labels = [DataSample().set_gt_label(0) for _ in range(4)]
    if activation == 'sigmoid':
        loss, word = 'IPWDLoss', 'multi-label'
    else:
        loss, word = 'IPWDLoss', 'what the classification layer'
    if not single or activation == 'sigmoid':
        with pytest.raises(TapError, match=word):
            distilled(student, build(name, 1), dict(type=loss))
        return
    view = make_view('cls_logits', student, ('features',))
    layer = student.get_submodule(view.head.features.path)
    losses = distilled(student, build(name, 1), dict(type=loss))(batch()[0], labels, mode='loss')
    assert losses['loss_kd'].isfinite() and layer.in_features == view.head.feature_dim


@pytest.mark.parametrize('name', ['EfficientFormerClsHead', 'LeViTClsHead'])
def test_a_teacher_of_two_layers_says_their_mean(name):
    """MMPreTrain cannot train these; in a test they answer with the mean of both layers."""
    arguments = dict(SERVED[name][0], distillation=True, num_classes=CLASSES, in_channels=WIDTH)
    teacher = Classifier(MODELS.build(dict(type=name, **arguments)), VECTORS, 1).eval()
    images, samples = batch()
    student = distilled(build('LinearClsHead'), teacher, KD['loss'])
    loss = student(images, samples, mode='loss')['loss_kd']
    twin = build('LinearClsHead').train()(images)
    torch.testing.assert_close(loss, F.kl_divergence(twin, teacher(images), 2.0))


@pytest.mark.parametrize('name', REFUSED)
def test_other_heads_are_refused_by_name(name):
    if name not in MODELS.module_dict:
        pytest.skip(f'this MMPreTrain has no {name}')
    arguments, words = REFUSED[name]
    model = Classifier(MODELS.build(dict(type=name, **arguments)), VECTORS, 0)
    with pytest.raises(TapError, match=f'{name}, .*{words}'):
        make_view('cls_logits', model)


@pytest.mark.parametrize('name', NO_CLASSIFIERS)
def test_heads_of_other_models_are_refused_by_name(name):
    model = Classifier(nn.Linear(WIDTH, CLASSES), VECTORS, 0)
    model.head = MODELS.get(name).__new__(MODELS.get(name))
    nn.Module.__init__(model.head)
    with pytest.raises(TapError, match=f'{name}, .*Distil features'):
        make_view('cls_logits', model)


def test_tasks_can_be_distilled_one_by_one():
    head = dict(
        type='MultiTaskHead',
        task_heads=dict(
            a=dict(type='LinearClsHead', num_classes=2, in_channels=WIDTH),
            b=dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=WIDTH),
        ),
    )
    student, teacher = (Classifier(MODELS.build(head), VECTORS, seed) for seed in (0, 1))
    path = 'head.task_heads.{}.fc'
    with pytest.raises(TapError, match='MultiLabelLinearClsHead, whose loss has a sigmoid'):
        mmkd_plugin.attach(student, teacher, [dict(KD, student=path.format('b'))])
    terms = [
        dict(KD, name='a', student=path.format('a')),
        dict(KD, name='b', student=path.format('b'), loss=dict(KD['loss'], use_sigmoid=True)),
    ]
    distiller = mmkd_plugin.attach(student, teacher, terms, probe_size=(8, 8))
    assert len(distiller.plan()) == 2


# -- what a loss does with the logits ----------------------------------------------------------

# Of MMPreTrain's losses those on class logits.
LOSSES = [
    (dict(type='CrossEntropyLoss'), 'softmax'),
    (dict(type='CrossEntropyLoss', use_soft=True), 'softmax'),
    (dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 1.0, 1.0, 3.0]), 'softmax'),
    (BCE, 'sigmoid'),
    (dict(BCE, pos_weight=[2.0] * CLASSES), 'sigmoid'),
    (dict(type='FocalLoss'), 'sigmoid'),
    (dict(type='AsymmetricLoss'), 'sigmoid'),
    (dict(type='AsymmetricLoss', use_sigmoid=False), 'softmax'),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=CLASSES), 'softmax'),
    (
        dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=CLASSES, use_sigmoid=True),
        'sigmoid',
    ),
    (dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='multi_label'), 'sigmoid'),
    (dict(type='SeesawLoss', num_classes=CLASSES), 'softmax'),
]


@pytest.mark.parametrize(('loss', 'expected'), LOSSES)
def test_a_single_label_head_follows_its_loss(loss, expected):
    model = build('LinearClsHead', loss=loss)
    (spec,) = make_view('cls_logits', model).specs(model)
    assert spec.activation == expected


def test_every_loss_is_known():
    """A loss on class logits that a new version brings is tried out above."""
    others = {
        'CAELoss', 'CosineSimilarityLoss', 'CrossCorrelationLoss', 'PixelReconstructionLoss',
        'RegressionLoss', 'SwAVLoss',
    }  # fmt: skip
    found = {
        name
        for name, cls in inspect.getmembers(mmpretrain_losses, inspect.isclass)
        if issubclass(cls, nn.Module)
    }
    assert found <= others | {loss['type'] for loss, _ in LOSSES}


class Poly(nn.Module):
    """A softmax loss that says nothing of itself."""

    def forward(self, logits, labels):
        plain = nnf.cross_entropy(logits, labels, reduction='none')
        return (plain + 1 - torch.exp(-plain)).mean()


class Squares(nn.Module):
    def forward(self, logits, targets):
        return (logits - targets).square().mean()


@pytest.mark.parametrize(
    ('loss', 'expected'),
    [
        (nn.CrossEntropyLoss(), 'softmax'),
        (nn.BCEWithLogitsLoss(), 'sigmoid'),
        (nn.MultiLabelSoftMarginLoss(), 'sigmoid'),
        (Poly(), 'softmax'),
        (Squares(), None),
    ],
)
def test_a_loss_that_does_not_say_is_tried_out(loss, expected):
    state = torch.get_rng_state()
    assert activation_of(loss, CLASSES) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_trying_out_leaves_no_trace():
    loss = MODELS.build(dict(type='SeesawLoss', num_classes=CLASSES))
    del loss.use_sigmoid
    assert activation_of(loss, CLASSES) == 'softmax' and not loss.cum_samples.any()


def test_what_cannot_be_told_is_refused_with_the_way_out():
    model = build('LinearClsHead')
    model.head.loss_module = Squares()
    with pytest.raises(TapError, match='Squares of LinearClsHead.*use_sigmoid, True or False'):
        make_view('cls_logits', model)
    model.head.loss_module.use_sigmoid = True
    assert make_view('cls_logits', model).head.activation == 'sigmoid'


def test_a_scale_inside_of_the_loss_is_refused():
    model = build('LinearClsHead')
    model.head.loss_module = nn.CrossEntropyLoss()
    model.head.loss_module.s = 30.0  # CosFace and its kin
    with pytest.raises(TapError, match='multiplies the logits by s=30'):
        make_view('cls_logits', model)


class CosHead(nn.Module):
    """Margin and scale of its own, by names of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, CLASSES, bias=False)
        self.loss_module = nn.CrossEntropyLoss()

    def forward(self, feats, labels=None):
        cosines = nnf.linear(nnf.normalize(feats[-1]), nnf.normalize(self.fc.weight))
        return 30 * (cosines if labels is None else cosines - 0.3 * nnf.one_hot(labels, CLASSES))


def test_an_unknown_margin_head_is_refused():
    with pytest.raises(TapError, match='CosHead treats the true class in another way'):
        make_view('cls_logits', Classifier(CosHead(), VECTORS, 0))


class Scaled(nn.Module):
    """A normalised head that scales where it predicts."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, feats):
        return 20 * nnf.linear(nnf.normalize(feats[-1]), nnf.normalize(self.fc.weight))

    def loss(self, feats, data_samples):
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss_cls=nnf.cross_entropy(self(feats), labels))


def test_logits_are_what_the_head_gives_not_its_last_layer():
    student, teacher = (Classifier(Scaled(), VECTORS, seed) for seed in (0, 1))
    images, samples = batch()
    expected = F.kl_divergence(student(images), teacher(images), 2.0)
    losses = distilled(student, teacher, KD['loss'])(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_kd'], expected)


# -- methods on sigmoid heads ------------------------------------------------------------------


@pytest.mark.parametrize('loss', ['DKDLoss', 'LoCaLoss', 'IPWDLoss'])
def test_a_multi_label_head_has_no_label_for_single_label_methods(loss):
    name = 'MultiLabelLinearClsHead'
    with pytest.raises(TapError, match=f'targets of {name} are multi-label.*KDLoss'):
        distilled(build(name), build(name, 1), dict(type=loss))


@pytest.mark.parametrize('loss', ['DKDLoss', 'LoCaLoss', 'IPWDLoss'])
def test_several_labels_of_an_image_are_not_several_images(loss):
    """A single-label head would read four labels as those of four images."""
    student = distilled(build('LinearClsHead'), build('LinearClsHead', 1), dict(type=loss))
    images, samples = batch([[0, 1], [2], [3], []])
    student.head.loss = lambda feats, data_samples: dict(loss=student.head(feats).sum())
    with pytest.raises(ValueError, match=r'multi-label \(the gt_label of one is \[0, 1\]\)'):
        student(images, samples, mode='loss')
    samples = dict(gt_label=torch.eye(4, CLASSES).long())
    with pytest.raises(ValueError, match=r'multi-label \(gt_label is \(4, 5\)\)'):
        student(images, samples, mode='loss')


def test_contrasts_need_no_labels():
    name = 'MultiLabelLinearClsHead'
    student = distilled(build(name), build(name, 1), dict(type='CKDLoss'))
    losses = student(*batch([[0, 1], [2], [3], []]), mode='loss')
    assert losses['loss_kd'] > 0


@pytest.mark.parametrize('loss', ['LoCaLoss', 'IPWDLoss', 'CKDLoss'])
def test_a_single_label_sigmoid_head_is_like_those_of_detectors(loss):
    focal = dict(loss=dict(type='FocalLoss'))
    models = [build('LinearClsHead', seed, **focal) for seed in (0, 1)]
    images, samples = batch()
    student = distilled(*models, dict(type=loss))
    value = student(images, samples, mode='loss')['loss_kd']
    assert value.isfinite() and value > 0
    if loss == 'LoCaLoss':
        logits, target = (build('LinearClsHead', s, **focal)(images) for s in (0, 1))
        plain = F.binary_kl(logits, target, 4.0)
        assert student.distiller.terms[0].losses[0].activation == 'sigmoid' and value != plain


def test_dkd_needs_a_softmax():
    models = [build('LinearClsHead', seed, loss=dict(type='FocalLoss')) for seed in (0, 1)]
    with pytest.raises(TapError, match='DKDLoss splits a softmax.*sigmoid'):
        distilled(*models, dict(type='DKDLoss'))


def test_a_softmax_student_of_a_sigmoid_teacher_is_refused():
    teacher = build('LinearClsHead', 1, loss=dict(type='FocalLoss'))
    with pytest.raises(TapError, match='for a softmax, those of the teacher .* for a sigmoid'):
        distilled(build('LinearClsHead'), teacher, KD['loss'])


def test_a_module_path_of_a_sigmoid_head_wants_a_word():
    term = dict(KD, student='head.fc')
    models = [build('MultiLabelLinearClsHead', seed) for seed in (0, 1)]
    with pytest.raises(TapError, match="head.fc.*sigmoid.*student='cls_logits'.*use_sigmoid=True"):
        mmkd_plugin.attach(*models, [term], probe_size=(8, 8))
    images, samples = batch([[0, 1], [2], [3], []])
    twins = [build('MultiLabelLinearClsHead', seed)(images) for seed in (0, 1)]
    term['loss'] = dict(KD['loss'], use_sigmoid=True)
    mmkd_plugin.attach(*models, [term], probe_size=(8, 8))
    loss = models[0].train()(images, samples, mode='loss')['loss_kd']
    torch.testing.assert_close(loss, F.binary_kl(*twins, 2.0))


class WithoutHead(BaseModel):
    """As MMPreTrain's TimmClassifier: the loss belongs to the model."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, CLASSES))
        self.loss_module = MODELS.build(BCE)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.model(inputs)


def test_a_model_with_a_loss_of_its_own_is_asked_as_well():
    with pytest.raises(TapError, match='belongs to WithoutHead, whose loss has a sigmoid'):
        mmkd_plugin.attach(WithoutHead(), WithoutHead(), [dict(KD, student='model')])
