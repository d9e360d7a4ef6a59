"""The doctor on classifiers: healthy pairs, and one planted fault for each code."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from examined_pairs import CLASSES, MEAN, STD, OneShape, diagnose, distilled, found
from mmengine.config import Config
from torch.nn.functional import dropout

from mmkd_plugin.diagnosis.findings import CODES
from mmkd_plugin.losses import KDLoss
from mmkd_plugin.models import CIFARResNet
from mmkd_plugin.registry import DATASETS, MODELS

TERM_KEYS = {'weight', 'loss', 'rows', 'gradient_ratio', 'cosine', 'suggested_weight'}
COST_KEYS = {'student_step_s', 'teacher_s', 'terms_s', 'distilled_step_s', 'peak_memory_mb'}


@pytest.fixture
def pair(classifiers):
    """Makes a config of the pair with another teacher, checkpoint or hook."""

    def make(checkpoint=classifiers.teacher, student=None, teacher=None, **hook) -> Config:
        student = student or classifiers.student_config
        teacher = teacher or classifiers.teacher_config
        return distilled(student, teacher, checkpoint, **hook)

    return make


def with_model(config: dict, **changes) -> dict:
    """A config with changes to parts of its model."""
    config = copy.deepcopy(config)
    for part, values in changes.items():
        config['model'][part].update(values)
    return config


# -- healthy pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize('recipe', ['kd', 'gdd', 'gdd+kd', 'dkd', 'ipwd', 'mgd'])
def test_a_healthy_pair_has_no_error(pair, classifiers, recipe):
    report = diagnose(pair(recipe=recipe), classifiers.student)
    assert not found(report, 'error') and report.status == 0
    # A better teacher was no sign of a gain, see docs/why-not.md.
    assert report.answer == 'cannot tell' and 'scores +' in report.because[0]
    assert report.teacher['accuracy/top1'] > report.student['accuracy/top1'] + 20
    for numbers in report.terms.values():
        assert numbers.gradient_ratio > 0 and -1 <= numbers.cosine <= 1
        assert numbers.suggested_weight > 0


@pytest.mark.parametrize('options', [dict(images=16, batches=1), dict(images=40, batches=2)])
def test_few_images_give_no_false_error(pair, classifiers, options):
    assert not found(diagnose(pair(), classifiers.student, **options), 'error')


def test_a_weak_but_real_teacher_is_no_error(pair, classifiers):
    """It is right on a third of the images, the student on fewer."""
    report = diagnose(pair(classifiers.weak), classifiers.student)
    assert not found(report, 'error')
    assert report.teacher['objects/right'] < 0.5


def test_without_a_student_there_is_no_verdict(pair):
    report = diagnose(pair())
    assert report.answer == 'cannot tell' and report.student is None
    assert '--student-checkpoint' in report.because[0]
    assert not found(report, 'error')


def test_the_json_is_as_pinned(pair, classifiers):
    content = json.loads(json.dumps(diagnose(pair(), classifiers.student).as_dict()))
    assert list(content) == [
        'version', 'findings', 'terms', 'teacher', 'student', 'cost', 'verdict',
    ]  # fmt: skip
    assert content['version'] == 1
    assert set(content['terms']['kd']) == TERM_KEYS
    assert set(content['cost']) == COST_KEYS and content['cost']['distilled_step_s'] > 0
    assert set(content['verdict']) == {'answer', 'because'}
    assert list(content['teacher']) == list(content['student']) == ['metrics']
    content = diagnose(pair(classifiers.random)).as_dict()
    assert content['student'] == dict(metrics=None)
    for finding in content['findings']:
        assert set(finding) == {'code', 'severity', 'where', 'evidence', 'advice'}
        assert finding['code'] in CODES and isinstance(finding['evidence'], dict)


def test_nothing_is_written_and_the_config_stays(pair, classifiers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = pair(recipe='gdd+kd')
    before = cfg.pretty_text
    state = torch.random.get_rng_state()
    diagnose(cfg, classifiers.student)
    assert cfg.pretty_text == before and not list(tmp_path.iterdir())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_weight_that_is_found_is_the_suggested_one(pair, classifiers):
    auto = diagnose(pair(recipe='kd', weights='auto'), classifiers.student).terms['kd']
    fixed = diagnose(pair(recipe='kd', weights=dict(kd=2.0)), classifiers.student).terms['kd']
    assert auto.weight == auto.suggested_weight == pytest.approx(fixed.suggested_weight, rel=1e-3)
    # the target of images is 1, and a weight is proportional to the ratio
    assert auto.gradient_ratio == pytest.approx(1, rel=0.5)
    assert fixed.gradient_ratio / 2 == pytest.approx(auto.gradient_ratio / auto.weight, rel=1e-3)


# -- images and classes ------------------------------------------------------------------------


def test_channel_order(pair, classifiers):
    def exchange(state):
        state['backbone.conv1.weight'] = state['backbone.conv1.weight'].flip(1)

    report = diagnose(pair(classifiers.changed('bgr.pth', exchange)), classifiers.student)
    assert found(report, 'error') == {'channel-order'}
    finding = report.findings[0]  # gradients in conflict may follow from it
    assert "order='bgr'" in finding.advice and finding.evidence['p'] < 0.005
    assert report.answer == 'does not help'


@pytest.mark.parametrize(
    'mean, std',
    [([0.0], [255.0]), ([0.0], [1.0]), (MEAN, [4 * value for value in STD])],
    ids=['0 to 1', 'raw', 'std'],
)
def test_normalization(pair, classifiers, mean, std):
    teacher = with_model(classifiers.teacher_config, data_preprocessor=dict(mean=mean, std=std))
    report = diagnose(pair(teacher=teacher), classifiers.student)
    assert found(report, 'error') == {'normalization'}
    assert report.findings[0].evidence['read_as'] == "as the student's"


def test_the_advice_on_images_mends_the_pair(pair, classifiers):
    wrong = dict(mean=[0.0], std=[255.0])
    teacher = with_model(classifiers.teacher_config, data_preprocessor=wrong)
    (finding,) = diagnose(pair(teacher=teacher), classifiers.student).findings
    inputs = eval(finding.advice.replace('teacher=dict(..., ', 'dict('))['inputs']
    mended = pair(teacher=teacher, teacher_options=dict(inputs=inputs), recipe='kd')
    assert not diagnose(mended, classifiers.student).findings


def renamed(order):
    def change(state):
        for name in ('weight', 'bias'):
            state[f'head.fc.{name}'] = state[f'head.fc.{name}'][order]

    return change


@pytest.mark.parametrize(
    'order', [[1, 2, 3, 4, 5, 6, 7, 0], [0, 1, 5, 3, 4, 2, 6, 7]], ids=['rotated', 'two']
)
def test_class_order(pair, classifiers, order):
    file = classifiers.changed('order.pth', renamed(order))
    report = diagnose(pair(file), classifiers.student)
    assert found(report, 'error') == {'class-order'}
    advice = report.findings[0].advice
    # the teacher's index of each class of the student
    wanted = [order.index(label) for label in range(len(order))]
    assert f'class_map={wanted}' in advice
    mended = pair(file, teacher_options=dict(class_map=wanted), recipe='kd')
    assert not found(diagnose(mended, classifiers.student))


def test_names_that_lie(pair, classifiers):
    file = classifiers.changed('lie.pth', classes=CLASSES[1:] + CLASSES[:1])
    report = diagnose(pair(file, recipe='gdd'), classifiers.student)
    assert found(report) == {'class-order'}, 'what the names say is no advice'
    wanted = list(range(len(CLASSES)))  # the head still has the order of the data set
    assert f'class_map={wanted}' in report.findings[0].advice
    mended = pair(file, teacher_options=dict(class_map=wanted), recipe='kd')
    assert not found(diagnose(mended, classifiers.student))


def test_class_names(pair, classifiers):
    rotated = classifiers.changed(
        'names.pth', renamed([1, 2, 3, 4, 5, 6, 7, 0]), CLASSES[1:] + CLASSES[:1]
    )
    report = diagnose(pair(rotated), classifiers.student)
    assert found(report, 'error') == {'class-names'}, 'the names tell the truth'
    assert report.findings[0].advice == "teacher=dict(..., class_map='names')"
    other = classifiers.changed('spelled.pth', classes=[c.title() + 's' for c in CLASSES])
    report = diagnose(pair(other), classifiers.student)
    assert found(report, 'error') == {'class-names'}
    assert report.findings[0].evidence['spelled_otherwise'] == len(CLASSES)
    assert "'red bar': 'Red Bars'" in report.findings[0].advice
    features = diagnose(pair(other, recipe='gdd'), classifiers.student)
    assert not found(features, 'error') and found(features, 'warning') == {'class-names'}


# -- the teacher -------------------------------------------------------------------------------


def test_untrained_teacher(pair, classifiers):
    report = diagnose(pair(classifiers.random), classifiers.student)
    assert found(report, 'error') == {'untrained-teacher'}
    evidence = report.findings[0].evidence
    assert evidence['untouched_norms'] == 1 and evidence['unchanged_tensors']['backbone'] == 1
    hook = dict(teacher_options=dict(allow_random=True), recipe='kd')
    assert 'untrained-teacher' in found(diagnose(pair(None, **hook)), 'error')


def test_a_backbone_alone_is_untrained(pair, classifiers):
    random = torch.load(classifiers.random, weights_only=True)['state_dict']

    def fresh_head(state):
        state.update({name: random[name] for name in state if name.startswith('head')})

    def half_fresh(state):
        state.update({name: random[name] for name in list(state)[::2]})

    def no_head(state):
        for name in [name for name in state if name.startswith('head')]:
            del state[name]

    saved = classifiers.changed('fresh.pth', fresh_head)
    assert found(diagnose(pair(saved), classifiers.student), 'error') == {'untrained-teacher'}
    half = classifiers.changed('half.pth', half_fresh)
    assert found(diagnose(pair(half), classifiers.student), 'error') == {'untrained-teacher'}
    part = classifiers.changed('part.pth', no_head)
    report = diagnose(pair(part), classifiers.student)
    assert found(report, 'error') == {'bad-checkpoint', 'untrained-teacher'}
    report = diagnose(pair(part, teacher_options=dict(allow_partial=True), recipe='kd'))
    assert found(report, 'error') == {'untrained-teacher'}


def test_weak_teacher_and_nothing_to_learn(pair, classifiers):
    big = classifiers.teacher_config
    report = diagnose(pair(classifiers.weak, student=big), classifiers.teacher)
    assert 'weak-teacher' in found(report, 'warning') and not found(report, 'error')
    assert report.answer == 'does not help'
    report = diagnose(pair(student=big), classifiers.teacher)
    assert found(report) == {'nothing-to-learn'}
    assert report.answer == 'does not help'


@MODELS.register_module(force=True)
class DrawingResNet(CIFARResNet):
    """Drops out in eval mode, too."""

    def forward(self, x):
        return tuple(dropout(m, 0.3, training=True) for m in super().forward(x))


@MODELS.register_module(force=True)
class RestlessResNet(CIFARResNet):
    """Its norms never rest."""

    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize('kind', ['DrawingResNet', 'RestlessResNet'])
def test_teacher_in_training_mode(pair, classifiers, kind):
    teacher = with_model(classifiers.teacher_config, backbone=dict(type=kind))
    report = diagnose(pair(teacher=teacher), classifiers.student)
    assert found(report, 'error') == {'teacher-in-training-mode'}


# -- terms -------------------------------------------------------------------------------------


def gdd(tap: str, **term) -> dict:
    return dict(loss=dict(type='GDDLoss'), student=tap, **term)


KD = dict(loss=dict(type='KDLoss'), student='cls_logits')


def test_levels_of_other_strides(pair, classifiers):
    term = gdd('backbone.layer2', teacher='backbone.layer1')
    for terms in ([term, KD], [dict(term, resize='bilinear'), KD]):
        report = diagnose(pair(terms=terms), classifiers.student)
        assert found(report, 'error') == {'levels-misaligned'}
        assert report.terms['kd'].gradient_ratio > 0, 'the other term is measured all the same'


@MODELS.register_module(force=True)
class ShiftedResNet(CIFARResNet):
    """Sees another crop."""

    def forward(self, x):
        return super().forward(torch.roll(x, (4, 4), (2, 3)))


def test_levels_that_are_moved(pair, classifiers):
    teacher = with_model(classifiers.teacher_config, backbone=dict(type='ShiftedResNet'))
    terms = [gdd('backbone.layer1')]
    report = diagnose(pair(teacher=teacher, terms=terms), classifiers.student)
    (finding,) = [f for f in report.findings if f.code == 'levels-misaligned']
    assert (finding.evidence['rows'], finding.evidence['columns']) == (-4, -4)
    assert 'levels-misaligned' not in found(diagnose(pair(terms=terms), classifiers.student))


@MODELS.register_module(force=True)
class FrozenResNet(CIFARResNet):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(('conv1', 'bn1', 'layer1')))


def test_frozen_tap(pair, classifiers):
    student = with_model(classifiers.student_config, backbone=dict(type='FrozenResNet'))
    report = diagnose(pair(student=student, terms=[gdd('backbone.layer1'), KD]))
    assert found(report) == {'frozen-tap'}
    assert report.findings[0].where == 'gdd' and report.terms['kd'].gradient_ratio > 0
    assert report.cost['distilled_step_s'] > 0


@pytest.mark.parametrize('weight, code', [(1e-5, 'weight-too-small'), (1e3, 'weight-too-large')])
@pytest.mark.parametrize('trained', [True, False])
def test_weights(pair, classifiers, weight, code, trained):
    cfg = pair(recipe='kd', weights=dict(kd=weight))
    report = diagnose(cfg, classifiers.student if trained else None)
    assert found(report) == {code}
    suggested = report.terms['kd'].suggested_weight
    assert report.findings[0].advice == f'--weight kd={suggested:g}'
    mended = pair(recipe='kd', weights=dict(kd=suggested))
    assert not found(diagnose(mended, classifiers.student if trained else None))


@MODELS.register_module(force=True)
class AwayLoss(KDLoss):
    """Pushes the student away from the teacher."""

    separable = False

    def rows(self, student, teacher):
        return -super().rows(student, teacher)


def test_gradient_conflict(pair, classifiers):
    terms = [dict(loss=dict(type='AwayLoss'), student='cls_logits')]
    report = diagnose(pair(terms=terms), classifiers.student)
    assert found(report) == {'gradient-conflict'} and report.answer == 'cannot tell'


def test_overflow(pair, classifiers):
    def large(state):
        state['backbone.layer1.0.bn2.weight'] *= 1e6

    file = classifiers.changed('large.pth', large)
    cfg = pair(file, recipe='gdd')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    report = diagnose(cfg, classifiers.student)
    assert 'overflow' in found(report, 'error')
    cfg.optim_wrapper.dtype = 'bfloat16'
    assert 'overflow' not in found(diagnose(cfg, classifiers.student))
    healthy = pair()
    healthy.optim_wrapper.type = 'AmpOptimWrapper'
    assert not found(diagnose(healthy, classifiers.student))


def test_baseline_differs(pair, classifiers):
    same = Config(copy.deepcopy(classifiers.student_config))
    assert not found(diagnose(pair(), classifiers.student, baseline=same))
    other = copy.deepcopy(same)
    other.optim_wrapper.optimizer.lr = 0.2
    other.optim_wrapper.clip_grad = dict(max_norm=1)
    other.train_cfg.max_epochs = 20
    report = diagnose(pair(), classifiers.student, baseline=other)
    assert found(report) == {'baseline-differs'}
    evidence = report.findings[0].evidence
    assert evidence['differences'] == 3
    assert evidence['optim_wrapper.optimizer.lr'] == [0.1, 0.2]


def test_weights_that_only_the_distilled_student_begins_with(pair, classifiers):
    big = classifiers.teacher_config
    cfg = pair(student=big, init_student='backbone', recipe='kd')
    report = diagnose(cfg, baseline=Config(copy.deepcopy(big)))
    (finding,) = [f for f in report.findings if f.code == 'baseline-differs']
    assert finding.evidence['DistillHook.init_student'] == ['backbone', None]


def test_a_student_that_begins_as_its_teacher(pair, classifiers):
    cfg = pair(student=classifiers.teacher_config)
    cfg.load_from = str(classifiers.teacher)
    report = diagnose(cfg)
    (finding,) = [f for f in report.findings if f.code == 'nothing-to-learn']
    assert finding.where == 'teacher' and finding.evidence['equal_tensors'] > 0


@DATASETS.register_module(force=True)
class Unreadable(OneShape):
    def __getitem__(self, index):
        raise OSError('unreadable')


# -- what cannot be examined -------------------------------------------------------------------


def test_what_is_refused_is_a_finding(pair, classifiers):
    report = diagnose(pair(terms=[gdd('backbone.layer9'), KD]), classifiers.student)
    assert found(report) == {'refused'} and report.findings[0].where == 'gdd'
    assert 'kd' in report.terms and report.answer == 'cannot tell'
    assert 'backbone.layer3' in report.findings[0].evidence['nearest']
    report = diagnose(pair('missing.pth'))
    assert found(report) == {'bad-checkpoint'} and not report.terms
    assert report.findings[0].evidence['file'] == 'missing.pth'
    student = with_model(classifiers.student_config, backbone=dict(depth=9))
    assert found(diagnose(pair(student=student))) == {'refused'}


def test_a_config_without_validation_set(pair, classifiers):
    cfg = pair()
    cfg.pop('val_dataloader')
    report = diagnose(cfg, classifiers.student)
    assert not found(report) and 'on 80 images' in report.because[0]


@pytest.mark.parametrize('count, told', [(None, 'NoSuchSet'), (240, 'unreadable')])
def test_a_validation_set_that_cannot_be_read(pair, classifiers, count, told):
    """Training builds it before its first step, so it is an error; its images are not needed."""
    cfg = pair()
    kind = dict(type='NoSuchSet') if count is None else dict(type='Unreadable', count=count)
    cfg.val_dataloader.dataset = kind
    report = diagnose(cfg, classifiers.student)
    (finding,) = [f for f in report.findings if f.severity == 'error']
    assert (finding.code, finding.where) == ('refused', 'val_dataloader')
    assert told in finding.advice and finding.evidence
    assert report.teacher and report.student and report.answer == 'cannot tell'


def test_a_training_set_that_cannot_be_read(pair, classifiers):
    def refused(**changes):
        cfg = pair()
        cfg.merge_from_dict(dict(train_dataloader=changes))
        report = diagnose(cfg, classifiers.student)
        assert found(report) == {'refused'} and report.answer == 'cannot tell'
        assert report.status == 1 and report.findings[0].where == 'train_dataloader'
        assert report.teacher and report.student  # the validation set is read
        return report.findings[0].advice

    assert 'NoSuchSet' in refused(dataset=dict(_delete_=True, type='NoSuchSet'))
    assert 'has 80 images' in refused(batch_size=500, drop_last=True)


def test_a_student_that_teaches_itself(pair):
    cfg = pair()
    hook = dict(type='mmkd_plugin.DistillHook', teacher='previous_epoch')
    cfg.custom_hooks = [dict(hook, terms=[dict(KD, begin=1, by_epoch=True)])]
    report = diagnose(cfg)
    assert found(report) == {'not-examined'} and report.status == 0
