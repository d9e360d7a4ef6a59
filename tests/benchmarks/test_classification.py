"""The classification runner: what a row may claim, whose run is whose, and a study end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks import (
    cifar100,
    classification,
    cls_methods,
    cls_summary,
    methods,
    pool,
    summary,
    worker,
)
from mmkd_plugin.recipes import funmatch

TASK = methods.TASKS['classification']
CIFAR = cls_methods.BENCHMARKS['cifar100']
PAIR = 'resnet56_resnet20'
STUDENT = [69.0, 69.4, 68.9]


def make_run(method: str, seed: int, top1: float, epochs: int = 240, **changes) -> dict:
    own = None if method == 'student' else PAIR
    numbers = {m: top1 + (0.3 if m.startswith('best') else 0) for m in summary.columns(TASK)}
    return dict(
        dict(task='classification', pair=own, method=method, weight=None, seed=seed, epochs=epochs,
             config=CIFAR.config('resnet20'), seconds=10.0 * epochs, parameters=278_324, **numbers),
        **changes,
    )  # fmt: skip


def make_runs(method: str, values: list[float], **changes) -> list[dict]:
    return [make_run(method, seed, value, **changes) for seed, value in enumerate(values)]


def rows(runs: list[dict], names: list[str], benchmark=CIFAR) -> dict[str, dict]:
    made = cls_summary.tables(runs, {}, {PAIR: benchmark.pairs[PAIR]}, names, benchmark)
    return {row['method']: row for row in made[PAIR]['rows']}


# -- what a row may claim ------------------------------------------------------------------------


@pytest.mark.parametrize(
    'values, epochs, expected',
    [
        ([70.4, 70.5, 70.3], 240, 'reproduced'),  # best 70.7, published 70.66
        ([69.9, 69.9, 69.9], 240, 'reproduced'),  # best 70.2: within half a point
        ([75.0, 75.0, 75.0], 240, 'reproduced'),  # better
        ([69.8, 69.8, 69.8], 240, 'not reproduced (-0.56)'),
        ([70.4, 70.5, 70.3], 60, 'incomplete: 60 of 240 epochs'),
        ([70.4, 70.5], 240, 'incomplete: 2 of at least 3 seeds'),
    ],
)
def test_reproduced_takes_seeds_schedule_and_accuracy(values, epochs, expected):
    runs = make_runs('student', STUDENT, epochs=epochs) + make_runs('kd', values, epochs=epochs)
    row = rows(runs, ['student', 'kd'])['kd']
    assert row['verdict'] == expected
    made = dict(teacher='resnet56', student='resnet20', result=None, rows=[row])
    text = cls_summary.to_markdown({PAIR: made}, CIFAR)
    assert expected in text
    (line,) = [x for x in text.splitlines() if x.startswith('| KD |')]
    assert ('reproduced' in line) == ('reproduced' in expected)
    assert ('±' in line) == (len(values) >= 3)


@pytest.mark.parametrize('taught, claim', [(240, 'reproduced'), (60, 'a teacher of 60 of 240')])
def test_a_teacher_of_fewer_epochs_reproduces_nothing(taught, claim):
    row = dict(incomplete=None, published=70.66, epochs=[240], best_top1=(70.7, 0.1))
    assert claim in cls_summary.verdict(row, 240, taught)


@pytest.mark.parametrize('epochs', [1600, 80])
def test_the_schedule_of_a_method_is_not_scaled_again(tmp_path, epochs):
    """1600 // 20 is the 80 epochs of the config: its end was taken for the end of the run."""
    benchmark = cls_methods.BENCHMARKS['digits']
    run = dict(
        task='classification', config=benchmark.config('resnet8-narrow_digits'), pair=None,
        method='student', terms=[], seed=0, split='test', epochs=epochs, options={},
    )  # fmt: skip
    run.update(cls_methods.build_run('student', run, benchmark, 'adamw'))
    ramp, cosine = worker.build_config(run, tmp_path).param_scheduler
    assert (ramp['end'], cosine['end'], cosine['T_max']) == (
        epochs // 20, epochs, epochs - epochs // 20,
    )  # fmt: skip


@pytest.mark.parametrize('flag', ['--epochs', '--jobs', '--threads'])
def test_counts_below_one_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        classification.main(['--dataset', 'digits', flag, '0'])
    assert 'must be 1 or more' in capsys.readouterr().err


def test_nothing_is_claimed_where_nothing_was_published():
    runs = make_runs('student', STUDENT) + make_runs('loca', [70.0, 70.0, 70.0])
    row = rows(runs, ['student', 'loca'])['loca']
    assert row['published'] is None and row['verdict'] == '–'
    assert row['gain'][0] == pytest.approx(0.9) and row['wins'] == 3
    assert row['seconds'] == pytest.approx(10.0)


def test_methods_without_numbers_in_the_protocol_have_none_here():
    for numbers in CIFAR.published.values():
        assert set(numbers) <= {'teacher', 'student', 'kd', 'dkd'}
    assert CIFAR.published[PAIR] == dict(teacher=72.34, student=69.06, kd=70.66, dkd=71.97)
    assert len(CIFAR.pairs) == 13 and list(CIFAR.published) == list(CIFAR.pairs)
    assert not cls_methods.BENCHMARKS['digits'].published


def test_a_student_alone_serves_its_own_pairs_only():
    runs = make_runs('student', STUDENT) + make_runs('kd', [70.0, 70.0, 70.0])
    other = make_runs('student', [50.0] * 3, config=CIFAR.config('resnet32'))
    assert rows(runs + other, ['kd'])['kd'] == rows(runs, ['kd'])['kd']
    missing = rows(other + make_runs('kd', [70.0, 70.0, 70.0]), ['kd'])['kd']
    assert missing['incomplete'] == 'no student alone for seed 0, 1, 2'


def test_selection_marks_the_best_rate():
    runs = [
        make_run('resnet20 sgd', seed, 60 + 10 * lr + seed, weight=lr)
        for lr in (0.1, 0.2) for seed in (0, 1)
    ]  # fmt: skip
    marked = [x for x in cls_summary.selection_markdown(runs).splitlines() if 'highest' in x]
    assert marked == ['| resnet20 sgd | 0.2 | 2 | 62.50 | highest |']


# -- settings of a run ---------------------------------------------------------------------------


def make_study(
    tmp_path: Path, *options: str, dataset: str = 'cifar100'
) -> classification.ClassificationStudy:
    parser = classification.build_parser('')
    args = parser.parse_args([*options, '--work-dir', str(tmp_path), '--device', 'cpu'])
    args.dataset = dataset
    args = classification.finish(args, list(options), 'test')
    return classification.ClassificationStudy(args, cls_methods.BENCHMARKS[dataset])


TEACHER = dict(config=CIFAR.config('resnet56'), checkpoint='t.pth', sha256='0')


def plan(study: classification.ClassificationStudy) -> dict[str, dict]:
    teachers = {t: {**TEACHER, 'config': CIFAR.config(t)} for t, _ in study.pairs.values()}
    made = study.plan(teachers)
    return {str(folder.relative_to(study.folder)): run for folder, run in made.items()}


def test_plan_shares_students_and_keeps_everything_a_run_depends_on(tmp_path):
    pairs = ('--pairs', PAIR, 'resnet110_resnet20')
    runs = plan(make_study(tmp_path, *pairs, '--methods', 'student', 'dkd', '--seeds', '0', '1'))
    assert set(runs) == {'alone/resnet20-seed0', 'alone/resnet20-seed1'} | {
        f'{pair}/dkd-seed{seed}' for pair in pairs[1:] for seed in (0, 1)
    }
    run = runs[f'{PAIR}/dkd-seed1']
    assert run['terms'][0]['loss']['beta'] == 2.0 and run['terms'][0]['warmup'] == 20
    assert (run['seed'], run['epochs'], run['device']) == (1, 240, 'cpu')
    assert run['teacher']['sha256'] == '0' and len(run['config_sha256']) == 64
    other = runs['resnet110_resnet20/dkd-seed1']
    assert other['terms'][0]['loss']['beta'] == 2.0
    alone = runs['alone/resnet20-seed0']
    assert alone['terms'] == [] and alone['teacher'] is None and alone['pair'] is None
    assert json.loads(json.dumps(runs)) == runs


@pytest.mark.parametrize('method', [m for m in cls_methods.METHODS if m != 'student'])
def test_methods_change_what_they_are_about_and_nothing_else(method, tmp_path):
    study = make_study(tmp_path, '--pairs', PAIR, '--methods', 'student', method, '--seeds', '0')
    runs = plan(study)
    alone = worker.build_config(runs['alone/resnet20-seed0'], tmp_path)
    cfg = worker.build_config(runs[f'{PAIR}/{method}-seed0'], tmp_path)
    (hook,) = cfg.custom_hooks
    assert hook.teacher == dict(config=TEACHER['config'], checkpoint='t.pth')
    preprocessor, usual = cfg.model.data_preprocessor, alone.model.data_preprocessor
    mixes = 'funmatch' in method or 'mixup' in method
    assert (preprocessor.get('mixup') == 1.0) == mixes
    assert ('recalibrate_bn' in cfg.default_hooks) == mixes
    view = preprocessor.get('teacher_view', dict(mode='same')).get('mode')
    assert view == next((m for m in ('fixed', 'independent') if m in method), 'same')
    assert {k: v for k, v in preprocessor.items() if k not in ('mixup', 'teacher_view')} == usual
    assert (hook.task_weight == 0) == ('funmatch' in method or 'view' in method)
    assert cfg.train_dataloader == alone.train_dataloader
    adamw = method == 'funmatch'
    assert (cfg.optim_wrapper == alone.optim_wrapper) != adamw
    if adamw:
        assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-3, weight_decay=0.1)
        assert cfg.optim_wrapper.clip_grad.max_norm == 1.0
    own_schedule = adamw or method == 'ckd-480e'
    assert (cfg.param_scheduler == alone.param_scheduler) != own_schedule
    assert cfg.train_cfg.max_epochs == (480 if method == 'ckd-480e' else 240)
    assert cfg.train_cfg.val_interval == 1


@pytest.mark.parametrize('epochs', [1, 13, 80, 240])
def test_funmatch_trains_as_its_recipe_but_for_rate_and_ramp(epochs):
    ours = cls_methods.adamw(0.02, epochs)
    optim_wrapper, schedule = funmatch.training(epochs, 0.02, warmup=max(1, epochs // 20))
    assert ours['param_scheduler'] == schedule
    assert ours['optim_wrapper'] == dict(optim_wrapper, type='OptimWrapper', _delete_=True)


def test_published_ckd_schedule_takes_its_batch_size(tmp_path):
    study = make_study(
        tmp_path, '--pairs', 'wrn_40_2_wrn_40_1', PAIR, '--methods', 'ckd-480e', '--seeds', '0'
    )
    runs = plan(study)
    assert 'ckd-480e' not in make_study(tmp_path).args.methods
    for pair, batch in (('wrn_40_2_wrn_40_1', 32), (PAIR, 64)):
        cfg = worker.build_config(runs[f'{pair}/ckd-480e-seed0'], tmp_path)
        assert cfg.train_dataloader.batch_size == batch
        assert cfg.param_scheduler[0].T_max == 480


def test_shorter_runs_keep_the_shape_of_the_schedule(tmp_path):
    study = make_study(tmp_path, '--pairs', PAIR, '--methods', 'dkd', '--epochs', '60')
    run = plan(study)[f'{PAIR}/dkd-seed0']
    cfg = worker.build_config(run, tmp_path)
    assert cfg.param_scheduler[0].milestones == [37, 45, 52]
    assert run['terms'][0]['warmup'] == 5


def test_fast_cifar_is_the_fast_config(tmp_path, monkeypatch):
    seen = {}

    def run(self):
        seen.update(plan(self))
        return 0

    monkeypatch.setattr(classification.ClassificationStudy, 'run', run)
    monkeypatch.chdir(tmp_path)
    argv = ['--fast', '--any-row-order', '--pairs', PAIR, '--methods', 'kd', '--device', 'cpu']
    assert cifar100.main([*argv, '--work-dir', str(tmp_path)]) == 0
    cfg = worker.build_config(seen[f'{PAIR}/kd-seed0'], tmp_path)
    fast = Config.fromfile(CIFAR.config('resnet20_60e'))
    assert cfg.optim_wrapper == fast.optim_wrapper
    assert cfg.param_scheduler == fast.param_scheduler
    assert cfg.train_dataloader.batch_size == fast.train_dataloader.batch_size
    assert cfg.train_cfg.max_epochs == fast.train_cfg.max_epochs
    assert cfg.test_dataloader.dataset.check_md5 is False


def test_fast_is_a_schedule_of_its_own(tmp_path, monkeypatch):
    """With 240 epochs it would not be the published schedule, but look like it in the table."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='give --fast or --epochs, not both'):
        cifar100.main(['--fast', '--epochs', '240', '--pairs', PAIR, '--device', 'cpu'])


@pytest.mark.parametrize('amp, scale', [('bfloat16', dict(enabled=False)), ('float16', 'dynamic')])
def test_amp_and_compile_reach_the_config(tmp_path, amp, scale):
    run = plan(make_study(tmp_path, '--pairs', PAIR, '--methods', 'kd'))[f'{PAIR}/kd-seed0']
    cfg = worker.build_config({**run, 'amp': amp, 'compile': 'max-autotune'}, tmp_path)
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == ('AmpOptimWrapper', amp, scale)
    assert cfg.compile == dict(mode='max-autotune', dynamic=False)
    assert dict(type='mmkd_plugin.CompiledStepHook', strict=True) in cfg.custom_hooks
    assert 'compile' not in worker.build_config(run, tmp_path)


@pytest.mark.slow
def test_a_compiled_run_tells_its_graphs_or_fails(few_images, tmp_path, monkeypatch, capsys):
    options = ['--methods', 'student', 'kd', '--seeds', '0', '--epochs', '3', '--compile']
    args = ['--dataset', 'digits', *options, '--results', str(tmp_path / 'results')]
    assert classification.main([*args, '--work-dir', str(tmp_path / 'work')]) == 0
    content = json.loads((tmp_path / 'results/classification_digits.json').read_text())
    assert all(0 < run['graphs'] < 20 for run in content['runs'])
    table = (tmp_path / 'results/classification_digits.md').read_text()
    assert 'compile=default, compiled graphs of a run: ' in table
    monkeypatch.setenv('TORCHDYNAMO_DISABLE', '1')
    monkeypatch.setenv('TORCH_COMPILE_DISABLE', '1')
    with pytest.raises(SystemExit, match='could not be trained'):
        classification.main([*args, '--work-dir', str(tmp_path / 'eager')])
    assert 'has compiled nothing' in capsys.readouterr().out


def test_reported_and_selection_splits_differ(tmp_path):
    study = make_study(tmp_path, '--select-lr', 'sgd=0.1,0.2', 'adamw=0.01', dataset='digits')
    runs = {folder.name: run for folder, run in study.plan_selection().items()}
    assert not [name for name in runs if name.startswith('resnet14_digits-adamw')]
    run = runs['resnet8-narrow_digits-sgd-lr0.2-seed1']
    cfg = worker.build_config(run, tmp_path)
    assert cfg.val_dataloader.dataset.split == 'val' and cfg.optim_wrapper.optimizer.lr == 0.2
    cfg = worker.build_config(runs['resnet8-narrow_digits-adamw-lr0.01-seed0'], tmp_path)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=0.01, weight_decay=0.1)
    reported = plan(make_study(tmp_path, '--methods', 'student', dataset='digits'))
    cfg = worker.build_config(reported['alone/resnet8-narrow_digits-seed0'], tmp_path)
    assert cfg.val_dataloader.dataset.split == 'test'


def test_a_study_writes_its_three_files(tmp_path):
    options = ['--methods', 'student', '--seeds', '0', '--results', str(tmp_path)]
    study = make_study(tmp_path, *options, dataset='digits')
    teacher = dict(method='teacher', seed=0, top1=90.0, best_top1=91.0, parameters=1, epochs=1)
    study.write([], dict(resnet14_digits=teacher))
    content = json.loads((tmp_path / 'classification_digits.json').read_text())
    assert content['teachers'] == dict(resnet14_digits=teacher) and content['runs'] == []
    assert 'teacher,' in (tmp_path / 'classification_digits.csv').read_text()
    assert (tmp_path / 'classification_digits.md').is_file()


def test_digest_sees_settings_and_not_where_the_data_lies(monkeypatch):
    config = Config.fromfile(CIFAR.config('resnet20'))
    before = classification.digest(config)
    monkeypatch.setenv('CIFAR100_ROOT', '/elsewhere')
    moved = Config.fromfile(CIFAR.config('resnet20'))
    assert moved.data_root == '/elsewhere' and classification.digest(moved) == before
    config.optim_wrapper.optimizer.lr = 0.1
    assert classification.digest(config) != before


def test_other_settings_are_refused(tmp_path):
    study = make_study(tmp_path, '--pairs', PAIR, '--methods', 'kd')
    run = study.spec('resnet20', 'student', 0)
    assert pool.prepare_run(tmp_path / 'run', run) is None
    assert pool.prepare_run(tmp_path / 'run', run) is None
    with pytest.raises(SystemExit, match=r'other settings \(amp, teacher\)'):
        pool.prepare_run(tmp_path / 'run', {**run, 'amp': 'bfloat16', 'teacher': TEACHER})


@pytest.mark.parametrize(
    'options, message',
    [
        (['--pairs', 'resnet56_resnet21'], 'resnet56_resnet20'),
        (['--select-lr', 'sgd=0.1'], 'no split to choose on'),
        (['--select-lr', 'adam=0.1'], 'OPTIMIZER=LR1,LR2'),
        (['--amp', 'bfloat16'], 'needs a GPU'),
    ],
)
def test_mistakes_are_explained(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        make_study(tmp_path, *options)


@pytest.mark.parametrize('device', ['tpu', 'cuda:x'])
def test_devices(device):
    assert classification.choose_device('cpu') == ('cpu', '')
    with pytest.raises(SystemExit, match=f'--device {device}'):
        classification.choose_device(device)


# -- end to end ----------------------------------------------------------------------------------


@pytest.fixture
def few_images(monkeypatch, tmp_path):
    """The digits pair on 20 training images."""
    folder = tmp_path / 'configs'
    folder.mkdir()
    digits = cls_methods.BENCHMARKS['digits']
    for network in next(iter(digits.pairs.values())):
        base = Path(digits.config(network)).resolve()
        text = f'_base_ = {str(base)!r}\ntrain_dataloader = dict(dataset=dict(num_samples=20))\n'
        (folder / f'{network}.py').write_text(text)
    tiny = dataclasses.replace(digits, folder=str(folder))
    monkeypatch.setitem(cls_methods.BENCHMARKS, 'digits', tiny)
    return tiny


@pytest.mark.slow
def test_study_from_end_to_end(few_images, tmp_path, capsys):
    args = ['--dataset', 'digits', '--methods', 'student', 'ipwd', 'funmatch', '--epochs', '2']
    args += ['--jobs', '2', '--device', 'cpu', '--work-dir', str(tmp_path / 'work')]
    args += ['--results', str(tmp_path / 'results')]
    assert classification.main([*args, '--seeds', '0', '1']) == 0
    table = (tmp_path / 'results/classification_digits.md').read_text()
    assert 'incomplete: 2 of at least 3 seeds' in table and 'reproduced' not in table
    done = tmp_path / 'work/digits/resnet14_resnet8-narrow/ipwd-seed0/results.json'
    before = done.stat().st_mtime_ns
    assert classification.main([*args, '--seeds', '0', '1', '2']) == 0
    assert '9 runs, 6 of them finished before' in capsys.readouterr().out
    assert done.stat().st_mtime_ns == before
    content = json.loads((tmp_path / 'results/classification_digits.json').read_text())
    (table,) = content['tables'].values()
    assert [r['incomplete'] for r in table['rows']] == [None] * 3
    assert len({r['parameters'] for r in content['runs']}) == 1  # without IPWD's second head
    lines = (tmp_path / 'results/classification_digits.csv').read_text().splitlines()
    assert len(lines) == 1 + 1 + 9 and lines[0].startswith('dataset,split,pair,method')
    with pytest.raises(SystemExit, match='other settings'):
        classification.main([*args, '--seeds', '0', '--epochs', '3'])


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been_killed(few_images, tmp_path):
    study = make_study(tmp_path, '--methods', 'student', '--epochs', '12', dataset='digits')
    run = study.spec('resnet8-narrow_digits', 'student', 0)
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    for folder in (killed, whole):
        pool.prepare_run(folder, run)
    process = pool.Pool(1, 1).start(killed)
    deadline = time.monotonic() + 200
    while not list(killed.glob('epoch_[4-9].pth')):
        assert process.poll() is None and time.monotonic() < deadline, (
            killed / 'log.txt'
        ).read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert pool.read_results(killed) is None
    for folder in (killed, whole):
        subprocess.run([sys.executable, str(pool.WORKER), str(folder)], check=True, cwd=pool.ROOT)
    assert pool.read_results(killed)['history'] == pool.read_results(whole)['history']
