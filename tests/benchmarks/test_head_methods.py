"""Pairs of every kind of head: each method of each pair makes one step; what a method may be."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from benchmarks import head_methods, methods
from benchmarks.head_methods import PAIRS, WEIGHTS
from mmkd_plugin import attach, losses
from mmkd_plugin.recipes import detection as logit_recipes
from mmkd_plugin.recipes import features
from mmkd_plugin.views import HeadSpec

NAMES = [(dataset, name) for dataset, pairs in PAIRS.items() for name in pairs]


def load(file: str, digits_root: Path) -> Config:
    config = Config.fromfile(file)
    loader = config.train_dataloader
    if 'digits' in loader.dataset:
        loader.dataset.data_root = str(digits_root)
        loader.dataset.digits = dict(image_size=128, train=24, val=12, seed=0)
    loader.batch_size, loader.num_workers, loader.persistent_workers = 2, 0, False
    init_default_scope(config.get('default_scope', 'mmdet'))
    return config


@pytest.mark.parametrize(('dataset', 'name'), NAMES)
def test_every_method_of_a_pair_makes_a_step(dataset: str, name: str, digits_root: Path):
    if name == 'pspnet':
        pytest.importorskip('mmseg')
    if dataset == 'bccd' and not Path('data/bccd_coco').is_dir():
        pytest.skip('BCCD is not unpacked here (tools/prepare_bccd.py)')
    pair = PAIRS[dataset][name]
    teacher = MODELS.build(load(pair.teacher, digits_root).model)
    teacher.init_weights()  # Deformable DETR has parameters that are mere memory before
    config = load(pair.student, digits_root)
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    for method in pair.methods:
        if method == methods.BASELINE:
            continue
        init_default_scope(config.get('default_scope', 'mmdet'))
        torch.manual_seed(0)
        student = MODELS.build(copy.deepcopy(config.model)).train()
        terms = pair.terms(method)
        student.init_weights()
        attach(student, teacher, terms).set_progress(10**6, 10**6)
        losses = student(**student.data_preprocessor(batch, training=True), mode='loss')
        added = [losses[f'loss_{term["name"]}'] for term in terms]
        assert all(torch.isfinite(x) for x in added), method
        sum(added).backward()
        largest = max(p.grad.abs().max() for p in student.backbone.parameters())
        # A new teacher's boxes may lie far from all regions of the student.
        boxes = any(term.get('teacher') == 'detections' for term in terms)
        assert largest < float('inf') and (largest > 0 or boxes), method


def test_the_pieces_of_a_method_are_joined_and_weighted():
    pair = PAIRS['digits']['faster']
    first, second = pair.terms('gdd_channel+kd')
    assert first['student'] == 'neck' and second['student'] == 'cls_logits'
    assert [t['weight'] for t in (first, second)] == [
        WEIGHTS['roi'][n] for n in ('gdd_channel', 'kd')
    ]
    assert pair.terms('kd', 7.0)[0]['weight'] == 7.0
    assert pair.terms('student') == []
    assert pair.terms('ipwd', epochs=9)[0]['loss']['start_epoch'] == 3
    assert head_methods.title('gdd_channel+kd') == 'GDD + KD'
    with pytest.raises(ValueError, match="'dkd' is none of kd, kd_scored, loca"):
        PAIRS['digits']['fcos'].terms('dkd')


@pytest.mark.parametrize(('dataset', 'name'), NAMES)
def test_pairs_name_files_and_pairs_that_exist(dataset: str, name: str):
    pair = PAIRS[dataset][name]
    assert Path(pair.teacher).is_file() and Path(pair.student).is_file()
    for of, role in ((pair.teacher_of, 'teacher'), (pair.student_of, 'student')):
        if of:
            other = PAIRS[dataset][of]
            assert getattr(other, role) == getattr(pair, role)
            assert other.epochs[role == 'teacher'] == pair.epochs[role == 'teacher']
    for method in pair.methods:
        pair.terms(method)


# -- numbers that the recipes have, too ------------------------------------------------------------


def arguments(loss: dict) -> dict:
    """Everything that a loss is built with, its defaults included."""
    signature = inspect.signature(getattr(losses, loss['type']))
    defaults = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    # its length is that of the training
    return {k: v for k, v in {**defaults, **loss}.items() if k != 'start_epoch'}


# Settings of finished runs name these numbers, so they are not read from the recipes.
@pytest.mark.parametrize(
    ('part', 'recipe', 'kind'),
    [
        *((name, name, 'dense') for name in ('kd', 'loca', 'ckd', 'ipwd')),
        *((name, name, 'roi') for name in ('kd', 'dkd', 'loca', 'ckd', 'ipwd')),
        ('kd', 'kd', 'query'),
        ('ckd_strong', 'ckd', 'query'),
        ('ckd_strong', 'ckd', 'dense'),
        ('mask', 'kd-masks', 'roi'),
        ('dfl', 'kd-bins', 'dense'),
    ],
)
def test_a_part_has_the_numbers_of_its_recipe(part: str, recipe: str, kind: str):
    head = HeadSpec('head', kind, 'softmax', 9)  # as many as the digits GFL has bins
    term = logit_recipes.RECIPES[recipe].term(head, dict(epochs=8))
    used = head_methods.PARTS[part]
    assert arguments(used['loss']) == arguments(term['loss'])
    if 'select' in term:
        assert used['select'] == term['select']
    if part != 'ckd' or kind == 'roi':  # its weight elsewhere is that of ckd_strong
        assert WEIGHTS[kind][part] == term['weight']


@pytest.mark.parametrize(
    ('method', 'recipe'),
    # CWD was measured with its own temperature, 4; its recipe for detectors has mmrazor's, 1.
    [('gdd_channel', 'gdd'), ('gdd_shared', 'gdd-shared'), ('pkd', 'pkd')],
)
def test_a_loss_on_features_has_the_numbers_of_its_recipe(method: str, recipe: str):
    _, given, _ = features.RECIPES[recipe].settings('one-stage')
    expected = dict(type=features.RECIPES[recipe].loss, **given)
    assert arguments(methods.LOSSES[method]) == arguments(expected)
