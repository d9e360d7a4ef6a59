"""torch.compile: attaching adds no graph break, and the numbers stay."""

from __future__ import annotations

import pytest
import torch
from mmengine.utils import digit_version
from toys import TERM, toy_batch, toy_classifier, toy_model

import mmkd_plugin
from mmkd_plugin.teacher import Teacher

pytest.importorskip('torch._dynamo.testing')


def attached(loss: dict, **kwargs):
    student = toy_model()
    mmkd_plugin.attach(
        student,
        teacher=toy_model(1, width=8),
        probe_size=(16, 16),
        terms=[dict(TERM, loss=loss, **kwargs)],
    )
    return student.train()


def graph_breaks(student) -> int:
    torch._dynamo.reset()
    inputs, samples = toy_batch()
    return torch._dynamo.explain(lambda x: student(x, samples, mode='loss'))(
        inputs
    ).graph_break_count


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='dynamo of old torch (seen: 2.1) breaks the graph at the hooks',
)
def test_attaching_adds_no_graph_break():
    plain = graph_breaks(toy_model().train())
    assert graph_breaks(attached(dict(type='CWDLoss'))) == plain


@pytest.mark.parametrize('loss', [dict(type='CWDLoss'), dict(type='GDDLoss', noise='channel')])
def test_compiled_step_gives_the_eager_numbers(loss):
    torch._dynamo.reset()
    inputs, samples = toy_batch()
    values = []
    for compiled in (False, True):
        student = attached(loss, warmup=4)
        run = torch.compile(student, backend='aot_eager') if compiled else student
        for iteration in range(3):
            student.distiller.set_progress(iteration)
            losses = run(inputs, samples, mode='loss')
            values.append(losses['loss_gdd'].item())
            losses['loss_gdd'].backward()
    assert values[:3] == pytest.approx(values[3:], rel=1e-4)


def test_a_ramp_does_not_recompile():
    torch._dynamo.reset()
    inputs, samples = toy_batch()
    student = attached(dict(type='CWDLoss'), warmup=50)
    counter = torch._dynamo.testing.CompileCounter()
    run = torch.compile(student, backend=counter)
    for iteration in range(6):
        student.distiller.set_progress(iteration)
        run(inputs, samples, mode='loss')
        if iteration == 1:
            settled = counter.frame_count
    assert counter.frame_count == settled


@pytest.mark.parametrize('options', [dict(backend='aot_eager'), dict(backend='eager')])
def test_a_compiled_teacher_gives_the_eager_numbers(options):
    torch._dynamo.reset()
    inputs, samples = toy_batch()
    values = []
    for compile in (False, options):
        student = toy_model()
        teacher = Teacher(toy_model(1, width=8), compile=compile)
        mmkd_plugin.attach(student, teacher, [dict(TERM, loss=dict(type='CWDLoss'))])
        losses = [student.train()(inputs, samples, mode='loss')['loss_gdd'] for _ in range(3)]
        losses[-1].backward()
        values += [loss.item() for loss in losses]
        mmkd_plugin.detach(student)
    assert values[:3] == pytest.approx(values[3:], rel=1e-5)


def test_a_teacher_is_compiled_for_the_training_images_only():
    """Not for the probe: a second size would make the compiler expect any size."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    teacher = Teacher(toy_model(1, width=8), compile=dict(backend=counter))
    student = toy_model()
    mmkd_plugin.attach(student, teacher, [dict(TERM, loss=dict(type='CWDLoss'))])
    assert counter.frame_count == 0
    inputs, samples = toy_batch()
    for _ in range(2):
        student.train()(inputs, samples, mode='loss')
    assert counter.frame_count == 1


def test_compile_is_a_switch_or_arguments():
    with pytest.raises(ValueError, match="teacher.compile='max' must be True, False or"):
        Teacher(toy_model(), compile='max')


def test_a_compiled_classifier_learns_the_same_and_settles():
    """Ramp, start epoch, complement and a last batch of another size: compiled a few times only."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    kd = dict(student='cls_logits', by_epoch=True)
    terms = [
        dict(kd, loss=dict(type='DKDLoss', calibrate=0.9), weight=0.3, warmup=20),
        dict(kd, loss=dict(type='IPWDLoss', start_epoch=2), weight=0.4, begin=1),
    ]
    images, _ = toy_batch(8)
    values, frames = {}, []
    for compiled in (False, True):
        student = toy_classifier(0).train()
        mmkd_plugin.attach(
            student, toy_classifier(1, width=8), terms, 'complement', probe_size=(16, 16)
        )
        run = torch.compile(student, backend=counter) if compiled else student
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for epoch in range(7):
            for count in (8, 5):
                student.distiller.set_progress(2 * epoch, epoch)
                labels = dict(gt_label=torch.arange(count) % 3)
                losses = run(images[:count], labels, mode='loss')
                optimizer.zero_grad()
                sum(v for k, v in losses.items() if 'loss' in k).backward()
                optimizer.step()
                values.setdefault(compiled, []).append({k: v.item() for k, v in losses.items()})
            frames.append(counter.frame_count)
    for eager, other in zip(values[False], values[True]):
        assert eager == pytest.approx(other, rel=1e-3)
    assert frames[-1] == frames[-3] > frames[-7], 'later epochs compile nothing anew'
