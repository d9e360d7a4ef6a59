"""A weight that sets itself: to which number, when, and without a trace in the run."""

from __future__ import annotations

import copy
import math
import re
from statistics import median_low

import pytest
import torch
from mmengine.hooks import Hook
from ranks import run_ranks
from toys import TERM, by_epoch, hook_config, runner_config, toy_batch, toy_model, train

import mmkd_plugin
from mmkd_plugin.weights import MEASURED, STEPS, TARGETS, CalibrationError
from mmkd_plugin.weights import calibration as module
from mmkd_plugin.weights.calibration import COUNTED, Gauge

AUTO = dict(TERM, weight='auto')
PKD = dict(loss=dict(type='PKDLoss'), student='neck.convs.*', weight=dict(ratio=0.3), name='pkd')


# At the toys' own rate of 0.05 the connectors of GDD may diverge within 30 steps.
GENTLE = dict(optimizer=dict(type='SGD', lr=0.005, momentum=0.9))


class Keep(Hook):
    """Weights and losses after each iteration; parameters and buffers at the end."""

    priority = 'LOWEST'

    def __init__(self):
        self.weights, self.logged, self.parameters = [], [], {}

    def before_train(self, runner):
        self.model = runner.model
        self.distiller = self.model.distiller

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append({term.name: term.weight for term in self.distiller.terms})
        self.logged.append({k: float(v) for k, v in outputs.items()})

    def after_train(self, runner):
        self.state = self.distiller.resume_state()
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        self.parameters = {name: tensor.detach().clone() for name, tensor in named}
        self.random = torch.get_rng_state()


class Killed(Exception):
    """What a kill looks like from inside."""


class Kill(Hook):
    """Ends a run after an iteration, once its checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            raise Killed


def run(work_dir, *terms, model=None, teacher=None, until=STEPS + 4, hooks=(), **changes) -> Keep:
    keep = Keep()
    changes.setdefault('optim_wrapper', GENTLE)
    hook = hook_config(*terms, **({} if teacher is None else dict(teacher=teacher)))
    config = runner_config(work_dir, hook, max_iters=until, **changes)
    if model:
        config.model.update(model)
    train(config, keep, *hooks)
    return keep


def by_hand(student, terms, batch) -> dict[str, float]:
    """Task's gradient norm over the term's, of unweighted terms, from autograd alone."""
    losses = student(*batch, mode='loss')
    parameters = [p for n, p in student.named_parameters() if 'distiller' not in n]
    parameters = [p for p in parameters if p.requires_grad]
    task = torch.autograd.grad(sum(losses['loss_cls']), parameters, retain_graph=True)
    found = {}
    for term in terms:
        own = torch.autograd.grad(
            losses[f'loss_{term}'], parameters, retain_graph=True, allow_unused=True
        )
        pairs = [(a, b) for a, b in zip(task, own) if b is not None]
        assert 0 < len(pairs) < len(parameters)  # the head is reached by the task alone
        norms = [math.sqrt(sum(float(x[i].square().sum()) for x in pairs)) for i in (0, 1)]
        found[term] = norms[0] / norms[1]
    return found


# -- the number ----------------------------------------------------------------------------------


def test_the_weight_is_the_target_times_the_median_of_the_quotients():
    cwd = dict(loss=dict(type='CWDLoss'), student='neck.convs.*', name='cwd')
    terms = [dict(cwd, weight=dict(ratio=0.7)), PKD]
    fixed = [dict(term, weight=1.0) for term in terms]
    batches = [toy_batch(4, 16, start) for start in range(STEPS)]
    ones, student = toy_model(0), toy_model(0)
    mmkd_plugin.attach(ones, toy_model(1), fixed, probe_size=(16, 16))
    distiller = mmkd_plugin.attach(student, toy_model(1), terms, probe_size=(16, 16))
    measured = []
    for n, batch in enumerate(batches):
        assert distiller.calibrates and distiller.weights() == {}
        if n in MEASURED:
            measured.append(by_hand(ones, ['cwd', 'pkd'], batch))
        losses = student(*batch, mode='loss')
        plain = ones(*batch, mode='loss')
        for term, target in zip(distiller.terms, (0.7, 0.3)):
            weight = target * median_low(q[term.name] for q in measured[-COUNTED:])
            assert term.weight == pytest.approx(weight, rel=1e-3)
            # what has been found so far counts in the very step
            key = f'loss_{term.name}'
            ratio = float(losses[key].detach()) / float(plain[key].detach())
            assert ratio == pytest.approx(term.weight, rel=1e-4)
    assert not distiller.calibrates
    assert distiller.weights() == {term.name: term.weight for term in distiller.terms}
    frozen = distiller.weights()
    losses, plain = (model(*toy_batch(4, 16, 50), mode='loss') for model in (student, ones))
    assert distiller.weights() == frozen
    ratio = float(losses['loss_cwd'].detach()) / float(plain['loss_cwd'].detach())
    assert ratio == pytest.approx(frozen['cwd'], rel=1e-5)


@pytest.mark.parametrize('spike', [1e-3, 1e3], ids=['of the term', 'of the task'])
def test_steps_with_an_odd_gradient_do_not_make_the_weight(spike):
    """Four of the nine that count, as SGD gives them to a new detector."""
    gauge, usual = Gauge(2.0), [0.9, 1.0, 1.1]
    for step in range(STEPS):
        odd = step in (13, 17, 21, 25)
        value = usual[step % 3] * (spike if odd else 1)
        gauge.add(math.log(value) if gauge.is_due else None)
    assert gauge.frozen
    assert 2 * min(usual) <= gauge.weight <= 2 * max(usual)


def test_the_weight_is_logged_kept_and_written_as_it_can_be_pasted(tmp_path, capsys):
    keep = run(tmp_path / 'auto', AUTO, PKD, log_level='INFO')
    out = capsys.readouterr().out
    weights = keep.distiller.weights()
    assert weights == keep.weights[-1] and set(weights) == {'gdd', 'pkd'}
    for name, weight in weights.items():
        assert re.search(rf'loss_{name}: weight={weight:g}, .*--weight {name}={weight:g}', out)
        assert float(f'{weight:g}') == weight
    saved = torch.load(tmp_path / 'auto' / f'iter_{STEPS + 4}.pth', weights_only=False)
    assert saved['distiller']['weights'] == weights
    early = torch.load(tmp_path / 'auto' / 'iter_2.pth', weights_only=False)
    assert early['distiller']['weights'] == {}
    assert [w['gdd'] for w in keep.weights[STEPS - 1 :]] == [weights['gdd']] * 5


def test_task_weight_does_not_move_the_reference():
    weights = []
    for task_weight in (1.0, 0.1):
        student = toy_model(0)
        distiller = mmkd_plugin.attach(
            student, toy_model(1), [AUTO], task_weight, probe_size=(16, 16)
        )
        student(*toy_batch(), mode='loss')
        weights.append(distiller.terms[0].weight)
    assert weights[0] == weights[1]


# -- without a trace -----------------------------------------------------------------------------

KINDS = {
    'plain': {},
    'dropout': dict(model=dict(type='ToyDetector', dropout=0.5)),
    'accumulated': dict(optim_wrapper=dict(GENTLE, accumulative_counts=3)),
    'clipped': dict(
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01), clip_grad=dict(max_norm=1.0))
    ),
    # Run once more in the backward, which moves the norm's statistics.
    'checkpointed': dict(activation_checkpointing=['backbone.stage']),
    'ema': dict(custom_hooks=[dict(type='EMAHook')]),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_is_as_if_the_weights_had_been_known(tmp_path, monkeypatch, kind):
    changes = dict(dict(optim_wrapper=GENTLE), **copy.deepcopy(KINDS[kind]))
    hooks = changes.pop('custom_hooks', [])

    def trained(folder):
        keep = Keep()
        config = runner_config(
            tmp_path / folder, hook_config(AUTO, PKD), *hooks, max_iters=STEPS + 4, **changes
        )
        train(config, keep)
        return keep

    measured = trained('measured')
    quotients = measured.state['calibration']

    class Known(module.Calibration):
        """Looks the quotients up: no gradient is taken."""

        def step(self, student, task, losses, active):
            for term in [t for t in active if self.is_open(t)]:
                gauge = self.gauges[term.name]
                known = quotients[term.name]['quotients'][len(gauge.quotients) :]
                gauge.add(known[0] if gauge.is_due else None)
                key = f'loss_{term.name}'
                losses[key] = losses[key] * (gauge.weight * term.ramp / term.current_weight)
                term.weight = gauge.weight

    monkeypatch.setattr('mmkd_plugin.distiller.Calibration', Known)
    known = trained('known')
    assert known.weights == measured.weights and known.logged == measured.logged
    assert torch.equal(known.random, measured.random)
    for name, value in measured.parameters.items():
        assert torch.equal(value, known.parameters[name]), name


@pytest.mark.parametrize('killed_at', [4, 16, 32])
def test_resume_continues_exactly_during_and_after(tmp_path, killed_at):
    whole = run(tmp_path / 'whole', AUTO, PKD)
    with pytest.raises(Killed):
        run(tmp_path / 'killed', AUTO, PKD, hooks=[Kill(killed_at)])
    rest = run(tmp_path / 'killed', AUTO, PKD, resume=True)
    assert rest.weights == whole.weights[killed_at:]
    assert rest.state['calibration'] == whole.state['calibration']
    for name, value in whole.parameters.items():
        assert torch.equal(value, rest.parameters[name]), name


def test_a_resume_with_another_target_scales_the_weight_and_says_so(tmp_path, capsys):
    run(tmp_path, AUTO, until=STEPS + 2)
    frozen = torch.load(tmp_path / f'iter_{STEPS + 2}.pth', weights_only=False)['distiller']
    capsys.readouterr()
    rest = run(tmp_path, dict(TERM, weight=dict(ratio=0.25)), until=STEPS + 4, resume=True)
    out = capsys.readouterr().out
    usual = TARGETS['feature']
    scaled = 0.25 / usual * frozen['weights']['gdd']
    assert rest.distiller.weights()['gdd'] == pytest.approx(scaled, rel=1e-3)
    assert f'terms.gdd.weight.ratio: {usual} then, 0.25 now' in out


def test_a_resume_with_a_number_takes_the_number(tmp_path):
    run(tmp_path, AUTO, until=STEPS + 2)
    rest = run(tmp_path, dict(TERM, weight=5.0), until=STEPS + 4, resume=True)
    assert rest.distiller.weights() == {'gdd': 5.0}


def test_a_resumed_run_with_too_few_steps_takes_what_is_left(tmp_path, capsys):
    run(tmp_path / 'run', dict(TERM, weight=2.0), until=10)
    rest = run(tmp_path / 'run', AUTO, until=14, resume=True, log_level='INFO')
    out = capsys.readouterr().out
    assert 'acts in 4 iterations only' in out and 'loss_gdd: weight=' in out
    assert set(rest.state['weights']) == {'gdd'}


def test_a_weight_that_a_short_run_has_found_stays_when_the_run_is_made_longer(tmp_path):
    short = run(tmp_path, AUTO, until=10)
    longer = run(tmp_path, AUTO, until=STEPS + 4, resume=True)
    assert {w['gdd'] for w in longer.weights} == {short.weights[-1]['gdd']}


def test_a_resumed_run_does_not_seek_the_weight_of_a_term_that_has_ended(tmp_path):
    run(tmp_path / 'run', dict(TERM, weight=2.0, end=6), until=10)
    rest = run(tmp_path / 'run', dict(AUTO, end=6), until=14, resume=True)
    assert rest.state['weights'] == {}


RANKS = """
import os, torch, toys
import torch.distributed as dist
world = int(os.environ['WORLD_SIZE'])
if world > 1:
    dist.init_process_group('gloo')
from mmengine.runner import Runner
launch = dict(launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=False,
    broadcast_buffers=False)) if world > 1 else dict()
terms = [dict(loss=dict(type='CWDLoss'), student='neck.convs.*', weight='auto', name='cwd'),
         dict(toys.TERM, weight='auto')]
for name, used in dict(plain=terms[:1], noise=terms).items():
    work = f'{out}/{{name}}_{{world}}'
    config = toys.runner_config(
        work, toys.hook_config(*used), batch_size=4 // world, max_iters=32,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=32)),
        experiment_name=work, **launch)
    config.model.norm = False
    runner = Runner.from_cfg(config)
    weights = []
    runner.register_hook(type('Keep', (toys.Hook if hasattr(toys, 'Hook') else __import__(
        'mmengine').hooks.Hook,), dict(after_train=lambda self, runner: weights.append(
        getattr(runner.model, 'module', runner.model).distiller.weights())))(), priority='LOWEST')
    runner.train()
    rank = os.environ['RANK']
    torch.save(weights[0], f'{out}/{{name}}_{{world}}_{{rank}}.pth')
"""


def test_two_ranks_find_the_weight_of_one(tmp_path):
    for world in (2, 1):
        run_ranks(RANKS.format(out=tmp_path), world)
    one, first, second = (
        torch.load(tmp_path / f'plain_{name}.pth') for name in ('1_0', '2_0', '2_1')
    )
    assert first == second and one['cwd'] > 0
    assert first['cwd'] == pytest.approx(one['cwd'], rel=2e-3)
    # the ranks draw noise of their own, and find one number all the same
    noise = [torch.load(tmp_path / f'noise_2_{rank}.pth') for rank in (0, 1)]
    assert noise[0] == noise[1] and set(noise[0]) == {'cwd', 'gdd'}


# -- schedules -----------------------------------------------------------------------------------


def test_a_term_is_measured_when_it_begins(tmp_path):
    keep = run(tmp_path, dict(AUTO, begin=5), dict(PKD, interval=2), until=64)
    found = [w['gdd'] for w in keep.weights]
    assert found[:5] == [1.0] * 5 and found[5] != 1.0
    changes = [i for i in range(6, 64) if found[i] != found[i - 1]]
    assert len(changes) > 3 and {*changes} <= {5 + step for step in MEASURED[1:]}
    found = [w['pkd'] for w in keep.weights]
    changes = [i for i in range(1, 64) if found[i] != found[i - 1]]
    assert len(changes) > 3 and {*changes} <= {2 * i for i in MEASURED[1:]}


def test_a_ramp_multiplies_what_was_found(tmp_path):
    plain = run(tmp_path / 'plain', AUTO)
    ramped = run(tmp_path / 'ramped', dict(AUTO, warmup=100), until=1)
    assert ramped.weights[0] == plain.weights[0]
    assert ramped.logged[0]['loss_gdd'] == pytest.approx(
        plain.logged[0]['loss_gdd'] / 100, rel=1e-5
    )


def test_a_short_run_takes_the_batches_that_it_has(tmp_path, capsys):
    keep = run(tmp_path, AUTO, until=3, log_level='INFO')
    out = capsys.readouterr().out
    assert 'acts in 3 iterations only' in out and 'loss_gdd: weight=' in out
    assert set(keep.state['weights']) == {'gdd'}
    with pytest.raises(CalibrationError, match='acts in no iteration'):
        run(tmp_path / 'never', dict(AUTO, begin=10), until=3)


# -- what has no weight --------------------------------------------------------------------------


def same_teacher(tmp_path):
    """The student itself: a term between the two is 0."""
    torch.save(toy_model(0, width=4, neck=6, norm=False).state_dict(), tmp_path / 'same.pth')
    return dict(config=dict(type='ToyDetector', norm=False), checkpoint=str(tmp_path / 'same.pth'))


def test_a_term_without_a_gradient_is_named(tmp_path):
    term = dict(loss=dict(type='CWDLoss'), student='neck.convs.*', weight='auto', name='cwd')
    optim = dict(optimizer=dict(type='SGD', lr=0.0))
    with pytest.raises(CalibrationError) as caught:
        run(
            tmp_path / 'run',
            term,
            teacher=same_teacher(tmp_path),
            model=dict(norm=False),
            until=STEPS + 2,
            optim_wrapper=optim,
            load_from=str(tmp_path / 'same.pth'),
        )
    message = str(caught.value)
    assert "terms[0] ('cwd')" in message and 'first steps' in message
    assert 'its gradient was' in message


class Infinite(torch.autograd.Function):
    """A loss that is finite, with a gradient that is not."""

    @staticmethod
    def forward(ctx, x):
        return x.sum() * 0 + 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float('inf') * torch.ones(1)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(monkeypatch):
    monkeypatch.setattr(
        'mmkd_plugin.losses.CWDLoss.compute', lambda self, s, t: Infinite.apply(s.mean())
    )
    student = toy_model(0)
    term = dict(loss=dict(type='CWDLoss'), student='neck.convs.*', weight='auto', name='cwd')
    mmkd_plugin.attach(student, toy_model(1), [term], probe_size=(16, 16))
    losses = student(*toy_batch(), mode='loss')
    sum([*losses['loss_cls'], losses['loss_cwd']]).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())
    with pytest.raises(CalibrationError, match=r"terms\[0\] \('cwd'\).*gradient was (inf|nan)"):
        for _ in range(STEPS):
            student(*toy_batch(), mode='loss')


def apart(student, trained: bool):
    """The student's head learns by itself, and its losses do not reach the maps of the neck."""
    own = student.bbox_head.loss
    student.bbox_head.loss = lambda xs, targets: own([x.detach() for x in xs], targets)
    student.bbox_head.requires_grad_(trained)
    term = dict(loss=dict(type='CWDLoss'), student='neck.convs.*', weight='auto', name='cwd')
    mmkd_plugin.attach(student, toy_model(1), [term], probe_size=(16, 16))


def test_a_term_on_other_parameters_than_the_task_is_named():
    student = toy_model(0)
    apart(student, trained=True)
    with pytest.raises(
        CalibrationError, match=r"'cwd'\).*no parameter that the losses of the task"
    ):
        for _ in range(STEPS):
            assert float(student(*toy_batch(), mode='loss')['loss_cwd'].detach()) == 0


def test_losses_of_the_task_that_train_nothing_are_named():
    student = toy_model(0)
    apart(student, trained=False)
    with pytest.raises(CalibrationError, match=r'own losses \(loss_cls, acc\) reach none'):
        student(*toy_batch(), mode='loss')


def test_a_look_at_the_losses_without_gradients_measures_nothing():
    student = toy_model(0).train()
    distiller = mmkd_plugin.attach(student, toy_model(1), [AUTO], probe_size=(16, 16))
    with torch.no_grad():
        assert float(student(*toy_batch(), mode='loss')['loss_gdd']) == 0
    assert distiller.calibration.state()['gdd'] == dict(quotients=[], steps=0, due=0, found=None)
    student(*toy_batch(), mode='loss')
    with torch.no_grad():
        assert float(student(*toy_batch(), mode='loss')['loss_gdd']) > 0
    assert distiller.calibration.state()['gdd']['steps'] == 1


def test_a_tap_that_holds_nan_is_named():
    student, teacher = toy_model(0), toy_model(1)
    with torch.no_grad():
        teacher.neck.convs[1].bias.fill_(float('nan'))
    mmkd_plugin.attach(student, teacher, [AUTO], probe_size=(16, 16))
    with pytest.raises(FloatingPointError, match=r"teacher tap 'neck.convs.1' of term 'gdd'"):
        for _ in range(STEPS):
            student(*toy_batch(), mode='loss')


@pytest.mark.parametrize('task_weight', [0, 0.0, 'complement'])
def test_without_losses_of_the_task_there_is_nothing_to_compare_with(task_weight):
    with pytest.raises(ValueError) as caught:
        mmkd_plugin.attach(toy_model(0), toy_model(1), [AUTO], task_weight, probe_size=(16, 16))
    assert 'task_weight' in str(caught.value) and "weight='auto' of gdd" in str(caught.value)


def test_a_loader_that_raises_is_heard_as_it_is(tmp_path, monkeypatch):
    def broken(self, index):
        raise OSError('image 3 is truncated')

    monkeypatch.setattr('toys.ToyImages.__getitem__', broken)
    with pytest.raises(OSError, match='image 3 is truncated'):
        run(tmp_path, AUTO)


# -- how long it takes ---------------------------------------------------------------------------


def test_it_costs_one_backward_for_the_task_and_one_for_each_term(tmp_path, monkeypatch):
    calls = []
    original = module.parameter_norms
    monkeypatch.setattr(module, 'parameter_norms', lambda *args: calls.append(1) or original(*args))
    run(tmp_path, AUTO, PKD, until=40)
    assert len(calls) == len(MEASURED) * 3


def test_a_student_that_is_its_own_teacher_needs_a_number(tmp_path):
    term = dict(AUTO, begin=1, by_epoch=True)
    with pytest.raises(ValueError, match="weight='auto' and teacher='previous_epoch'"):
        run(tmp_path, term, teacher='previous_epoch', **by_epoch(2))
