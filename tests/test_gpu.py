"""What only a GPU can show: mixed precision through a Runner, and no synchronisation in a step."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from classification_toys import preprocessor, run_config
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from toys import TERM, hook_config, runner_config, toy_batch, toy_model, train

import mmkd_plugin
from mmkd_plugin.hooks import CompiledStepHook
from mmkd_plugin.hooks.spikes import SpikeLimit
from mmkd_plugin.models import ImageClassifier
from mmkd_plugin.recipes import classification as recipes
from mmkd_plugin.weights import MEASURED, STEPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU'),
]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """By default convolutions of float32 round to 10 bits: too few to compare with the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


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


@pytest.mark.parametrize('recipe', ['auto', dict(ratio=0.3)], ids=['auto', 'ratio'])
def test_a_step_waits_only_where_a_weight_is_measured(recipe):
    inputs, samples = toy_batch()
    inputs = inputs.cuda()
    student = toy_model().cuda().train()
    term = dict(TERM, weight=recipe)
    distiller = mmkd_plugin.attach(student, toy_model(1, width=8), [term], probe_size=(16, 16))
    for iteration in range(STEPS + 4):
        distiller.set_progress(iteration)
        torch.cuda.synchronize()
        waits = iteration in MEASURED or iteration == STEPS - 1  # there it is logged
        torch.cuda.set_sync_debug_mode('default' if waits else 'error')
        try:
            distiller.begin_step(inputs, samples)
            features = student.extract_feat(inputs)
            losses = distiller(dict(loss_cls=sum(x.square().mean() for x in features)))
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert not distiller.calibration.is_open(distiller.terms[0])
    assert math.isfinite(losses['loss_gdd'].item()) and losses['loss_gdd'].item() > 0


@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('factor', [1e-3, 1e3], ids=['usual', 'spike'])
def test_an_outsized_step_is_limited_under_a_real_scaler(fused, factor):
    limit, inputs = 0.5, toy_batch()[0].cuda()
    model, twin = toy_model().cuda(), toy_model().cuda()
    twin.load_state_dict(model.state_dict())
    clipped = dict(max_norm=limit)
    for student, limited, clip_grad in ((model, True, None), (twin, False, clipped)):
        params = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, lr=1.0, fused=fused and limited)
        wrapper = AmpOptimWrapper(
            dtype='float16', loss_scale=16.0, optimizer=optimizer, clip_grad=clip_grad
        )
        spikes = SpikeLimit(limit)
        if limited:
            spikes.begin(SimpleNamespace(model=student, optim_wrapper=wrapper))
        with wrapper.optim_context(student):
            loss = sum(x.float().mean() for x in student.extract_feat(inputs)) * factor
        # A scaler asks the device whether to step, unless the optimizer does so there.
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error' if fused and limited else 'default')
        try:
            wrapper.update_params(loss)
        finally:
            torch.cuda.set_sync_debug_mode('default')
        if limited:
            assert int(spikes._limited) == (factor > 1)
    for mine, theirs in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_noise_is_drawn_on_the_device():
    student = toy_model().cuda()
    mmkd_plugin.attach(student, teacher=toy_model(1), terms=[dict(TERM)], probe_size=(16, 16))
    assert student.distiller.rng.generator('cuda').device.type == 'cuda'
    assert next(student.distiller.teacher.model.parameters()).is_cuda


def classifiers(recipe: str, device: str) -> ImageClassifier:
    """A student with its teacher, both the same on every device."""
    models = []
    for depth in (8, 14):
        torch.manual_seed(depth)
        backbone = dict(type='CIFARResNet', depth=depth)
        head = dict(type='LinearHead', num_classes=5)
        augments = [dict(type='BatchRandomCrop', size=16, padding=2), dict(type='BatchRandomFlip')]
        preprocessor = dict(
            type='ClsDataPreprocessor', mean=[127.5], std=[127.5], batch_augments=augments
        )
        models.append(ImageClassifier(backbone, head, preprocessor).to(device))
    plan = recipes.plan(recipe, 'resnet56', 'resnet20', epochs=240)
    mmkd_plugin.attach(*models, **plan, probe_size=(16, 16))
    return models[0].train()


def image_batch(device: str, count: int = 8) -> tuple[torch.Tensor, dict]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=generator).to(device)
    return images, dict(gt_label=(torch.arange(count) % 5).to(device))


@pytest.mark.parametrize('recipe', recipes.names())
@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
def test_logit_losses_are_those_of_the_cpu(recipe, dtype):
    values = []
    for device in ('cpu', 'cuda'):
        student = classifiers(recipe, device)
        student.distiller.set_progress(0)
        half = dtype is not None and device == 'cuda'
        with torch.autocast(device, dtype or torch.bfloat16, enabled=half):
            losses = student(*image_batch(device), mode='loss')
        assert {v.dtype for v in losses.values()} == {torch.float32}
        values.append({key: value.item() for key, value in losses.items()})
    tolerance = dict(rel=1e-3, abs=1e-4) if dtype is None else dict(rel=0.1, abs=0.05)
    assert values[1] == pytest.approx(values[0], **tolerance)


@pytest.mark.parametrize('recipe', recipes.names())
def test_a_classification_step_does_not_synchronise(recipe):
    student, (images, samples) = classifiers(recipe, 'cuda'), image_batch('cuda')
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for iteration in range(3):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error' if iteration else 'default')
        try:
            student.distiller.set_progress(iteration)
            data = dict(inputs=images * 60 + 127, data_samples=samples)
            data = student.data_preprocessor(data, True)
            losses = student(**data, mode='loss')
            optimizer.zero_grad()
            sum(v for k, v in losses.items() if 'loss' in k).backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize('recipe', ['kd', 'dkd', 'ipwd'])
def test_a_compiled_step_uses_cuda_graphs_and_learns_the_same(recipe):
    """The whole step of mode='reduce-overhead', of full batches and of the last, smaller one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    values = []
    for compiled in (False, True):
        student = classifiers(recipe, 'cuda')
        run = torch.compile(student, mode='reduce-overhead') if compiled else student
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
        for iteration in range(8):
            student.distiller.set_progress(iteration, iteration // 4)
            losses = run(*image_batch('cuda', 5 if iteration % 4 == 3 else 8), mode='loss')
            optimizer.zero_grad()
            sum(v for k, v in losses.items() if 'loss' in k).backward()
            optimizer.step()
            values.append({key: value.item() for key, value in losses.items()})
    for eager, graphed in zip(values[:8], values[8:]):
        assert graphed == pytest.approx(eager, rel=0.02, abs=1e-3)
    assert torch._dynamo.utils.counters['inductor']['cudagraph_skips'] == 0


PRECISIONS = pytest.mark.parametrize(
    'wrapper',
    [
        dict(),
        dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False)),
        dict(type='AmpOptimWrapper', dtype='float16'),
    ],
    ids=['float32', 'bfloat16', 'float16'],
)


@PRECISIONS
@pytest.mark.parametrize('compile', [None, dict(dynamic=False)], ids=['eager', 'compiled'])
def test_a_weight_is_found_in_every_precision(tmp_path, wrapper, compile):
    """It is that of an eager run in float32, but for rounding; a compiled run goes on compiled."""
    model = dict(type='ToyClassifier', data_preprocessor=preprocessor())
    teacher = dict(config=dict(model, width=8), allow_random=True)
    terms = [dict(loss=dict(type='KDLoss'), student='cls_logits', weight='auto')]
    hook = dict(type='mmkd_plugin.DistillHook', teacher=teacher, terms=terms, probe_size=(8, 8))
    found = []
    for settings, compiled in ((dict(), None), (wrapper, compile)):
        torch._dynamo.reset()
        optim = dict(settings, optimizer=dict(type='SGD', lr=0.01))
        folder = tmp_path / str(len(found))
        config = run_config(folder, [hook], False, STEPS + 6, model=model, optim_wrapper=optim)
        if compiled:
            config.compile = compiled
        runner = Runner.from_cfg(config)
        strict = CompiledStepHook(strict=True)
        runner.register_hook(strict)
        runner.train()
        assert bool(strict.graphs) == bool(compiled)
        (file,) = folder.glob(f'*_{STEPS + 6}.pth')
        found.append(torch.load(file, weights_only=False)['distiller']['weights']['kd'])
    assert found[1] == pytest.approx(found[0], rel=0.1 if wrapper else 0.02)


@PRECISIONS
def test_a_compiled_run_uses_cuda_graphs_and_learns_the_same(tmp_path, wrapper):
    """``compile`` of a Runner's config: preprocessor, forward and losses, not the optimizer."""
    model = dict(type='ToyClassifier', data_preprocessor=preprocessor())
    teacher = dict(config=dict(model, width=8), allow_random=True)
    terms = [dict(loss=dict(type='KDLoss'), student='cls_logits')]
    hook = dict(type='mmkd_plugin.DistillHook', teacher=teacher, terms=terms, probe_size=(8, 8))
    optim = dict(wrapper, optimizer=dict(type='SGD', lr=0.01))
    values = []
    for changes in ({}, dict(compile=dict(mode='reduce-overhead', dynamic=False))):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        config = run_config(
            tmp_path / str(len(changes)), [hook], False, 8, model=model, optim_wrapper=optim
        )
        config.update(changes)
        runner = Runner.from_cfg(config)
        strict = CompiledStepHook(strict=True)
        runner.register_hook(strict)
        runner.train()
        history, _ = runner.message_hub.get_scalar('train/loss_kd').data
        values.append(history.tolist())
    assert values[1] == pytest.approx(values[0], rel=0.05)
    # The first graph copies the batch to the device, which no CUDA graph can hold.
    assert torch._dynamo.utils.counters['inductor']['cudagraph_skips'] < strict.graphs
