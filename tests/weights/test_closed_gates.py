"""A term behind closed gates adds nothing and stops no run; its weight is found when one opens."""

from __future__ import annotations

import copy

import pytest
from ranks import run_ranks
from region_batches import detector, images, sample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from toys import toy_batch, toy_model

import mmkd_plugin
from mmkd_plugin.losses import BoxDistillLoss, CWDLoss
from mmkd_plugin.weights import STEPS, CalibrationError
from mmkd_plugin.weights import calibration as module

AUTO = dict(loss=dict(type='CWDLoss'), student='neck.convs.0', weight='auto', name='cwd')


@pytest.fixture
def told(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(module, 'print_log', lambda text, *_: lines.append(text))
    return lines


def gate(monkeypatch, opens_at: float, gated: bool = True) -> None:
    """Gives CWD a gate, which opens in a step."""
    original, steps = CWDLoss.compute, [0]

    def compute(self, student, teacher):
        steps[0] += 1
        return original(self, student, teacher) * float(steps[0] > opens_at)

    monkeypatch.setattr(CWDLoss, 'compute', compute)
    monkeypatch.setattr(CWDLoss, 'gated', gated)


def attached():
    student = toy_model(0)
    return student, mmkd_plugin.attach(student, toy_model(1), [AUTO], probe_size=(16, 16))


def test_closed_gates_stop_no_run_and_are_told_once(monkeypatch, told):
    gate(monkeypatch, opens_at=2 * STEPS + 5)
    norms = []
    original = module.parameter_norms
    monkeypatch.setattr(module, 'parameter_norms', lambda *a: norms.append(1) or original(*a))
    student, distiller = attached()
    for _ in range(2 * STEPS + 5):
        loss = student(*toy_batch(), mode='loss')['loss_cwd']
        assert float(loss.detach()) == 0
    assert not norms, 'nothing is measured'
    (line,) = told
    assert f'in its first {STEPS} steps every gate of terms[0]' in line
    assert distiller.weights() == {} and distiller.calibrates
    saved = distiller.resume_state()['calibration']['cwd']
    assert saved == dict(quotients=[], steps=0, due=0, found=None)
    for _ in range(STEPS):
        loss = student(*toy_batch(), mode='loss')['loss_cwd']
        assert float(loss.detach()) > 0
    assert distiller.weights()['cwd'] > 0 and len(told) == 2 and 'weight=' in told[1]


def test_what_is_found_behind_a_gate_is_what_is_found_without_one(monkeypatch):
    weights = []
    for opens_at in (0, 7):
        with monkeypatch.context() as patch:
            gate(patch, opens_at)
            student, distiller = attached()
            for _ in range(opens_at + STEPS):
                student(*toy_batch(), mode='loss')
            weights.append(distiller.weights()['cwd'])
    assert weights[0] == weights[1]


def test_a_loss_without_gates_that_is_0_is_named(monkeypatch):
    gate(monkeypatch, opens_at=STEPS, gated=False)
    student, _ = attached()
    with pytest.raises(CalibrationError, match=r"terms\[0\] \('cwd'\).*its gradient was 0"):
        for _ in range(STEPS):
            student(*toy_batch(), mode='loss')


def test_a_gated_loss_without_a_gradient_is_named(monkeypatch):
    monkeypatch.setattr(CWDLoss, 'gated', True)
    monkeypatch.setattr(CWDLoss, 'compute', lambda self, s, t: (s.detach() - t).square().mean())
    student, _ = attached()
    with pytest.raises(CalibrationError, match='reaches none of the student'):
        for _ in range(STEPS):
            student(*toy_batch(), mode='loss')


def test_boxes_of_a_teacher_that_is_the_student_train_on(told):
    student = detector('FCOS')
    teacher = copy.deepcopy(student)
    term = dict(loss=dict(type='BoxDistillLoss'), student='boxes', weight='auto', name='boxes')
    mmkd_plugin.attach(student, teacher, [term], probe_size=(96, 96))
    for layer in student.train().modules():
        if isinstance(layer, (_BatchNorm, nn.Dropout)):
            layer.eval()
    samples = [sample()]
    for _ in range(STEPS + 2):
        losses = student(images(samples), samples, mode='loss')
        assert float(losses['loss_boxes'].detach()) == 0 and losses['boxes_rows'] > 0
    assert len(told) == 1
    student.zero_grad()
    losses['loss_boxes'].backward()
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_only_gates_are_gated():
    assert BoxDistillLoss().gated and not BoxDistillLoss(when='always').gated
    assert not CWDLoss().gated


ON_RANKS = """
from pathlib import Path
import torch.distributed as dist
from toys import toy_batch, toy_model
import mmkd_plugin
from mmkd_plugin.losses import CWDLoss

dist.init_process_group('gloo')
CWDLoss.gated = True
CWDLoss.compute = lambda self, s, t: (s - t).square().mean() * dist.get_rank()
student = toy_model(0)
term = dict(loss=dict(type='CWDLoss'), student='neck.convs.0', weight='auto', name='cwd')
distiller = mmkd_plugin.attach(student, toy_model(1), [term], probe_size=(16, 16))
student(*toy_batch(), mode='loss')
steps = distiller.calibration.state()['cwd']['steps']
Path('rank%d.txt' % dist.get_rank()).write_text(str(steps))
"""


def test_a_gate_that_is_open_on_one_rank_is_open_on_all(tmp_path):
    run_ranks(ON_RANKS, cwd=tmp_path)
    assert [(tmp_path / f'rank{i}.txt').read_text() for i in (0, 1)] == ['1', '1']
