"""Settings of the wrong type, which Python would take: 'False' is true there, and True is 1.

The flags of every registered component are found by its signature, so a new one is in here as soon
as it is registered.
"""

from __future__ import annotations

import importlib
import inspect

import pytest
from toys import toy_model

import mmkd_plugin
from mmkd_plugin.checks import check_bool, check_int, check_number, shown
from mmkd_plugin.class_map import resolve_class_map
from mmkd_plugin.datasets import batch_transforms
from mmkd_plugin.datasets.views_transform import TeacherStudentViews
from mmkd_plugin.registry import DATASETS, HOOKS, METRICS, MODELS
from mmkd_plugin.terms.schedule import Schedule

for _part in ('losses', 'models', 'hooks', 'datasets', 'evaluation'):
    importlib.import_module(f'mmkd_plugin.{_part}')

# What a component needs beside the flag. Those that are missing here need nothing.
NEEDED = dict(
    ClsDataPreprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3),
    CIFAR100=dict(data_root='no-such-folder'),
    TorchvisionDataset=dict(name='CIFAR10', data_root='no-such-folder'),
    BatchResize=dict(size=8),
    TeacherStudentViews=dict(size=8),
)
NO_BOOLEANS = ('False', 'no', 0, 1, [1], None)


def flags_of(cls: type) -> list[str]:
    """Parameters that are annotated or set by default as a plain boolean; of our own only."""
    if not getattr(cls.__init__, '__module__', cls.__module__).startswith('mmkd_plugin.'):
        return []
    return [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.annotation in (bool, 'bool') or isinstance(parameter.default, bool)
    ]


def registered() -> list[type]:
    found = [
        cls
        for registry in (MODELS, HOOKS, DATASETS, METRICS)
        for cls in registry.module_dict.values()
        if cls.__module__.startswith('mmkd_plugin.')
    ]
    transforms = [
        cls
        for cls in vars(batch_transforms).values()
        if inspect.isclass(cls) and cls.__module__ == batch_transforms.__name__
    ]
    return list(dict.fromkeys([*found, *transforms, TeacherStudentViews, Schedule]))


FLAGS = [(cls, name) for cls in registered() for name in flags_of(cls)]


def test_flags_are_found():
    found = {f'{cls.__name__}.{name}' for cls, name in FLAGS}
    assert {
        'CKDLoss.gather',
        'CKDLoss.per_image',
        'IPWDLoss.standardize',
        'IPWDLoss.detach_aux',
        'LoCaLoss.only_mispredicted',
        'Schedule.by_epoch',
        'BatchResize.antialias',
        'ClsDataPreprocessor.non_blocking',
    } <= found


@pytest.mark.parametrize(('cls', 'name'), FLAGS, ids=lambda x: getattr(x, '__name__', x))
@pytest.mark.parametrize('value', NO_BOOLEANS, ids=repr)
def test_a_flag_is_true_or_false(cls, name, value):
    with pytest.raises(ValueError) as caught:
        cls(**NEEDED.get(cls.__name__, {}), **{name: value})
    assert f'{name}={value!r} must be True or False' in str(caught.value)


@pytest.mark.parametrize('value', ['False', 0, [1]], ids=repr)
def test_use_sigmoid_is_true_false_or_left_out(value):
    with pytest.raises(ValueError, match='use_sigmoid=.* must be True or False'):
        MODELS.get('KDLoss')(use_sigmoid=value)
    assert MODELS.get('KDLoss')(use_sigmoid=None).use_sigmoid is None


# -- terms -------------------------------------------------------------------------------------

PKD = dict(loss=dict(type='PKDLoss'), student='neck.convs.*')
LONG = 'x' * 5000


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(by_epoch='False'), ["by_epoch='False'", 'True or False']),
        (dict(by_epoch=1), ['by_epoch=1', 'True or False']),
        (dict(begin=True), ['begin=True', 'whole number']),
        (dict(end=True), ['end=True', 'whole number']),
        (dict(warmup=True), ['warmup=True', 'whole number']),
        (dict(interval=True), ['interval=True', 'whole number']),
        (dict(weight=True), ['weight=True', 'finite number']),
        (dict(weight='1'), ["weight='1'", 'neither a number']),
        (dict(weight=[1.0]), ['weight=[1.0]', 'finite number']),
        (dict(student=dict(path='neck', levels=[True])), ['levels=[True]', 'whole numbers']),
        (dict(student=dict(path='neck', calls=[False])), ['calls=[False]', 'whole numbers']),
        (dict(student=dict(path='neck', source=1)), ['source', "'input'", 'not 1']),
        (dict(student=dict(view=['cls_logits'])), ['no view', "'cls_logits'"]),
        (dict(student=5), ['module path', '5']),
        (dict(student=''), ['matches', "''"]),
        (dict(teacher=''), ['teacher', "''"]),
        (dict(teacher=[]), ['teacher', '[]']),
        (dict(teacher=0), ['teacher', '0']),
        (dict(name=''), ["name=''", 'string']),
        (dict(name=3), ['name=3', 'string']),
        (dict(name=LONG), ['name=', 'short string']),
        (dict(student=LONG), ['matches', 'xxx']),
        (dict(select=LONG), ['select', 'xxx']),
        (dict(resize=True), ['resize', 'True']),
        (dict(loss=dict(type='')), ["names the loss ''", "'GDDLoss'"]),
        (dict(loss=dict(type=None)), ['None', 'GDDLoss']),
        (dict(loss=dict(type=5)), ['5', 'GDDLoss']),
        (dict(loss=dict(type=LONG)), ['not registered']),
        (dict(loss={'type': 'PKDLoss', 1: 2}), ['unknown key 1']),
        ({LONG: 1}, ['unknown key', 'xxx']),
        ({3: 1}, ['unknown key 3']),
        (dict(loss='PKDLoss'), ["with a 'type'", "'PKDLoss'"]),
    ],
    ids=lambda x: str(x)[:40],
)
def test_wrong_values_of_a_term(change, words):
    student = toy_model(0)
    with pytest.raises(ValueError) as caught:
        mmkd_plugin.attach(student, toy_model(1), [{**PKD, **change}], probe_size=(16, 16))
    message = str(caught.value)
    assert 'terms[0]' in message and len(message) < 1500
    for word in words:
        assert word in message
    assert not hasattr(student, 'distiller')


@pytest.mark.parametrize('value', [[True] * 3, ['a', 'b', 'c'], [0, 1.0, 2], [0, 1, -2]], ids=str)
def test_a_class_map_holds_whole_numbers(value):
    with pytest.raises(ValueError, match='class_map=.*must hold the index'):
        resolve_class_map(value, ('a', 'b', 'c'), ('a', 'b', 'c'))


# -- the helper itself -------------------------------------------------------------------------


@pytest.mark.parametrize('value', [True, False])
def test_booleans_pass(value):
    assert check_bool(value, 'x') is value


@pytest.mark.parametrize('value', [True, 1.0, '1', None, [1], float('nan')], ids=repr)
def test_a_whole_number_is_an_int(value):
    with pytest.raises(ValueError, match='^x='):
        check_int(value, 'x')
    assert check_int(0, 'x', 0) == 0 and check_int(-3, 'x') == -3


@pytest.mark.parametrize('value', [True, '1', None, [1], float('nan'), float('inf')], ids=repr)
def test_a_number_is_finite(value):
    with pytest.raises(ValueError, match='^x='):
        check_number(value, 'x')
    with pytest.raises(ValueError, match='0.5 or more'):
        check_number(0.25, 'x', 0.5)
    assert check_number(1, 'x') == 1.0


def test_long_values_are_shortened():
    assert shown('abc') == "'abc'"
    assert len(shown(LONG)) < 150
