"""The evidence runner: what a row may claim, what is reused, and one study from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from benchmarks import detection, methods, pool, summary, worker
from mmkd_plugin.errors import CheckpointError

STUDENT = [0.50, 0.60, 0.55]


def make_run(method: str, seed: int, ap: float, seconds: float = 10.0) -> dict:
    numbers = {m: ap for m in summary.METRICS}
    best = {f'best_{m}': ap + 0.01 for m in summary.METRICS}
    return dict(method=method, seed=seed, weight=None, seconds=seconds, **numbers, **best)


def make_runs(method: str, values: list, **extra: float) -> list[dict]:
    return [make_run(method, seed, ap, **extra) for seed, ap in enumerate(values)]


def test_gain_is_paired_by_seed():
    # Every seed gains exactly 2 points although the seeds themselves differ by up to 10.
    runs = make_runs('student', STUDENT) + make_runs('cwd', [x + 0.02 for x in STUDENT])
    alone, cwd = summary.summarise(reversed(runs), ['student', 'cwd'])
    assert alone['AP'] == (pytest.approx(0.55), pytest.approx(0.05))
    assert cwd['AP'] == (pytest.approx(0.57), pytest.approx(0.05))
    assert cwd['gain'] == (pytest.approx(0.02), pytest.approx(0, abs=1e-9))
    assert cwd['wins'] == 3


def test_losing_row_stays_in():
    runs = make_runs('student', STUDENT) + make_runs('pkd', [0.49, 0.61, 0.50])
    row = summary.summarise(runs, ['pkd'])[0]
    assert row['incomplete'] is None
    assert row['wins'] == 1
    assert row['gain'][0] == pytest.approx(-0.05 / 3)
    assert '| PKD | 5 | 53.3 ± 6.7 |' in summary.to_markdown([row], dict(pkd=5.0))
    assert '| -1.7 ± 3.1 | 1/3 |' in summary.to_markdown([row])


@pytest.mark.parametrize(
    'runs, reason',
    [
        (make_runs('student', STUDENT) + make_runs('cwd', STUDENT[:2]), '2 of at least 3 seeds'),
        (make_runs('student', STUDENT), '0 of at least 3 seeds'),
        (make_runs('cwd', STUDENT), 'no student alone for seed 0, 1, 2'),
        (
            make_runs('student', STUDENT[:2]) + make_runs('cwd', STUDENT),
            'no student alone for seed 2',
        ),
    ],
)
def test_refuses_rows_without_three_seeds_or_pairs(runs: list, reason: str):
    row = summary.summarise(runs, ['cwd'])[0]
    assert row['incomplete'] == reason
    assert 'AP' not in row and 'gain' not in row
    table = summary.to_markdown([row])
    assert f'incomplete: {reason}' in table
    assert '±' not in table


def test_a_seed_run_twice_counts_once():
    runs = make_runs('student', STUDENT) + [make_run('cwd', 0, 0.7) for _ in range(3)]
    assert summary.summarise(runs, ['cwd'])[0]['incomplete'] == '1 of at least 3 seeds'


def test_selection_marks_the_best_weight_of_each_method():
    runs = [make_run('student', 0, 0.6)]
    for weight, ap in ((5.0, 0.3), (20.0, 0.4)):
        runs.append({**make_run('cwd', 0, ap), 'weight': weight})
    marked = [x for x in summary.to_selection_markdown(runs).splitlines() if 'highest' in x]
    assert len(marked) == 1 and marked[0].startswith('| CWD | 20 |')


def test_every_method_has_a_weight_and_a_loss_that_builds():
    from mmkd_plugin.registry import build_loss

    for benchmark in methods.BENCHMARKS.values():
        assert set(benchmark.weights) == set(methods.LOSSES)
        assert all(Path(f).is_file() for f in (benchmark.teacher, benchmark.student))
    noises = set()
    for method in methods.LOSSES:
        (term,) = methods.build_terms(method, 2.0)
        assert term['weight'] == 2.0
        noises.add(getattr(build_loss(term['loss'], method), 'noise', None))
    assert {'channel', 'shared', 'none'} <= noises
    assert methods.build_terms('student', 1.0) == []


def test_finished_runs_are_reused_and_other_settings_refused(tmp_path: Path):
    run = dict(method='cwd', weight=5.0, options={}, seed=0)
    folder = tmp_path / 'cwd-seed0'
    assert pool.prepare_run(folder, run) is None
    assert pool.prepare_run(folder, run) is None  # started, not finished
    worker.write_json(folder / 'results.json', dict(AP=0.5))
    assert pool.prepare_run(folder, run) == dict(AP=0.5)
    with pytest.raises(SystemExit, match=r'other settings \(seed, weight\)'):
        pool.prepare_run(folder, {**run, 'weight': 6.0, 'seed': 1})


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (
        'import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.name == "bad" and sys.exit(3); '
        '(f / "results.json").write_text(\'{"AP": 0.5, "seconds": 1}\')'
    )
    script = tmp_path / 'fake_worker.py'
    script.write_text(code)
    monkeypatch.setattr(pool, 'WORKER', script)
    folders = [tmp_path / name for name in ('bad', 'good1', 'good2')]
    for folder in folders:
        folder.mkdir()
    assert pool.Pool(2, 1).run(folders) == [folders[0]]
    assert all((f / 'results.json').is_file() for f in folders[1:])


def test_a_failed_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """The reason of this try, with every line of its message, and not that of an earlier one."""
    script = tmp_path / 'fake_worker.py'
    script.write_text(
        'import os, pathlib, signal, sys\n'
        'name = pathlib.Path(sys.argv[1]).name\n'
        'print("the log of the training", flush=True)\n'
        'if name == "raises":\n'
        '    try: {}["first"]\n'
        '    except KeyError: raise ValueError("no such data:\\n  get it from there")\n'
        'if name == "killed": os.kill(os.getpid(), signal.SIGKILL)\n'
        'sys.exit("--pairs: unknown")\n'
    )
    monkeypatch.setattr(pool, 'WORKER', script)
    folders = [tmp_path / name for name in ('raises', 'killed', 'stops')]
    for folder in folders:
        folder.mkdir()
        old = 'Traceback (most recent call last):\n  File\nOSError: long ago\n'
        (folder / 'log.txt').write_text(old)
    assert pool.Pool(1, 1).run(folders) == folders
    out = capsys.readouterr().out
    raises, killed, stops = out.split('FAILED ')[1:]
    assert f'{tmp_path.name}/raises (exit code 1)' in raises
    assert '    ValueError: no such data:\n      get it from there\n' in raises
    assert 'SIGKILL' in killed and 'memory' in killed
    assert '--pairs: unknown' in stops and 'the log of the training' in stops
    assert 'KeyError' not in out and 'long ago' not in out


def test_a_run_is_never_trained_twice_at_a_time(tmp_path: Path, monkeypatch, capsys):
    """A worker outlives a benchmark that is killed; the next one waits for it."""
    script = tmp_path / 'fake_worker.py'
    script.write_text(
        'import pathlib, sys, time; f = pathlib.Path(sys.argv[1])\n'
        'with (f / "started").open("a") as file: file.write("x")\n'
        'while not (f / "go").exists(): time.sleep(0.02)\n'
        '(f / "results.json").write_text(\'{"AP": 0.5, "seconds": 1}\')\n'
    )
    monkeypatch.setattr(pool, 'WORKER', script)
    orphan, other = tmp_path / 'orphan', tmp_path / 'other'
    for folder in (orphan, other):
        folder.mkdir()
    (other / 'go').touch()
    process = pool.Pool(1, 1).start(orphan)
    assert pool.Pool(1, 1).start(orphan) is None
    threading.Timer(1.0, (orphan / 'go').touch).start()
    assert pool.Pool(1, 1).run([orphan, other]) == []
    assert process.wait() == 0
    assert (orphan / 'started').read_text() == (other / 'started').read_text() == 'x'
    assert capsys.readouterr().out.count('another process trains it') == 1


def test_set_epochs_moves_the_end_of_the_schedule():
    cfg = Config.fromfile(methods.BENCHMARKS['bccd'].student)
    worker.set_epochs(cfg, 6)
    warmup, cosine = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == cosine.end == cosine.T_max == 6
    assert warmup.end == 50  # iterations


def test_reported_and_selection_splits_differ(tmp_path: Path):
    run = dict(config=methods.BENCHMARKS['bccd'].student, options={}, epochs=None, seed=4, terms=[])
    test = worker.build_config({**run, 'split': 'test'}, tmp_path)
    val = worker.build_config({**run, 'split': 'val'}, tmp_path)
    assert test.val_dataloader.dataset.ann_file.endswith('instances_test.json')
    assert test.val_evaluator.ann_file.endswith('instances_test.json')
    assert val.val_dataloader.dataset.ann_file.endswith('instances_val.json')
    assert val.val_evaluator.ann_file.endswith('instances_val.json')
    assert not test.get('custom_hooks')
    assert test.randomness.seed == 4
    digits = detection.prepare_data('digits', select=True)
    cfg = Config.fromfile(methods.BENCHMARKS['digits'].student)
    reported = cfg.val_dataloader.dataset
    assert digits['train_dataloader.dataset.digits.seed'] != reported.digits.seed
    assert digits['val_evaluator.ann_file'] != cfg.val_evaluator.ann_file


@pytest.mark.parametrize('text', ['cwd', 'cwd=', 'cwd=a', 'student=1', 'nosuch=1,2'])
def test_bad_grid_is_explained(text: str):
    with pytest.raises(SystemExit, match='METHOD=W1,W2'):
        detection.parse_grid([text])


def tiny_benchmark(folder: Path, digits_root: Path) -> methods.Benchmark:
    """The demo pair on the tests' few images."""
    files = {}
    for role in ('teacher', 'student'):
        base = Path(getattr(methods.BENCHMARKS['digits'], role)).resolve()
        files[role] = folder / f'{role}.py'
        settings = dict(image_size=128, train=24, val=12, seed=0)
        loader = dict(dataset=dict(data_root=str(digits_root), digits=settings))
        evaluator = dict(ann_file=f'{digits_root}/annotations/val.json')
        lines = [f'_base_ = {str(base)!r}']
        for split in ('train', 'val', 'test'):
            lines.append(f'{split}_dataloader = {loader!r}')
            if split != 'train':
                lines.append(f'{split}_evaluator = {evaluator!r}')
        files[role].write_text('\n'.join(lines) + '\n')
    weights = dict.fromkeys(methods.LOSSES, 1.0)
    return methods.Benchmark(str(files['teacher']), str(files['student']), weights, 'toy', 'toy')


@pytest.mark.slow
def test_study_from_end_to_end(tmp_path, digits_root, monkeypatch, capsys):
    monkeypatch.setitem(methods.BENCHMARKS, 'digits', tiny_benchmark(tmp_path, digits_root))
    args = ['--dataset', 'digits', '--methods', 'student', 'pkd', '--epochs', '1', '--jobs', '2']
    args += ['--teacher-epochs', '1', '--work-dir', str(tmp_path / 'work')]
    args += ['--results', str(tmp_path / 'results')]
    assert detection.main([*args, '--seeds', '0', '1']) == 0
    assert 'incomplete: 2 of at least 3 seeds' in (tmp_path / 'results/digits.md').read_text()
    runs = tmp_path / 'work/digits/runs'
    before = (runs / 'pkd-seed0/results.json').stat().st_mtime_ns
    assert detection.main([*args, '--seeds', '0', '1', '2']) == 0
    assert '6 runs, 4 of them finished before' in capsys.readouterr().out
    assert (runs / 'pkd-seed0/results.json').stat().st_mtime_ns == before
    content = json.loads((tmp_path / 'results/digits.json').read_text())
    assert [r['incomplete'] for r in content['rows']] == [None, None]
    by_name = {(r['method'], r['seed']): r for r in content['runs']}
    assert by_name['student', 0]['parameters'] == by_name['pkd', 0]['parameters']
    assert 'loss_pkd' in (runs / 'pkd-seed0/log.txt').read_text()
    assert 'loss_pkd' not in (runs / 'student-seed0/log.txt').read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, digits_root: Path):
    benchmark = tiny_benchmark(tmp_path, digits_root)
    run = dict(
        dataset='digits', config=benchmark.student, method='student', weight=None, terms=[], seed=0,
        split='val', epochs=6, options={}, teacher=None,
    )  # fmt: skip
    folder = tmp_path / 'run'
    pool.prepare_run(folder, run)
    process = pool.Pool(1, 1).start(folder)
    deadline = time.monotonic() + 200
    while not (folder / 'epoch_3.pth').is_file():
        assert process.poll() is None and time.monotonic() < deadline, (
            folder / 'log.txt'
        ).read_text()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert pool.read_results(folder) is None
    subprocess.run([sys.executable, str(pool.WORKER), str(folder)], check=True, cwd=pool.ROOT)
    result = pool.read_results(folder)
    assert result['epochs'] == 6 and {4, 6} <= set(map(int, result['history']))
    first, second = (log.read_text() for log in sorted(folder.glob('*/*.log')))
    assert 'Epoch(train) [1]' in first.replace('  ', ' ')
    assert 'resumed epoch: ' in second and 'Epoch(train) [1]' not in second.replace('  ', ' ')


def test_what_a_kill_left_half_written_is_not_resumed_from(tmp_path: Path):
    state = dict(a=torch.zeros(1000))
    torch.save(dict(meta=dict(epoch=9, iter=9), state_dict=state), tmp_path / 'epoch_9.pth')
    whole = (tmp_path / 'epoch_9.pth').read_bytes()
    (tmp_path / 'epoch_10.pth').write_bytes(whole[:-100])
    (tmp_path / 'last_checkpoint').write_text('')
    worker.mend_last_checkpoint(tmp_path)
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_9.pth')
    (tmp_path / 'epoch_9.pth').write_bytes(whole[:50])
    with pytest.raises(CheckpointError, match='epoch_9.pth is truncated'):
        worker.mend_last_checkpoint(tmp_path)
    assert (tmp_path / 'epoch_9.pth').read_bytes() == whole[:50]  # nothing is removed
