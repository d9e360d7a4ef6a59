"""Recipes by the default command: what is planned, how it is told, and one study end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from benchmarks import head_methods, methods, recipes, worker
from benchmarks.methods import DETECTION

GFL = head_methods.PAIRS['digits']['gfl']


def study(tmp_path: Path, *more: str) -> recipes.RecipeStudy:
    args = ['--dataset', 'digits', '--pair', 'gfl', '--work-dir', str(tmp_path), *more]
    return recipes.RecipeStudy(recipes.parse_args(args))


def test_a_run_has_the_hook_of_the_command_line(tmp_path: Path, monkeypatch):
    torch.save({}, tmp_path / 'teacher.pth')
    teacher = dict(config=GFL.teacher, checkpoint=str(tmp_path / 'teacher.pth'), sha256='0')
    plan = study(tmp_path, '--recipes', 'gdd', 'gdd:65+kd', '--seeds', '3').plan(teacher)
    assert [run['method'] for run in plan.values()] == ['student', 'gdd', 'gdd:65+kd']
    assert len({folder.name for folder in plan}) == 3
    for run in plan.values():
        cfg = worker.build_config(run, tmp_path)
        hooks = (
            [h for h in cfg.custom_hooks if h['type'] == 'mmkd_plugin.DistillHook']
            if (cfg.get('custom_hooks'))
            else []
        )
        assert [hook['recipe'] for hook in hooks] == [run['method']] * (run['method'] != 'student')
        assert 'terms' not in (hooks or [{}])[0]


def test_the_optimizer_is_replaced_as_a_whole_and_the_teachers_stays(tmp_path: Path):
    own = Config.fromfile(GFL.student).optim_wrapper
    assert 'clip_grad' in own
    (run, *_) = study(tmp_path, '--optimizer', 'sgd').plan(None).values()
    cfg = worker.build_config(run, tmp_path)
    assert cfg.optim_wrapper.optimizer.type == 'SGD' and 'clip_grad' not in cfg.optim_wrapper
    (run, *_) = study(tmp_path).plan(None).values()
    assert worker.build_config(run, tmp_path).optim_wrapper == own
    teacher = study(tmp_path, '--optimizer', 'sgd').spec('student', 0, None, config=GFL.teacher)
    assert 'optimizer' not in teacher


def test_predictions_are_made_once_and_before_the_runs(tmp_path: Path, monkeypatch):
    args = ('--recipes', 'gdd', 'kd', '--seeds', '3', '--results', str(tmp_path), '--predict')
    torch.save({}, tmp_path / 'teacher.pth')
    teacher = dict(config=GFL.teacher, checkpoint=str(tmp_path / 'teacher.pth'), sha256='0')
    made = study(tmp_path, *args)
    monkeypatch.setattr(made, 'train_teachers', lambda: (dict(AP=0.5), teacher))
    monkeypatch.setattr(made.pool, 'run', lambda folders: [])
    monkeypatch.setattr(recipes, 'read_results', lambda folder: dict(checkpoint='last.pth'))
    asked = []

    def answer(cfg, checkpoint):
        asked.append((cfg.custom_hooks[-1]['recipe'], checkpoint.parent.name, checkpoint.name))
        return dict(answer='cannot tell', because=['why'])

    monkeypatch.setattr(recipes.asked, 'answer', answer)
    assert made.predict() == 0
    assert asked == [(name, 'student-seed3', 'last.pth') for name in ('gdd', 'kd')]
    file = tmp_path / 'predicted_recipes_digits_gfl.json'
    rows = json.loads(file.read_text())['predictions']
    assert [(row['recipe'], row['answer'], row['teacher']) for row in rows] == [
        ('gdd', 'cannot tell', 0.5),
        ('kd', 'cannot tell', 0.5),
    ]
    with pytest.raises(SystemExit, match='predictions are made once'):
        made.predict()
    file.unlink()
    (tmp_path / 'digits/recipes-own/kd-seed3').mkdir(parents=True)
    with pytest.raises(SystemExit, match='kd-seed3 was begun before it was predicted'):
        made.predict()


@pytest.mark.parametrize('name', ['gdd:automatic', 'gddd', 'gdd+funmatch'])
def test_a_recipe_that_there_is_not_stops_at_once(tmp_path: Path, name: str):
    with pytest.raises(SystemExit, match='--recipes'):
        study(tmp_path, '--recipes', name)


def test_the_table_tells_weights_and_runs_that_diverged():
    def run(method, seed, ap, **more):
        metrics = {m: ap for m in DETECTION.metrics}
        best = {f'best_{m}': ap for m in DETECTION.metrics}
        return dict(method=method, seed=seed, **metrics, **best, **more)

    runs = [run('student', seed, 0.5) for seed in range(3)]
    runs += [run('gdd', seed, 0.6, weights=dict(gdd=0.25 + seed / 100)) for seed in range(3)]
    runs += [run('gdd:65', 0, 0.0, diverged='NaN'), run('gdd:65', 1, 0.4, weights=dict(gdd=65.0))]
    runs += [run('gdd:65', 2, 0.4, weights=dict(gdd=65.0))]
    from benchmarks.summary import summarise

    rows = summarise(runs, ['student', 'gdd', 'gdd:65', 'kd'], DETECTION)
    lines = recipes.table(rows, runs, DETECTION).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert [row[0] for row in cells] == ['student alone', 'gdd', 'gdd:65', 'kd']
    assert [row[1] for row in cells] == ['–', 'gdd 0.25 to 0.27', 'gdd 65', '–']
    assert [row[-1] for row in cells] == ['0/3', '0/3', '1/3', '0/0']
    assert cells[1][-3] == '+10.0 ± 0.0' and cells[3][2].startswith('incomplete')


def test_students_begin_with_one_of_other_digits(tmp_path: Path, monkeypatch):
    made = study(tmp_path, '--start', 'trained', '--recipes', 'gdd', '--seeds', '0', '1')
    trained = []

    def teach(pool, wanted):
        trained.extend(wanted.values())
        files = {
            name: dict(checkpoint=f'{folder}/last.pth') for name, (folder, _) in wanted.items()
        }
        return {}, files

    monkeypatch.setattr(made, 'teach', teach)
    torch.save({}, tmp_path / 'teacher.pth')
    teacher = dict(config=GFL.teacher, checkpoint=str(tmp_path / 'teacher.pth'), sha256='0')
    plan = made.plan(teacher)
    ((folder, start),) = trained
    assert worker.build_config(start, folder).train_dataloader.dataset.digits.seed == 1
    assert start['config'] == GFL.student and not start['teacher']
    for run in plan.values():
        cfg = worker.build_config(run, tmp_path)
        assert cfg.load_from == f'{folder}/last.pth' and not cfg.resume
        assert cfg.train_dataloader.dataset.digits.get('seed', 0) == 0
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    killed = worker.build_config(run, tmp_path)
    assert killed.resume and killed.load_from is None
    plain = study(tmp_path, '--seeds', '0').plan(teacher)
    assert not {folder.parent for folder in plain} & {folder.parent for folder in plan}


def test_only_digits_have_other_digits(tmp_path: Path):
    with pytest.raises(SystemExit, match='--start trained'):
        recipes.parse_args(['--dataset', 'bccd', '--pair', 'gfl', '--start', 'trained'])


def test_classifiers_are_pairs_like_detectors(tmp_path: Path):
    args = ['--dataset', 'digits', '--pair', 'resnet14_resnet8-narrow', '--work-dir', str(tmp_path)]
    made = recipes.RecipeStudy(
        recipes.parse_args([*args, '--optimizer', 'adamw', '--recipes', 'kd'])
    )
    torch.save({}, tmp_path / 'teacher.pth')
    teacher = dict(config=made.pair.teacher, checkpoint=str(tmp_path / 'teacher.pth'), sha256='0')
    runs = {run['method']: run for run in made.plan(teacher).values()}
    assert runs['kd']['task'] == 'classification' and runs['kd']['split'] == 'test'
    cfg = worker.build_config(runs['kd'], tmp_path)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW' and cfg.optim_wrapper.clip_grad
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_epochs  # the last epoch is what counts
    assert cfg.custom_hooks[-1]['recipe'] == 'kd'


@pytest.mark.parametrize(
    'pair', [name for name in head_methods.PAIRS['digits'] if name in ('retinanet', 'rtmdet')]
)
def test_the_pairs_of_recipes_differ_in_width_only(pair: str):
    teacher, student = (
        Config.fromfile(getattr(head_methods.PAIRS['digits'][pair], role)).model
        for role in ('teacher', 'student')
    )
    for part in ('type', 'train_cfg', 'test_cfg', 'data_preprocessor'):
        assert teacher[part] == student[part]
    assert teacher.neck.out_channels == 2 * student.neck.out_channels


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, digits_root: Path, monkeypatch):
    settings = dict(image_size=128, train=24, val=12, seed=0)
    files = {}
    for role in ('teacher', 'student'):
        lines = [f'_base_ = {str(Path(getattr(GFL, role)).resolve())!r}']
        loader = dict(dataset=dict(data_root=str(digits_root), digits=settings))
        for split in ('train', 'val', 'test'):
            lines.append(f'{split}_dataloader = {loader!r}')
            if split != 'train':
                file = f'{digits_root}/annotations/val.json'
                lines.append(f'{split}_evaluator = {dict(ann_file=file)!r}')
        (tmp_path / f'{role}.py').write_text('\n'.join(lines) + '\n')
        files[role] = str(tmp_path / f'{role}.py')
    pair = dataclasses.replace(GFL, **files)
    monkeypatch.setitem(head_methods.PAIRS['digits'], 'gfl', pair)
    args = ['--dataset', 'digits', '--pair', 'gfl', '--recipes', 'gdd', 'gdd:1e9', '--epochs', '2']
    args += ['--teacher-epochs', '1', '--seeds', '0', '--optimizer', 'sgd']
    args += ['--work-dir', str(tmp_path / 'work'), '--results', str(tmp_path / 'results')]
    assert recipes.main([*args, '--predict']) == 0  # trains the teacher and the student alone
    told = json.loads((tmp_path / 'results/predicted_recipes_digits_gfl_sgd.json').read_text())
    assert [row['recipe'] for row in told['predictions']] == ['gdd', 'gdd:1e9']
    assert all(row['answer'] != 'helps' for row in told['predictions'])  # of one epoch
    assert recipes.main(args) == 0
    content = json.loads((tmp_path / 'results/recipes_digits_gfl_sgd.json').read_text())
    runs = {run['method']: run for run in content['runs']}
    assert 0 < runs['gdd']['weights']['gdd'] < 1e3 and 'diverged' not in runs['gdd']
    assert 'weights' not in runs['student']
    assert 'loss_gdd' in runs['gdd:1e9']['diverged'] and runs['gdd:1e9']['AP'] == 0
    assert (
        methods.OPTIMIZERS['sgd'].about
        in (tmp_path / 'results/recipes_digits_gfl_sgd.md').read_text()
    )
