"""What ``classification.py`` compares: data sets with their pairs, and the methods.

Terms and their numbers are those of ``mmkd_plugin.recipes.classification``. Only what a method
changes in the student's config is said here: the images it sees, its optimizer, its schedule.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config

from benchmarks.methods import BASELINE
from mmkd_plugin.models import ImageClassifier
from mmkd_plugin.recipes import classification as recipes
from mmkd_plugin.recipes import funmatch

Options = dict[str, Any]  # dotted keys of a config, and what to put there


@dataclass(frozen=True)
class Benchmark:
    """One data set with its pairs.

    Args:
        folder: Of the configs; a network is a file in it.
        pairs: Teacher and student by the pair's name.
        split: Which of the config's loaders is reported.
        report: What the reported numbers are measured on, in words.
        select: What learning rates are chosen on, in words; None if there is no such split.
        adamw_lr: Learning rate of function matching with AdamW.
        fixed_view: What the teacher sees where its view is fixed, see ``ClsDataPreprocessor``.
        epochs: Length of the published schedule, if results are published.
        published: Published best top-1 by pair: of ``'teacher'``, ``'student'`` and methods.
    """

    folder: str
    pairs: dict[str, tuple[str, str]]
    split: str
    report: str
    select: str | None
    adamw_lr: float
    fixed_view: dict[str, Any]
    epochs: int | None = None
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    def config(self, network: str) -> str:
        return f'{self.folder}/{network}.py'


@functools.cache
def arch(config: str) -> str:
    """The name by which the recipes know the network of a config."""
    model = dict(Config.fromfile(config).model, data_preprocessor=None)
    model.pop('type')
    with torch.device('meta'):  # its structure, without memory
        return ImageClassifier(**model).backbone.arch


# What the student sees is in its config; a method's changes are on top of that.
# Batch norm sees mixed images in training; its statistics are taken anew on plain ones.
MIXUP: Options = {
    'model.data_preprocessor.mixup': 1.0,
    'default_hooks.recalibrate_bn': dict(type='RecalibrateBNHook', num_batches=20),
}
INDEPENDENT: Options = {'model.data_preprocessor.teacher_view': dict(mode='independent')}


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        title: Its name there.
        recipe: A name of ``mmkd_plugin.recipes.classification``; None is the student alone.
        options: Changes of the student's config.
        fixed_view: Whether the teacher sees the benchmark's fixed view.
        adamw: FunMatch's optimizer and schedule instead of the student's.
        epochs: A schedule of its own: published epochs, cosine to 0.
        default: Whether it runs without being asked for.
    """

    title: str
    recipe: str | None
    options: Options = field(default_factory=dict)
    fixed_view: bool = False
    adamw: bool = False
    epochs: int | None = None
    default: bool = True


METHODS = {
    BASELINE: Method('student alone', None),
    'kd': Method('KD', 'kd'),
    'dkd': Method('DKD', 'dkd'),
    'loca': Method('LoCa', 'loca'),
    'dkd-loca': Method('DKD + LoCa', 'dkd-loca'),
    'ckd': Method('CKD', 'ckd'),
    'ipwd': Method('IPWD, kd/cls', 'ipwd'),
    'ipwd-inverse': Method('IPWD, cls/kd', 'ipwd-inverse'),
    'funmatch': Method('FunMatch (AdamW)', 'funmatch', MIXUP, adamw=True),
    'funmatch-sgd': Method('same view, mixup (FunMatch, SGD)', 'funmatch', MIXUP),
    'view-consistent': Method('same view', 'funmatch'),
    'view-independent': Method('independent views', 'funmatch', INDEPENDENT),
    'view-independent-mixup': Method(
        'independent views, mixup', 'funmatch', {**INDEPENDENT, **MIXUP}
    ),
    'view-fixed': Method('fixed teacher view', 'funmatch', fixed_view=True),
    'view-fixed-mixup': Method('fixed teacher view, mixup', 'funmatch', MIXUP, fixed_view=True),
    'ckd-480e': Method('CKD, its published schedule', 'ckd', epochs=480, default=False),
}
# Pairs that CKD's published CIFAR-100 schedule trains in batches of 32 (official code).
CKD_BATCH_32 = (
    'wrn_40_2_wrn_40_1',
    'resnet32x4_shufflenet_v1',
    'wrn_40_2_shufflenet_v1',
    'vgg13_mobilenet_v2',
    'cifar_resnet50_mobilenet_v2',
)


def build_run(
    method: str,
    run: dict[str, Any],
    benchmark: Benchmark,
    optimizer: str = 'sgd',
    lr: float | None = None,
) -> dict[str, Any]:
    """What a method changes in the settings of a run.

    Args:
        method: A name of ``METHODS``.
        run: The settings without a method: of the student alone.
        benchmark: What is run.
        optimizer: ``'adamw'`` for a comparison of learning rates; methods know their own.
        lr: For a comparison of learning rates.

    Returns:
        ``terms``, ``task_weight``, ``epochs`` and ``options``.
    """
    chosen = METHODS[method]
    epochs, options = run['epochs'], {**run['options'], **chosen.options}
    if chosen.fixed_view:
        view = dict(mode='fixed', **benchmark.fixed_view)
        options['model.data_preprocessor.teacher_view'] = view
    if chosen.epochs:
        epochs = chosen.epochs
        options['param_scheduler'] = [_cosine(epochs)]
        if run['pair'] in CKD_BATCH_32:
            options['train_dataloader.batch_size'] = 32
    if chosen.adamw or optimizer == 'adamw':
        options.update(adamw(lr or benchmark.adamw_lr, epochs))
    elif lr is not None:
        options['optim_wrapper.optimizer.lr'] = lr
    made: dict[str, Any] = dict(terms=[], task_weight=1.0)
    if chosen.recipe is not None:
        pair = arch(run['teacher']['config']), arch(run['config'])
        made = recipes.plan(chosen.recipe, *pair, epochs=epochs)
    return dict(made, epochs=epochs, options=options)


def adamw(lr: float, epochs: int) -> Options:
    """FunMatch's optimizer and schedule, its lengths in epochs.

    Decay on kernels only, clipping and the shape of the schedule: official code. The warm-up's
    twentieth of the run is recommended (officially 1,500 steps, 1 to 23 percent).
    """
    optim_wrapper, schedule = funmatch.training(epochs, lr, warmup=max(1, epochs // 20))
    optim_wrapper = dict(optim_wrapper, type='OptimWrapper', _delete_=True)
    return dict(optim_wrapper=optim_wrapper, param_scheduler=schedule)


def _cosine(epochs: int) -> dict[str, Any]:
    return dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=epochs, T_max=epochs, eta_min=0.0,
        convert_to_iter_based=False,
    )  # fmt: skip


CIFAR_CONFIGS = 'configs/classification/cifar100'
# Best top-1 over the epochs, in percent. Teachers, students and KD: README of RepDistiller; DKD:
# README of mdistiller, where it has the pair (76.23 there for wrn_40_2_wrn_16_2, 76.24 in later
# tables). The teachers are those of CRD, not ours.
_TEACHERS = dict(wrn_40_2=75.61, resnet56=72.34, resnet110=74.31, resnet32x4=79.42, vgg13=74.64,
                 cifar_resnet50=79.34)  # fmt: skip
_STUDENTS = dict(wrn_16_2=73.26, wrn_40_1=71.98, resnet20=69.06, resnet32=71.14, resnet8x4=72.50,
                 vgg8=70.36, mobilenet_v2=64.60, shufflenet_v1=70.50,
                 shufflenet_v2=71.82)  # fmt: skip
_PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ('wrn_40_2', 'wrn_16_2'): dict(kd=74.92, dkd=76.24),
    ('wrn_40_2', 'wrn_40_1'): dict(kd=73.54, dkd=74.81),
    ('resnet56', 'resnet20'): dict(kd=70.66, dkd=71.97),
    ('resnet110', 'resnet20'): dict(kd=70.67, dkd=71.06),  # DKD: README of LSKD
    ('resnet110', 'resnet32'): dict(kd=73.08, dkd=74.11),
    ('resnet32x4', 'resnet8x4'): dict(kd=73.33, dkd=76.32),
    ('vgg13', 'vgg8'): dict(kd=72.98, dkd=74.68),
    ('vgg13', 'mobilenet_v2'): dict(kd=67.37, dkd=69.71),
    ('cifar_resnet50', 'mobilenet_v2'): dict(kd=67.35, dkd=70.35),
    ('cifar_resnet50', 'vgg8'): dict(kd=73.81),
    ('resnet32x4', 'shufflenet_v1'): dict(kd=74.07, dkd=76.45),
    ('resnet32x4', 'shufflenet_v2'): dict(kd=74.45, dkd=77.07),
    ('wrn_40_2', 'shufflenet_v1'): dict(kd=74.83, dkd=76.70),
}

BENCHMARKS = {
    'digits': Benchmark(
        folder='configs/classification/digits',
        pairs={'resnet14_resnet8-narrow': ('resnet14_digits', 'resnet8-narrow_digits')},
        split='test',
        report='test split (600 images)',
        select='val split (300 images)',
        adamw_lr=3e-2,
        fixed_view={},
    ),
    'clothing10': Benchmark(
        folder='configs/classification/clothing10',
        pairs=dict(resnet18_shufflenet=('resnet18_clothing10', 'shufflenet_clothing10')),
        split='test',
        report='test split (372 images)',
        select='validation split (341 images)',
        adamw_lr=4e-3,
        fixed_view=dict(resize=64),
    ),
    'cifar100': Benchmark(
        folder=CIFAR_CONFIGS,
        pairs={f'{t}_{s}': (t, s) for t, s in _PUBLISHED},
        split='test',
        report='10,000 test images; CIFAR-100 has no validation split',
        select=None,
        adamw_lr=1e-3,
        fixed_view={},
        epochs=240,
        published={
            f'{t}_{s}': dict(teacher=_TEACHERS[t], student=_STUDENTS[s], **numbers)
            for (t, s), numbers in _PUBLISHED.items()
        },
    ),
}
