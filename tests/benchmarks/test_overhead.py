"""The cost benchmark: its parts do the work they claim, and its numbers add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory, overhead, peers

CPU = torch.device('cpu')
MIB = 2**20


@pytest.fixture(scope='module')
def parts() -> overhead.Parts:
    pair = overhead.PAIRS['demo']
    terms = [dict(loss=dict(type='GDDLoss'), student=pair.tap, weight=1.0, name='term')]
    return overhead.Parts(pair.student, pair.teacher, terms, (64, 64), 2, CPU)


def test_peak_is_the_height_not_the_sum():
    def step() -> None:
        first = torch.empty(MIB, dtype=torch.uint8)
        second = torch.empty(3 * MIB, dtype=torch.uint8)
        del first
        third = torch.empty(MIB // 2, dtype=torch.uint8)
        del second, third

    assert memory.peak(step, CPU) == 4 * MIB


def test_held_counts_weights_buffers_and_optimizer_state():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert memory.held(model) == weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    parameters = 4 * sum(p.numel() for p in model.parameters())
    assert memory.held(model, optimizer) == weights + parameters


def test_parts_do_the_work_they_are_timed_for(parts: overhead.Parts, monkeypatch):
    seen = []
    monkeypatch.setattr(parts.optimizer, 'step', lambda: seen.append('distilled'))
    monkeypatch.setattr(parts.terms_optimizer, 'step', lambda: seen.append('terms'))
    monkeypatch.setattr(parts.plain_optimizer, 'step', lambda: seen.append('student'))
    calls = dict(backbone=0, neck=0, head=0)
    teacher = parts.distiller.teacher.model

    def count(name: str):
        def hook(*_):
            calls[name] += 1

        return hook

    modules = dict(backbone=teacher.backbone, neck=teacher.neck, head=teacher.bbox_head)
    handles = [m.register_forward_hook(count(name)) for name, m in modules.items()]
    parts.student()
    parts.terms()
    assert calls == dict(backbone=0, neck=0, head=0)
    parts.teacher()
    parts.distilled()
    for handle in handles:
        handle.remove()
    assert calls == dict(backbone=2, neck=2, head=0)  # as deep as the taps, no deeper
    assert seen == ['student', 'terms', 'distilled']


def test_the_eager_teacher_is_the_model_as_it_is(parts: overhead.Parts):
    seen, first = [], parts.distiller.teacher.model.backbone.conv1
    handle = first.register_forward_pre_hook(lambda conv, *_: seen.append(conv.bias is None))
    parts.teacher()
    parts.eager()
    handle.remove()
    assert seen == [False, True]  # a folded norm gives the convolution a bias


def test_terms_reach_the_recorded_student_maps_and_all_connectors(parts, monkeypatch):
    monkeypatch.setattr(parts.terms_optimizer, 'zero_grad', lambda: None)
    parts.terms()
    assert all(p.grad is not None for p in parts.distiller.parameters())
    for p in parts.distiller.parameters():
        p.grad = None
    (term,) = parts.distiller.terms
    student, teacher = term.student.read(parts._student), term.teacher.read(parts._teacher)
    assert all(c.tensor.is_leaf and c.tensor.requires_grad for c in student)
    sizes = [row.teacher_shape[1:2] for row in parts.distiller.plan()]
    assert [tuple(c.tensor.shape[1:2]) for c in teacher] == sizes
    assert not any(c.tensor.requires_grad for c in teacher)


def test_report_adds_up(parts: overhead.Parts):
    times = overhead.measure_time(parts, iters=3, warmup=1)
    assert {len(v) for v in times.values()} == {3}
    report = overhead.report_time(
        dict(student=[1, 9, 2], eager=[6], teacher=[3], terms=[1], distilled=[9])
    )
    assert report['sum'] == 6 and report['ratio'] == 1.5 and report['eager_ratio'] == 1
    sizes = overhead.report_memory(parts)
    teacher = parts.distiller.teacher.model
    weights = [*teacher.parameters(), *teacher.buffers(), *parts.distiller.teacher._form.held()]
    assert sizes['teacher_weights'] == sum(t.numel() * t.element_size() for t in weights)
    keys = ('student', 'teacher_weights', 'teacher_maps', 'terms')
    assert sizes['sum'] == sum(sizes[k] for k in keys)
    assert sizes['ratio'] == pytest.approx(sizes['distilled'] / sizes['sum'])
    # The distilled step holds the teacher and a trained student: it cannot be smaller than both.
    assert sizes['distilled'] > sizes['student'] + sizes['teacher_weights']


def test_command_prints_and_writes_the_ratios(tmp_path: Path, capsys):
    file = tmp_path / 'out' / 'cost.json'
    args = [
        '--size',
        '64',
        '64',
        '--batch',
        '2',
        '--iters',
        '1',
        '--warmup',
        '1',
        '--loss',
        'PKDLoss',
    ]
    result = overhead.main([*args, '--device', 'cpu', '--json', str(file)])
    out = capsys.readouterr().out
    assert out.count('distilled / sum = ') == 2
    assert f'{result["time"]["ratio"]:.3f}' in out and f'{result["memory"]["ratio"]:.3f}' in out
    assert json.loads(file.read_text())['time'] == result['time']


@pytest.mark.parametrize('name', overhead.PAIRS)
def test_the_configs_of_a_pair_exist(name):
    pair = overhead.PAIRS[name]
    for config in (pair.student, pair.teacher):
        assert '::' in config or Path(config).is_file(), config


@pytest.mark.parametrize('loss', ['KDLoss', 'IPWDLoss'])
def test_a_classification_pair_is_measured_with_its_labels(loss):
    pair = overhead.PAIRS['resnet56-resnet20']
    terms = [dict(loss=dict(type=loss), student=pair.tap, weight=1.0, name='term')]
    parts = overhead.Parts(pair.student, pair.teacher, terms, (8, 8), 4, CPU)
    (term,) = parts.distiller.terms
    (level,) = term.student.read(parts._student, parts.samples)[0].levels
    assert level.logits.requires_grad
    needs = set(term.losses[0].needs)
    assert {x for x in ('labels', 'features') if getattr(level, x) is not None} == needs
    own = [p for p in parts.distiller.parameters()]
    assert bool(own) == (loss == 'IPWDLoss')  # the auxiliary classification layer
    before = [p.clone() for p in own]
    for group in parts.terms_optimizer.param_groups if own else ():
        group['lr'] = 0.1
    parts.terms()
    assert all(not torch.equal(a, b) for a, b in zip(before, own)), 'its own loss trains it'
    assert overhead.report_memory(parts)['ratio'] > 0


def test_a_peer_that_is_not_installed_is_named(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmrazor', None)
    with pytest.raises(SystemExit, match='pip install mmrazor'):
        parts.peers()


def test_a_peer_compares_feature_maps_only():
    loss = dict(type='KDLoss')
    with pytest.raises(SystemExit, match='KDLoss is none'):
        peers.build_mmrazor(lambda: (None, None), loss, [])


def test_both_classes_of_the_peer_train_the_same_terms(parts):
    try:
        steps = parts.peers()
    except SystemExit as error:
        pytest.skip(str(error))
    assert set(steps) == {'SingleTeacherDistill', 'FpnTeacherDistill'}
    with torch.no_grad():
        ours = parts.model(parts.inputs, parts.samples, mode='loss')
    for step in steps.values():
        model = step.args[0]
        theirs = model(parts.inputs, parts.samples, mode='loss')
        assert {k for k in theirs if k.startswith('distill.')} == {
            f'distill.loss_{i}' for i in range(3)
        }
        for key in ('loss_cls', 'loss_bbox'):
            assert torch.equal(torch.stack(theirs[f'student.{key}']), torch.stack(ours[key]))
        step()
    times = overhead.measure_time(parts, 1, 0, steps)
    assert set(overhead.report_time(times)['peers']) == set(steps)
