"""The invariants of attaching, on a model in miniature."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from toys import TERM, ToyDetector, toy_batch, toy_model

import mmkd_plugin
from mmkd_plugin.taps import TapError


def attached(*terms, teacher=None, seed=0, **kwargs):
    student = toy_model(seed)
    teacher = teacher or toy_model(1, width=8)
    mmkd_plugin.attach(
        student, teacher=teacher, terms=list(terms) or [dict(TERM)], probe_size=(16, 16), **kwargs
    )
    return student.train()


def step(student, batch=None):
    inputs, samples = batch or toy_batch()
    return student(inputs, samples, mode='loss')


def total(student, losses):
    return student.parse_losses(losses)[0]


def test_student_keeps_class_names_and_hooks():
    plain = toy_model()
    before, keys = dict(vars(plain)), list(plain.state_dict())
    modules = [name for name, _ in plain.named_modules()]
    mmkd_plugin.attach(plain, teacher=toy_model(1), terms=[dict(TERM)], probe_size=(16, 16))
    assert type(plain) is ToyDetector
    assert list(plain.state_dict()) == keys
    assert not any('distiller' in key for key in plain.state_dict()._metadata)
    mmkd_plugin.detach(plain)
    assert vars(plain).keys() == before.keys()
    assert [name for name, _ in plain.named_modules()] == modules
    for module in plain.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert not plain._state_dict_hooks and not plain._load_state_dict_post_hooks


def test_detached_teacher_and_distiller_are_freed():
    student, teacher = toy_model(), toy_model(1)
    ref = weakref.ref(
        mmkd_plugin.attach(student, teacher=teacher, terms=[dict(TERM)], probe_size=(16, 16))
    )
    mmkd_plugin.detach(student)
    gc.collect()
    assert ref() is None
    assert not any(m._forward_hooks for m in teacher.modules())


def test_plain_checkpoints_load_strictly_both_ways():
    plain, student = toy_model(3), attached()
    assert student.load_state_dict(plain.state_dict(), strict=True).missing_keys == []
    plain.load_state_dict(student.state_dict(), strict=True)
    from mmengine.runner import load_state_dict

    load_state_dict(student, plain.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match='neck'):
        student.load_state_dict({k: v for k, v in plain.state_dict().items() if 'neck' not in k})


def test_predictions_are_those_of_the_plain_model():
    plain, student = toy_model().eval(), attached().eval()
    inputs, samples = toy_batch()
    for a, b in zip(plain(inputs, samples, mode='predict'), student(inputs, samples, 'predict')):
        assert torch.equal(a, b)


def test_gradient_reaches_student_and_connectors_but_not_teacher():
    student = attached()
    losses = step(student)
    losses['loss_gdd'].backward()
    distiller = student.distiller
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())
    assert student.backbone.stem[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.model.parameters())


def test_teacher_is_nowhere_in_the_student():
    student = attached()
    own = {id(t) for t in [*student.parameters(), *student.buffers()]}
    teacher = student.distiller.teacher
    assert not own & {id(t) for t in [*teacher.model.parameters(), *teacher.model.buffers()]}
    assert not any(m is teacher.model for m in student.modules())
    assert copy.deepcopy(student).distiller.teacher is teacher


def test_teacher_stays_in_eval_whatever_the_student_does():
    teacher = toy_model(1, width=8, dropout=0.5)
    student = attached(teacher=teacher)
    statistics = teacher.backbone.stem[1].running_mean.clone()
    student.train()
    step(student), step(student)
    assert not any(m.training for m in teacher.modules())
    assert torch.equal(teacher.backbone.stem[1].running_mean, statistics)


@pytest.mark.parametrize('move', ['double', 'half', 'bfloat16'])
def test_teacher_follows_dtype_moves(move):
    student = getattr(attached(), move)()
    dtype = next(student.parameters()).dtype
    assert {p.dtype for p in student.distiller.teacher.model.parameters()} == {dtype}
    student.to(torch.float32)
    assert {p.dtype for p in student.distiller.teacher.model.parameters()} == {torch.float32}


def test_double_student_distils():
    student = toy_model().double()
    mmkd_plugin.attach(student, teacher=toy_model(1), terms=[dict(TERM)], probe_size=(16, 16))
    inputs, samples = toy_batch()
    assert student.train()(inputs.double(), samples, mode='loss')['loss_gdd'].dtype == torch.float64


def test_global_random_states_are_left_alone():
    import random

    import numpy as np

    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    student = attached()
    step(student)
    drawn = (torch.rand(3), random.random(), np.random.rand())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert torch.equal(drawn[0], torch.rand(3))
    assert drawn[1:] == (random.random(), np.random.rand())


def test_attaching_does_not_seed_accelerators(monkeypatch):
    """Before CUDA is initialised a seed is kept for later, and no fork of its state undoes that."""
    seeded = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    student, teacher = toy_model(), toy_model(1)
    seeded.clear()
    mmkd_plugin.attach(student, teacher=teacher, terms=[dict(TERM)], probe_size=(16, 16))
    assert not seeded


@pytest.mark.parametrize('term', [dict(TERM, weight=0.0), dict(TERM, begin=2), dict(TERM, end=1)])
def test_inactive_terms_change_nothing_and_run_no_teacher(term):
    calls = []
    teacher = toy_model(1, width=8, dropout=0.1)
    student, plain = attached(term, teacher=teacher), toy_model().train()
    student.distiller.set_progress(1)
    teacher.backbone.register_forward_hook(lambda *a: calls.append(1))
    losses, expected = step(student), step(plain)
    assert losses.keys() == expected.keys()
    total(student, losses).backward(), total(plain, expected).backward()
    for (name, p), q in zip(plain.named_parameters(), student.parameters()):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad), name
    assert not calls


def test_teacher_runs_once_on_the_very_same_tensor_and_only_to_the_neck():
    seen, heads = [], []
    teacher = toy_model(1, width=8)
    terms = dict(TERM), dict(loss=dict(type='CWDLoss'), student='neck')
    # Another layout needs a copy.
    student = attached(*terms, teacher=dict(model=teacher, channels_last=False))
    teacher.backbone.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    teacher.bbox_head.cls.register_forward_hook(lambda *a: heads.append(1))
    inputs, samples = toy_batch()
    student(inputs, samples, mode='loss')
    assert [x.data_ptr() for x in seen] == [inputs.data_ptr()] and not heads
    assert student.distiller.teacher.depth == 'neck'


def test_losses_outside_training_steps_are_plain():
    student = attached()
    inputs, samples = toy_batch()
    assert 'loss_gdd' not in student.eval()(inputs, samples, mode='loss')
    assert torch.is_tensor(student.train()(inputs, samples, mode='tensor'))


def test_terms_are_summed_over_levels_and_weighted():
    once, student = attached(), attached(dict(TERM, weight=6.0))
    assert torch.isclose(step(student)['loss_gdd'], 3 * step(once)['loss_gdd'])
    both = attached(
        dict(TERM, name='a', loss=dict(type='CWDLoss'), student='neck.convs.0'),
        dict(TERM, name='b', loss=dict(type='CWDLoss'), student='neck.convs.1'),
    )
    joint = attached(dict(TERM, name='c', loss=dict(type='CWDLoss')))
    parts = step(both)
    assert torch.isclose(parts['loss_a'] + parts['loss_b'], step(joint)['loss_c'])


def test_task_weight_scales_losses_and_nothing_else():
    plain, student = step(toy_model().train()), step(attached(task_weight=0.1))
    for a, b in zip(plain['loss_cls'], student['loss_cls']):
        assert torch.isclose(a * 0.1, b)
    assert torch.equal(plain['acc'], student['acc'])
    silent = attached(task_weight=0.0)
    losses = step(silent)
    assert torch.isclose(total(silent, losses), losses['loss_gdd'])


def test_loss_keys_are_what_is_optimised():
    student = attached()
    losses = step(student)
    summed = sum(
        v.mean() if torch.is_tensor(v) else sum(x.mean() for x in v)
        for k, v in losses.items()
        if 'loss' in k
    )
    assert torch.isclose(total(student, losses), summed)


def test_captures_do_not_outlive_the_step():
    student = attached()
    captured = []
    student.neck.convs[0].register_forward_hook(lambda m, a, out: captured.append(weakref.ref(out)))
    losses = step(student)
    total(student, losses).backward()
    del losses
    gc.collect()
    assert captured and captured[0]() is None


def test_a_failed_step_does_not_listen_on():
    student = attached()
    inputs, samples = toy_batch()
    with pytest.raises(TypeError):
        student(inputs, None, mode='loss')  # fails in the head, after the taps have heard the neck
    student.eval()(inputs, samples, mode='predict')
    assert student.distiller.recorder.calls('neck.convs.0') == 0
    assert torch.isfinite(step(student.train())['loss_gdd'])


def test_no_copy_of_captured_tensors():
    student = attached(dict(TERM, loss=dict(type='CWDLoss')))
    seen, used = [], []
    student.neck.convs[0].register_forward_hook(lambda m, a, out: seen.append(out.data_ptr()))
    student.distiller.terms[0].losses[0].register_forward_pre_hook(
        lambda m, a: used.append(a[0].data_ptr())
    )
    step(student)
    assert seen == used


def test_two_students_do_not_interact_and_may_share_a_teacher():
    alone = step(attached())['loss_gdd'].item()
    teacher = toy_model(1, width=8)
    first, second = attached(teacher=teacher), attached(teacher=teacher, seed=2)
    step(second)
    assert step(first)['loss_gdd'].item() == pytest.approx(alone, rel=1e-6)
    mmkd_plugin.detach(second)
    assert torch.isfinite(step(first)['loss_gdd'])


def test_a_handle_serves_one_student_at_a_time():
    handle = mmkd_plugin.teacher.Teacher(toy_model(1, width=8))
    student = attached(teacher=handle)
    with pytest.raises(ValueError, match='another student'):
        attached(teacher=handle)
    assert torch.isfinite(step(student)['loss_gdd'])
    mmkd_plugin.detach(student)
    attached(teacher=handle)


def test_a_deep_copy_distils_on_its_own():
    student = attached(dict(TERM, loss=dict(type='CWDLoss')))
    twin = copy.deepcopy(student)
    nn.init.zeros_(twin.neck.convs[0].weight)
    assert step(student)['loss_gdd'] != step(twin)['loss_gdd']


def test_connectors_are_measured():
    student = attached(dict(loss=dict(type='GDDLoss'), student='backbone'))
    rows = student.distiller.plan()
    assert [(r.student_shape[1], r.teacher_shape[1]) for r in rows] == [(4, 8), (8, 16)]
    aligns = [loss.align for loss in student.distiller.terms[0].losses]
    assert [(a.in_channels, a.out_channels) for a in aligns] == [(4, 8), (8, 16)]


def test_attach_seed_decides_connectors_and_noise():
    values = []
    for seed in (0, 0, 1):
        student = toy_model()
        mmkd_plugin.attach(
            student, teacher=toy_model(1), terms=[dict(TERM)], seed=seed, probe_size=(16, 16)
        )
        values.append(step(student.train())['loss_gdd'].item())
    assert values[0] == values[1] != values[2]


def test_noise_is_fresh_each_step_and_a_function_of_the_iteration():
    student = attached()
    unset = [step(student)['loss_gdd'].item() for _ in range(2)]
    assert unset[0] != unset[1]
    values = []
    for iteration in (5, 6, 5):
        student.distiller.set_progress(iteration)
        student.load_state_dict(toy_model().state_dict())
        values.append(step(student)['loss_gdd'].item())
    assert values[0] == values[2] != values[1]


def test_schedule_without_progress_is_an_error():
    student = attached(dict(TERM, warmup=10))
    with pytest.raises(RuntimeError, match='set_progress'):
        step(student)


def test_interval_runs_the_teacher_in_every_third_step():
    teacher, calls = toy_model(1, width=8), []
    student = attached(dict(TERM, interval=3), teacher=teacher)
    teacher.backbone.register_forward_hook(lambda *a: calls.append(1))
    for iteration in range(6):
        student.distiller.set_progress(iteration)
        step(student)
    assert len(calls) == 2


@pytest.mark.parametrize('where', ['student', 'teacher'])
def test_nan_names_tap_and_iteration(where):
    teacher = toy_model(1, width=8)
    student = attached(teacher=teacher)
    student.distiller.set_progress(41)
    model = student if where == 'student' else teacher
    with torch.no_grad():
        model.neck.convs[1].bias[0] = float('inf' if where == 'teacher' else 'nan')
    step(student)
    with pytest.raises(FloatingPointError, match='iteration 41') as error:
        student.distiller.raise_if_not_finite()
    assert f"{where} tap 'neck.convs.1'" in str(error.value)
    assert 'neck.convs.0' not in str(error.value)


def test_loss_name_of_the_student_is_refused():
    student = attached(dict(TERM, name='cls'))
    with pytest.raises(ValueError, match="'loss_cls'"):
        step(student)


def test_frozen_student_part_is_refused():
    student = attached(dict(TERM, student='backbone.stem', teacher='backbone.stem'))
    student.backbone.stem.requires_grad_(False)
    with pytest.raises(TapError, match='no gradient'):
        step(student)


def test_module_wide_initialisers_do_not_reach_connectors():
    student = attached()
    before = [p.clone() for p in student.distiller.parameters()]
    student.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Conv2d) else None)
    assert student.backbone.stem[0].weight.abs().sum() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, student.distiller.parameters()))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    try:
        with torch.autocast('cpu', dtype=dtype):
            pass
    except RuntimeError as error:  # torch 2.1: only bfloat16 on the CPU
        pytest.skip(str(error))
    student = attached()
    with torch.autocast('cpu', dtype=dtype):
        losses = step(student)
    total(student, losses).backward()
    assert losses['loss_gdd'].dtype == torch.float32 and torch.isfinite(losses['loss_gdd'])
    for parameter in student.distiller.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def test_activation_checkpointing_at_the_boundary():
    from mmengine.runner import turn_on_activation_checkpointing

    term = dict(
        loss=dict(type='CWDLoss'), student='backbone.stage', teacher='backbone.stage.0', name='cwd'
    )
    plain, student = attached(term, teacher=toy_model(1)), attached(term, teacher=toy_model(1))
    turn_on_activation_checkpointing(student, ['backbone.stage'])
    for model in (plain, student):
        step(model)['loss_cwd'].backward()
    a, b = plain.backbone.stem[0].weight.grad, student.backbone.stem[0].weight.grad
    assert a.abs().sum() > 0 and torch.allclose(a, b)
    assert student.distiller.recorder.calls('backbone.stage') == 0  # backward captured nothing


def test_inside_a_checkpointed_module_is_refused():
    with pytest.raises(TapError, match="inside 'backbone.stage'"):
        attached(dict(TERM, student='backbone.stage.0'), checkpointed=['backbone.stage'])
    from mmengine.runner import turn_on_activation_checkpointing

    student = attached(dict(TERM, student='backbone.stage.0', loss=dict(type='CWDLoss')))
    turn_on_activation_checkpointing(student, ['backbone.stage'])  # later, unknown to attach
    with pytest.raises(TapError, match='no gradient'):
        step(student)


def test_failed_attach_leaves_the_student_as_it_was():
    student, teacher = toy_model(), toy_model(1, neck=6)
    with pytest.raises(TapError):
        mmkd_plugin.attach(
            student,
            teacher=teacher,
            probe_size=(16, 16),
            terms=[
                dict(TERM),
                dict(loss=dict(type='CWDLoss'), student='neck.convs.0', teacher='neck.convs.1'),
            ],
        )
    assert not hasattr(student, 'distiller')
    assert not any(m._forward_hooks for m in [*student.modules(), *teacher.modules()])


def test_resize_bridges_sizes():
    term = dict(loss=dict(type='CWDLoss'), student='neck.convs.0', teacher='neck.convs.1')
    student = attached(dict(term, resize='bilinear'), teacher=toy_model(1))
    assert torch.isfinite(step(student)['loss_cwd'])


def test_resizing_keeps_double_precision():
    term = dict(loss=dict(type='CWDLoss'), student='neck.convs.0', teacher='neck.convs.1')
    student = toy_model().double()
    mmkd_plugin.attach(
        student, toy_model(1), terms=[dict(term, resize='bilinear')], probe_size=(16, 16)
    )
    small, large = torch.rand(1, 1, 4, 4).double(), torch.rand(1, 1, 8, 8)
    assert student.distiller.terms[0]._resized(small, large).dtype == torch.float64


def test_no_host_synchronisation_in_a_step(monkeypatch):
    student = attached()
    batch = toy_batch()
    step(student, batch)
    plain = _count_syncs(monkeypatch, lambda: step(toy_model().train(), batch))
    assert _count_syncs(monkeypatch, lambda: step(student, batch)) == plain


def _count_syncs(monkeypatch, run) -> int:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        syncs = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                Count.syncs += 1
            return func(*args, **(kwargs or {}))

    with Count():
        run()
    return Count.syncs


def test_detaching_a_copy_leaves_the_original_distilling():
    student = attached()
    mmkd_plugin.detach(copy.deepcopy(student))
    assert torch.isfinite(step(student)['loss_gdd'])


def test_moving_a_copy_leaves_the_teacher_where_it_is():
    """EMAHook(device='cpu') copies the student and moves the copy."""
    student = attached()
    copy.deepcopy(student).half()
    copy.deepcopy(student).to('meta')
    assert torch.isfinite(step(student)['loss_gdd'])
