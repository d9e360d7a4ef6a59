"""evaluate_teacher=True: the teacher's metrics, once, before the first iteration."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from ranks import run_ranks
from toys import TEACHER, TERM, ToyImages, hook_config, runner_config, toy_batch, toy_model, train

import mmkd_plugin
from mmkd_plugin.cli.arguments import add_distillation
from mmkd_plugin.cli.train import parse_args

MEANS = dict(mean=[0.5, 0.2, 0.1], std=[2.0, 3.0, 0.5])


@METRICS.register_module()
class Confidence(BaseMetric):
    """Mean probability of the right class, to the last digit that tells two networks apart."""

    def process(self, data_batch, data_samples):
        labels = [sample.label for sample in data_batch['data_samples']]
        self.results += [float(p[label]) for p, label in zip(data_samples, labels)]

    def compute_metrics(self, results):
        return dict(right=sum(results) / len(results), images=len(results), note='words')


@METRICS.register_module()
class ReadsMasks(Confidence):
    def process(self, data_batch, data_samples):
        self.results += [sample['masks'] for sample in data_samples]


@DATASETS.register_module()
class DrawnImages(ToyImages):
    """Every look at an image draws from all random states, as augmentation might."""

    def __getitem__(self, index):
        import random

        import numpy as np

        random.random(), np.random.rand(), torch.rand(1)
        return super().__getitem__(index)


def validation(metric='Confidence', **loader) -> dict:
    dataset = dict(type='DrawnImages', length=6)
    loader = dict(
        dict(
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
        ),
        **loader,
    )
    evaluator = dict(type=metric, prefix='toy')
    return dict(val_cfg=dict(), val_dataloader=loader, val_evaluator=evaluator)


def config(work_dir, *terms, evaluate: bool = True, **overrides) -> Config:
    hook = hook_config(*terms, evaluate_teacher=evaluate)
    settings = dict(validation(), **overrides)
    cfg = runner_config(work_dir, hook, **settings)
    cfg.train_cfg.val_interval = 2
    return cfg


def scalars(work_dir) -> list[dict]:
    lines = next(Path(work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(work_dir, iteration=4) -> dict:
    return torch.load(Path(work_dir) / f'iter_{iteration}.pth', weights_only=False)['state_dict']


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class KeepTeacher(Hook):
    """Keeps a copy of the teacher, whose random weights are drawn anew in each run."""

    def before_train(self, runner):
        self.model = copy.deepcopy(runner.model.distiller.teacher.model)


def test_the_metrics_are_those_of_the_teacher_alone(tmp_path):
    """Each side normalises in its own way, and the teacher sees what it was trained on."""
    cfg = config(tmp_path, log_level='INFO')
    cfg.model.data_preprocessor = dict(type='ImgDataPreprocessor', mean=[1, 1, 1], std=[2, 2, 2])
    preprocessor = dict(type='ImgDataPreprocessor', pad_size_divisor=32, **MEANS)
    (hook,) = cfg.custom_hooks
    hook.teacher.config = dict(model=dict(TEACHER, data_preprocessor=preprocessor))
    keep = KeepTeacher()
    train(cfg, keep)
    (found,) = [row for row in scalars(tmp_path) if 'teacher/toy/right' in row]
    inputs, samples = toy_batch(6)
    keep.model.eval()
    with torch.no_grad():
        data = keep.model.data_preprocessor(dict(inputs=list(inputs), data_samples=samples))
        answers = keep.model(**data, mode='predict')
    expected = sum(float(p[s.label]) for p, s in zip(answers, samples)) / 6
    assert found['teacher/toy/right'] == pytest.approx(expected, abs=1e-6)
    assert found['teacher/toy/images'] == 6 and found['step'] == 0
    assert 'teacher/toy/note' not in found
    (log,) = tmp_path.rglob('*.log')
    text = log.read_text()
    line = f'teacher/toy/right: {expected:.4f}  teacher/toy/images: 6.0000  teacher/toy/note: words'
    assert text.count(line) == 1 and 'Evaluating the teacher (ToyDetector) on 2 batches' in text
    assert text.index(line) < text.index('Iter(train)')


def test_it_comes_before_the_first_iteration_and_never_again(tmp_path):
    train(config(tmp_path / 'whole'))
    rows = scalars(tmp_path / 'whole')
    assert ['teacher/toy/right' in row for row in rows] == [True] + [False] * (len(rows) - 1)
    assert sum('toy/right' in row for row in rows) == 2, 'the student is validated as ever'
    resumed = config(tmp_path / 'more', load_from=str(tmp_path / 'whole' / 'iter_2.pth'))
    resumed.resume = True
    train(resumed)
    assert not any('teacher/toy/right' in row for row in scalars(tmp_path / 'more'))
    assert same(weights(tmp_path / 'more'), weights(tmp_path / 'whole'))


@pytest.mark.parametrize('loader', [{}, dict(num_workers=1, persistent_workers=True)])
def test_training_is_bit_identical_with_and_without(tmp_path, loader):
    """Dropout and a shuffled loader draw from the states that a validation could change."""
    for name, evaluate in (('with', True), ('without', False)):
        cfg = config(tmp_path / name, evaluate=evaluate, **validation(**loader))
        cfg.model = dict(type='ToyDetector', dropout=0.3)
        train(cfg)
    assert same(weights(tmp_path / 'with'), weights(tmp_path / 'without'))


def test_a_teacher_goes_on_as_it_was(tmp_path):
    """Neither the mode of its head nor what it remembers is another afterwards."""
    student, teacher = toy_model(0), toy_model(1, dropout=0.5)
    distiller = mmkd_plugin.attach(student, teacher, [TERM], probe_size=(16, 16))
    answers = distiller.teacher.predict(*toy_batch(2))
    assert len(answers) == 2 and not teacher.training
    torch.testing.assert_close(answers, distiller.teacher.predict(*toy_batch(2)))
    assert not any(p.requires_grad for p in answers)


def without(*keys: str) -> dict:
    return {key: None for key in (*keys, 'val_cfg', 'val_dataloader', 'val_evaluator')}


def test_what_cannot_be_evaluated_is_refused_before_training(tmp_path):
    cfg = config(tmp_path, **without())
    del cfg.train_cfg['val_interval']
    with pytest.raises(ValueError, match='evaluate_teacher=True needs a validation set.*val_cfg'):
        train(cfg)
    cfg = config(tmp_path, custom_hooks=[])
    cfg.custom_hooks = [hook_config(evaluate_teacher='yes')]
    with pytest.raises(ValueError, match="evaluate_teacher='yes' must be True or False"):
        train(cfg)
    cfg = config(tmp_path)
    cfg.custom_hooks[0].teacher.class_map = [0, 1, -1]
    cfg.custom_hooks[0].terms[0].student = 'neck'
    with pytest.raises(ValueError, match='class_map says. Its labels are not those of the valid'):
        train(cfg)
    with pytest.raises(ValueError, match='ReadsMasks.*cannot read.*ToyDetector.*mmkd test'):
        train(config(tmp_path, **validation('ReadsMasks')))
    assert not list(tmp_path.glob('*.pth'))


def test_a_teacher_that_predicts_nothing_is_refused():
    class Runs:
        _val_loop = type('Loop', (), dict(dataloader=None, evaluator=None))

    from mmkd_plugin.hooks.teacher_metrics import refuse_evaluation
    from mmkd_plugin.teacher import Teacher
    from mmkd_plugin.teacher.self_teacher import SelfTeacher

    with pytest.raises(ValueError, match='Sequential. is no BaseModel'):
        refuse_evaluation(Runs, Teacher(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))))
    with pytest.raises(ValueError, match='no teacher before the first epoch'):
        refuse_evaluation(Runs, SelfTeacher(toy_model(0)))
    Runs._val_loop = object()
    with pytest.raises(ValueError, match='loop of val_cfg .object. has no dataloader'):
        refuse_evaluation(Runs, Teacher(toy_model(0)))
    other = Teacher(toy_model(0), difference='It knows a cat.')
    Runs._val_loop = type('Loop', (), dict(dataloader=None, evaluator=None))
    with pytest.raises(ValueError, match='It knows a cat. Its labels are not'):
        refuse_evaluation(Runs, other)


def test_the_flag_and_the_function_say_the_same(tmp_path):
    cfg = runner_config(tmp_path, hook_config())
    add_distillation(cfg, parse_args(['student.py', '--evaluate-teacher']))
    assert cfg.custom_hooks[0].evaluate_teacher is True
    plain = runner_config(tmp_path, hook_config())
    add_distillation(plain, parse_args(['student.py', '--task-weight', '1']))
    assert 'evaluate_teacher' not in plain.custom_hooks[0]
    made = mmkd_plugin.distill(plain, evaluate_teacher=True)
    assert made.custom_hooks[0].evaluate_teacher is True


def test_two_processes_share_the_images(tmp_path):
    """Each evaluates a part; the metric is that of all images."""
    code = f"""
import os, torch, toys
import torch.distributed as dist
import hooks.test_teacher_metrics as own
dist.init_process_group('gloo')
cfg = own.config({str(tmp_path)!r}, launcher='pytorch', experiment_name='two', max_iters=2,
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None))
cfg.model.norm = False
from mmengine.runner import Runner
Runner.from_cfg(cfg).train()
"""
    run_ranks(code)
    (row,) = [row for row in scalars(tmp_path) if 'teacher/toy/right' in row]
    assert row['teacher/toy/images'] == 6 and 0 < row['teacher/toy/right'] < 1


def test_the_runner_is_the_only_one_who_may_see_it(tmp_path):
    """A checkpoint of such a run has a config without the hook, and validation needs no teacher."""
    train(config(tmp_path))
    saved = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    assert 'evaluate_teacher' not in saved['meta']['cfg']
    assert 'evaluate_teacher=True' in saved['distiller']['cfg']
    cfg = config(tmp_path / 'val', load_from=str(tmp_path / 'iter_4.pth'))
    cfg.experiment_name = 'val_only'
    Runner.from_cfg(cfg).val()
