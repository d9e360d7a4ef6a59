"""DistillHook in real Runner trainings of the toy detector."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from toys import TEACHER, TERM, hook_config, runner_config, toy_model, train

HELPERS = Path(__file__).parents[1] / 'helpers'


def weights(path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(work_dir) -> list:
    """What was logged in training, one dict per iteration."""
    lines = next(Path(work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [row for row in map(json.loads, lines) if 'loss' in row]


def logged(work_dir, key) -> list:
    return [row[key] for row in rows(work_dir) if key in row]


@pytest.fixture
def teacher_file(tmp_path):
    path = tmp_path / 'teacher.pth'
    state = toy_model(1, **{k: v for k, v in TEACHER.items() if k != 'type'}).state_dict()
    torch.save(
        dict(state_dict=state, meta=dict(dataset_meta=dict(classes=('dark', 'grey', 'bright')))),
        path,
    )
    return str(path)


@pytest.mark.parametrize('term', [dict(TERM, weight=0.0), dict(TERM, begin=100)])
@pytest.mark.parametrize('clip', [None, dict(max_norm=0.5)])
def test_without_active_term_training_is_bit_identical(tmp_path, term, clip):
    overrides = dict(
        optim_wrapper=dict(
            clip_grad=clip, optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3)
        ),
        model=dict(type='ToyDetector', dropout=0.3),
    )
    train(runner_config(tmp_path / 'plain', **overrides))
    train(runner_config(tmp_path / 'distilled', hook_config(term), **overrides))
    plain, distilled = (
        weights(tmp_path / d / 'iter_4.pth')['state_dict'] for d in ('plain', 'distilled')
    )
    assert same(plain, distilled)


def test_an_active_term_does_change_training(tmp_path):
    train(runner_config(tmp_path / 'plain'))
    train(runner_config(tmp_path / 'distilled', hook_config()))
    plain, distilled = (
        weights(tmp_path / d / 'iter_4.pth')['state_dict'] for d in ('plain', 'distilled')
    )
    assert plain.keys() == distilled.keys() and not same(plain, distilled)


def test_connectors_are_in_exactly_one_group_and_train(tmp_path):
    checked = []

    class Check(Hook):
        priority = 'LOWEST'

        def before_train(self, runner):
            groups = runner.optim_wrapper.optimizer.param_groups
            ids = [id(p) for g in groups for p in g['params']]
            connectors = list(runner.model.distiller.parameters())
            assert connectors and all(ids.count(id(p)) == 1 for p in connectors)
            teacher = runner.model.distiller.teacher.model
            assert not {id(p) for p in teacher.parameters()} & set(ids)
            self.start = [p.detach().clone() for p in connectors]
            self.teacher = copy.deepcopy(teacher.state_dict())

        def after_train(self, runner):
            connectors = list(runner.model.distiller.parameters())
            assert not any(torch.equal(a, b) for a, b in zip(self.start, connectors))
            assert same(self.teacher, runner.model.distiller.teacher.model.state_dict())
            checked.append(True)

    runner = Runner.from_cfg(runner_config(tmp_path, hook_config()))
    runner.register_hook(Check())
    runner.train()
    assert checked


def test_auto_scale_lr_paramwise_and_schedulers_survive_the_rebuild(tmp_path):
    config = runner_config(
        tmp_path,
        hook_config(),
        max_iters=2,
        auto_scale_lr=dict(enable=True, base_batch_size=4),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.05),
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
        ),
    )
    plain = train(
        runner_config(
            tmp_path / 'plain',
            max_iters=2,
            **{k: config[k] for k in ('auto_scale_lr', 'optim_wrapper')},
        )
    )
    distilled = train(config)
    rates = [[g['lr'] for g in r.optim_wrapper.optimizer.param_groups] for r in (plain, distilled)]
    assert rates[1][: len(rates[0])] == pytest.approx(rates[0]) and len(rates[1]) > len(rates[0])
    assert max(rates[0]) < 0.025 + 1e-9  # scaled by 2/4, still warming up


def test_checkpoint_holds_a_plain_student_and_the_rest_apart(tmp_path, teacher_file):
    hook = hook_config(teacher=dict(config=TEACHER, checkpoint=teacher_file))
    runner = train(runner_config(tmp_path, hook))
    saved = weights(tmp_path / 'iter_4.pth')
    assert list(saved['state_dict']) == list(toy_model().state_dict())
    assert set(saved['distiller']) == {
        'version', 'connectors', 'teacher', 'seed', 'settings', 'cfg', 'optimizer', 'weights',
        'calibration',
    }  # fmt: skip
    assert len(saved['distiller']['teacher']['checkpoint']) == 64
    assert not hasattr(runner.model, 'distiller')  # given back after the run
    width = weights(teacher_file)['state_dict']['backbone.stem.0.weight'].shape
    tensors = [t for t in saved['optimizer']['state'].values()]
    assert not any(s['momentum_buffer'].shape == width for s in tensors if 'momentum_buffer' in s)


def test_checkpoint_loads_strictly_where_the_plugin_cannot_be_imported(tmp_path):
    train(runner_config(tmp_path, hook_config()))
    code = (
        "import sys; sys.modules['mmkd_plugin'] = None\n"
        f'sys.path.insert(0, {str(HELPERS)!r})\n'
        'import torch, toys\n'
        'from mmengine.runner import load_checkpoint\n'
        'model = toys.ToyDetector()\n'
        f'load_checkpoint(model, {str(tmp_path / "iter_4.pth")!r}, strict=True)\n'
        "print('LOADED')"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'LOADED' in done.stdout, done.stderr


@pytest.mark.parametrize('extra', [[], [dict(type='EMAHook', update_buffers=True)]])
def test_resume_continues_exactly(tmp_path, extra):
    terms = [
        dict(TERM, warmup=3),
        dict(TERM, name='late', loss=dict(type='MGDLoss', width=3), begin=1),
    ]
    hooks = [hook_config(*terms), *extra]
    train(runner_config(tmp_path / 'through', *hooks, max_iters=6))
    train(runner_config(tmp_path / 'killed', *hooks, max_iters=4))
    (tmp_path / 'killed' / 'iter_4.pth').unlink()
    (tmp_path / 'killed' / 'last_checkpoint').write_text(str(tmp_path / 'killed' / 'iter_2.pth'))
    train(runner_config(tmp_path / 'killed', *hooks, max_iters=6, resume=True))
    a, b = (weights(tmp_path / d / 'iter_6.pth') for d in ('through', 'killed'))
    assert same(a['state_dict'], b['state_dict'])
    assert same(a['distiller']['connectors'], b['distiller']['connectors'])
    for key in a['optimizer']['state']:
        assert same(a['optimizer']['state'][key], b['optimizer']['state'][key])
    if extra:
        assert same(a['ema_state_dict'], b['ema_state_dict'])


def test_another_teacher_on_resume_warns(tmp_path, teacher_file, capsys):
    def hook(path):
        return hook_config(teacher=dict(config=TEACHER, checkpoint=path))

    train(runner_config(tmp_path / 'run', hook(teacher_file), max_iters=2))
    other = weights(teacher_file)
    other['state_dict']['neck.convs.0.bias'] += 1
    torch.save(other, tmp_path / 'other.pth')
    train(
        runner_config(tmp_path / 'run', hook(str(tmp_path / 'other.pth')), max_iters=4, resume=True)
    )
    assert "teacher's checkpoint is not the one" in capsys.readouterr().out


def test_resume_with_other_terms_is_refused(tmp_path):
    train(runner_config(tmp_path, hook_config(), max_iters=2))
    other = hook_config(dict(TERM, student='neck.convs.0'))
    with pytest.raises(ValueError, match='terms are not those'):
        train(runner_config(tmp_path, other, max_iters=4, resume=True))


def test_resume_with_another_loss_warns(tmp_path, capsys):
    """Without connectors nothing else tells the two apart."""
    term = dict(TERM, loss=dict(type='PKDLoss'))
    train(runner_config(tmp_path, hook_config(term), max_iters=2))
    other = hook_config(dict(term, loss=dict(type='CWDLoss')))
    train(runner_config(tmp_path, other, max_iters=4, resume=True))
    assert "terms.gdd.loss.type: 'PKDLoss' then, 'CWDLoss' now" in capsys.readouterr().out


def test_resume_with_other_numbers_warns_of_each(tmp_path, capsys):
    kd = dict(loss=dict(type='KDLoss', temperature=1.0), student='bbox_head.cls', weight=1.0, end=9)
    pkd = dict(loss=dict(type='PKDLoss'), student=dict(path='neck', levels=(0, 1)), warmup=3)
    train(runner_config(tmp_path, hook_config(kd, pkd), max_iters=2))
    kd = dict(kd, loss=dict(type='KDLoss', temperature=2.0), weight=3, by_epoch=False)
    del kd['end']
    late = dict(loss=dict(type='CWDLoss'), student='neck', name='late')
    other = hook_config(kd, dict(pkd, warmup=4), late, task_weight=0.5)
    train(runner_config(tmp_path, other, max_iters=4, resume=True))
    told = capsys.readouterr().out.split('other settings than those it was saved with:\n')[1]
    assert [line.strip() for line in told.splitlines() if line.startswith('  ')] == [
        'task_weight: 1.0 then, 0.5 now',
        'terms.kd.loss.temperature: 1.0 then, 2.0 now',
        'terms.kd.weight: 1.0 then, 3 now',
        'terms.kd.end: 9 then, not set now',
        'terms.kd.by_epoch: not set then, False now',
        'terms.pkd.warmup: 3 then, 4 now',
        "terms.late: not set then, {'loss': {'type': 'CWDLoss'}, 'student': 'neck', "
        "'name': 'late'} now",
    ]


def test_resume_with_the_same_numbers_written_otherwise_is_silent(tmp_path, capsys):
    levels = dict(path='neck', levels=[0, 1])
    term = dict(loss=dict(type='CWDLoss'), student=levels, weight=2.0)
    train(runner_config(tmp_path, hook_config(term), max_iters=2))
    loss, levels = dict(type='mmkd_plugin.CWDLoss'), dict(path='neck', levels=(0, 1))
    same_term = dict(name='cwd', weight=2, student=levels, loss=loss)
    train(runner_config(tmp_path, hook_config(same_term), max_iters=4, resume=True))
    assert 'settings' not in capsys.readouterr().out


@pytest.mark.parametrize('terms', [None, {'gdd': 'CWDLoss'}])
def test_checkpoints_of_before_settings_were_saved_still_resume(tmp_path, capsys, terms):
    train(runner_config(tmp_path, hook_config(), max_iters=2))
    saved = weights(tmp_path / 'iter_2.pth')
    del saved['distiller']['settings']
    if terms is not None:  # the losses came first
        saved['distiller']['terms'] = terms
    torch.save(saved, tmp_path / 'iter_2.pth')
    train(runner_config(tmp_path, hook_config(dict(TERM, weight=5.0)), max_iters=4, resume=True))
    told = capsys.readouterr().out
    assert ("terms.gdd: 'CWDLoss' then, 'GDDLoss' now" in told) == (terms is not None)
    assert (tmp_path / 'iter_4.pth').is_file()


def test_settings_are_plain_values(tmp_path):
    """A checkpoint must open without running code, whatever the config was written with."""
    import mmkd_plugin
    from mmkd_plugin.losses import CWDLoss

    levels = dict(path='neck', levels=(0, 1))
    term = dict(loss=dict(type=CWDLoss, temperature=1.0), student=levels)
    distiller = mmkd_plugin.attach(toy_model(), toy_model(1), [term], probe_size=(16, 16))
    torch.save(distiller.resume_state(), tmp_path / 'state.pth')
    state = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert state['settings'] == dict(
        task_weight=1.0,
        terms=dict(
            cwd=dict(
                loss=dict(type='CWDLoss', temperature=1.0),
                student=dict(path='neck', levels=[0, 1]),
                name='cwd',
            )
        ),
    )


def test_foreign_load_from_is_refused(tmp_path):
    torch.save(dict(state_dict={'architecture.x': torch.zeros(1)}), tmp_path / 'foreign.pth')
    with pytest.raises(ValueError, match='architecture.x'):
        train(runner_config(tmp_path, hook_config(), load_from=str(tmp_path / 'foreign.pth')))


def evaluation(name: str) -> dict:
    """Keys of a Runner config that evaluate the toy by counting its predictions."""
    loader = dict(
        dataset=dict(type='ToyImages'),
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    return {
        f'{name}_dataloader': loader,
        f'{name}_cfg': dict(),
        f'{name}_evaluator': dict(type='ToyCount'),
    }


@METRICS.register_module()
class ToyCount(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results):
        return dict(count=len(results))


def test_validation_with_ema_keeps_weights_and_the_checkpoint_plain(tmp_path):
    hashes = []

    class Spy(Hook):
        def before_val(self, runner):
            hashes.append(copy.deepcopy(runner.model.state_dict()))

        def after_val(self, runner):
            hashes.append(copy.deepcopy(runner.model.state_dict()))

    hooks = [hook_config(), dict(type='EMAHook', update_buffers=True)]
    config = runner_config(tmp_path, *hooks, **evaluation('val'))
    config.train_cfg.val_interval = 2
    runner = Runner.from_cfg(config)
    runner.register_hook(Spy())
    runner.train()
    assert len(hashes) == 4 and same(hashes[0], hashes[1]) and same(hashes[2], hashes[3])
    saved = weights(tmp_path / 'iter_4.pth')
    assert not any('distiller' in key for key in saved['ema_state_dict'])
    toy_model().load_state_dict(saved['state_dict'], strict=True)


def test_accumulated_gradients(tmp_path):
    optim = dict(accumulative_counts=2, optimizer=dict(type='SGD', lr=0.05))
    train(runner_config(tmp_path, hook_config(), optim_wrapper=optim))
    steps = logged(tmp_path, 'loss_gdd')
    assert len(steps) == 4 and len(set(steps)) == 4  # noise is fresh in every micro-batch


def test_gradient_accumulation_equals_a_larger_batch(tmp_path):
    """For a loss that is a mean over samples; the toy's norm is frozen out of the comparison."""
    from toys import toy_batch

    import mmkd_plugin

    grads = []
    for sizes in ([4], [2, 2]):
        student = toy_model().train()
        mmkd_plugin.attach(
            student,
            teacher=toy_model(1),
            probe_size=(16, 16),
            terms=[dict(TERM, loss=dict(type='CWDLoss'))],
        )
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        start = 0
        for n in sizes:
            losses = student(*toy_batch(n, start=start), mode='loss')
            (losses['loss_gdd'] * n / 4).backward()
            start += n
        grads.append(student.neck.convs[0].weight.grad)
    assert torch.allclose(*grads, atol=1e-7)


def test_nan_teacher_stops_the_run_and_names_the_tap(tmp_path, teacher_file):
    """A file with NaN is refused when it is loaded, so the teacher breaks after that."""

    class Break(Hook):
        def before_train(self, runner):
            (ours,) = (h for h in runner.hooks if hasattr(h, 'distiller'))
            with torch.no_grad():
                ours.distiller.teacher.model.neck.convs[1].bias.fill_(float('nan'))

    hook = hook_config(
        dict(TERM, begin=3), teacher=dict(config=TEACHER, checkpoint=str(teacher_file))
    )
    with pytest.raises(FloatingPointError, match="iteration 3 in the teacher tap 'neck.convs.1'"):
        train(runner_config(tmp_path / 'run', hook), Break())
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    assert not (tmp_path / 'run' / 'iter_4.pth').exists()


@pytest.mark.parametrize('with_load_from', [False, True])
def test_init_student_copies_neck_and_head_but_load_from_wins(
    tmp_path, teacher_file, with_load_from
):
    start = {}

    class Spy(Hook):
        priority = 'LOWEST'

        def before_train(self, runner):
            start.update(copy.deepcopy(runner.model.state_dict()))

    hook = hook_config(
        teacher=dict(config=TEACHER, checkpoint=teacher_file), init_student='neck+head'
    )
    loaded = toy_model(9).state_dict()
    torch.save(
        dict(state_dict={k: v for k, v in loaded.items() if 'cls' in k}), tmp_path / 'head.pth'
    )
    extra = dict(load_from=str(tmp_path / 'head.pth')) if with_load_from else {}
    runner = Runner.from_cfg(runner_config(tmp_path / 'run', hook, max_iters=1, **extra))
    runner.register_hook(Spy())
    runner.train()
    teacher = weights(teacher_file)['state_dict']
    assert torch.equal(start['neck.convs.0.bias'], teacher['neck.convs.0.bias'])
    expected = loaded if with_load_from else teacher
    assert torch.equal(start['bbox_head.cls.weight'], expected['bbox_head.cls.weight'])


def test_epochs_in_an_iteration_based_loop_are_refused(tmp_path):
    """Its epoch stays 0: a term with begin=1 would never act, one with end=1 never end."""
    term = dict(TERM, begin=1, by_epoch=True)
    with pytest.raises(ValueError, match=r'terms\[0\] counts epochs'):
        train(runner_config(tmp_path / 'iterations', hook_config(term)))
    epochs = runner_config(
        tmp_path / 'epochs',
        hook_config(term),
        length=4,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        log_processor=dict(by_epoch=True),
    )
    epochs.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    train(epochs)
    assert len(logged(tmp_path / 'epochs', 'loss_gdd')) == 2  # the second of two epochs


def test_two_hooks_are_refused(tmp_path):
    with pytest.raises(ValueError, match='attached twice'):
        train(runner_config(tmp_path, hook_config(), hook_config(dict(TERM, name='b'))))


def test_val_and_test_runs_need_no_teacher(tmp_path):
    hook = hook_config(teacher=dict(config='gone.py', checkpoint='gone.pth'))
    runner = Runner.from_cfg(
        runner_config(tmp_path, hook, **evaluation('val'), **evaluation('test'))
    )
    assert runner.test()['count'] == runner.val()['count'] == 8


def test_train_then_test_on_one_runner(tmp_path):
    runner = train(runner_config(tmp_path, hook_config()))
    runner.call_hook('before_run')  # what runner.test() does first
    assert not hasattr(runner.model, 'distiller')


def test_test_after_an_early_stop_needs_no_teacher(tmp_path):
    class Stop(Hook):
        def after_train_iter(self, runner, **kwargs):
            runner.train_loop.stop_training = True

    runner = Runner.from_cfg(runner_config(tmp_path, hook_config()))
    runner.register_hook(Stop())
    runner.train()
    assert runner.iter < runner.max_iters
    runner.call_hook('before_run')  # what runner.test() does first
    assert not hasattr(runner.model, 'distiller')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(), 'terms'),
        (dict(terms=[dict(TERM)], recipe='gdd'), 'not both'),
        (dict(recipe='gdd', init_student='nek'), "nearest: 'neck'"),
        (dict(recipe='gdd', teacher=None), r'needs teacher=dict\(config=.*previous_epoch'),
        (dict(terms=0.5), 'terms=0.5 must be a list'),
        (dict(terms=dict(TERM)), 'must be a list with a dict for each term'),
    ],
)
def test_wrong_hook_arguments(arguments, message):
    from mmkd_plugin.hooks import DistillHook

    with pytest.raises(ValueError, match=message):
        DistillHook(**dict(dict(teacher={}), **arguments))


def test_wrapping_again_keeps_taps_on_synchronised_norms(monkeypatch):
    from types import SimpleNamespace

    from mmengine.config import Config
    from mmengine.model import convert_sync_batchnorm

    from mmkd_plugin.hooks import runner_model

    student = convert_sync_batchnorm(toy_model(), 'torch')
    norm = student.backbone.stem[1]
    runner = SimpleNamespace(
        model=student,
        distributed=True,
        cfg=Config(dict(sync_bn='torch', optim_wrapper=dict())),
    )

    def wrap_model(cfg, model):
        sync_bn = runner.cfg.get('sync_bn')
        return convert_sync_batchnorm(model, sync_bn) if sync_bn else model

    runner.wrap_model = wrap_model
    runner.build_optim_wrapper = lambda config: None
    runner.scale_lr = lambda *args: None
    runner.auto_scale_lr = runner.param_schedulers = None
    monkeypatch.setattr(runner_model, 'is_model_wrapper', lambda model: True)
    runner_model.include_connectors(runner, student, student)
    assert runner.model.backbone.stem[1] is norm and runner.cfg.sync_bn == 'torch'
