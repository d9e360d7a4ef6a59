"""What only a GPU can show: mixed precision through a Runner, and no synchronisation in a step."""

from __future__ import annotations

import math

import pytest
import torch
from toys import TERM, hook_config, runner_config, toy_batch, toy_model, train

import mmkd_plugin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU'),
]


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_amp_training(tmp_path, dtype):
    optim = dict(type='AmpOptimWrapper', dtype=dtype, optimizer=dict(type='SGD', lr=0.01))
    terms = [dict(TERM), dict(TERM, name='pkd', loss=dict(type='PKDLoss'))]
    runner = train(runner_config(tmp_path, hook_config(*terms), max_iters=3, optim_wrapper=optim))
    for name in ('gdd', 'pkd'):
        history = runner.message_hub.get_scalar(f'train/loss_{name}')
        assert math.isfinite(history.mean(3))
    connectors = torch.load(tmp_path / 'iter_3.pth', weights_only=False)['distiller']['connectors']
    assert {t.dtype for t in connectors.values()} == {torch.float32}


def test_a_step_does_not_synchronise():
    inputs, samples = toy_batch()
    inputs = inputs.cuda()
    student = toy_model().cuda().train()
    mmkd_plugin.attach(
        student, teacher=toy_model(1, width=8), terms=[dict(TERM)], probe_size=(16, 16)
    )
    features = student.extract_feat(inputs)  # warms up; the toy's own labels need a copy
    distiller = student.distiller
    for iteration in range(2):
        distiller.set_progress(iteration)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error' if iteration else 'default')
        try:
            distiller.begin_step(inputs, samples)
            features = student.extract_feat(inputs)
            distiller(dict(loss_cls=features[0].mean()))
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert torch.isfinite(features[0]).all()


def test_noise_is_drawn_on_the_device():
    student = toy_model().cuda()
    mmkd_plugin.attach(student, teacher=toy_model(1), terms=[dict(TERM)], probe_size=(16, 16))
    assert student.distiller.rng.generator('cuda').device.type == 'cuda'
    assert next(student.distiller.teacher.model.parameters()).is_cuda
