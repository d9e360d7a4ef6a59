"""The pairs of ``forward.py``: the rule of the doctor was not made from them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmkd_plugin.datasets import CIFAR100


@dataclass(frozen=True)
class Network:
    """What is trained alone.

    Attributes:
        config: its file below ``configs/classification``.
        model: changes of the config that make another network.
        options: other changes of the config.
        epochs: None is the config's.
        seed: of a teacher.
    """

    config: str
    model: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    seed: int = 0

    @property
    def path(self) -> str:
        return f'configs/classification/{self.config}.py'


@dataclass(frozen=True)
class Pair:
    """A teacher with a student, and the recipes that are tried.

    Attributes:
        title: in tables.
        dataset: ``'digits'`` or ``'cifar100'``.
        teacher: trained once.
        student: a name in :data:`STUDENTS`.
        recipes: a row for each.
    """

    title: str
    dataset: str
    teacher: Network
    student: str
    recipes: tuple[str, ...]


NARROW = 'digits/resnet8-narrow_digits'
STUDENTS = {
    'digits': Network(NARROW),
    'cifar100': Network(
        'cifar100/resnet8', dict(widths=[4, 4, 8, 16]), dict(images=1500), epochs=8
    ),
}
PAIRS = {
    'early': Pair(
        'digits, a teacher of 6 epochs', 'digits',
        Network('digits/resnet14_digits', epochs=6), 'digits', ('kd', 'gdd'),
    ),
    'twin': Pair(
        "digits, the student's network and training, another seed", 'digits',
        Network(NARROW, seed=9), 'digits', ('kd',),
    ),
    'longer': Pair(
        "digits, the student's network, four times as long", 'digits',
        Network(NARROW, epochs=320), 'digits', ('kd', 'gdd'),
    ),
    'large': Pair(
        'digits, ResNet32', 'digits',
        Network('digits/resnet14_digits', dict(depth=32)), 'digits', ('kd', 'dkd'),
    ),
    'all-images': Pair(
        'digits, ResNet14 trained on all 897 images', 'digits',
        Network(
            'digits/resnet14_digits',
            options={'train_dataloader.dataset.num_samples': None},
            epochs=12,
        ),
        'digits', ('kd', 'gdd', 'ckd'),
    ),
    'cifar': Pair(
        '10 classes of CIFAR-100, ResNet8 → narrow ResNet8', 'cifar100',
        Network('cifar100/resnet8', options=dict(images=2500), epochs=10), 'cifar100',
        ('kd', 'gdd', 'dkd'),
    ),
    'cifar-early': Pair(
        '10 classes of CIFAR-100, ResNet8 of 2 epochs → narrow ResNet8', 'cifar100',
        Network('cifar100/resnet8', options=dict(images=2500), epochs=2), 'cifar100',
        ('kd',),
    ),
}  # fmt: skip
CIFAR_CLASSES = 10  # the first ones
CIFAR_VAL = 300  # of their test images, for the doctor; the others are reported


@functools.cache
def cifar_images(root: str, split: str) -> list[int]:
    """Places of the images of the first classes in a file of CIFAR-100."""
    labels = CIFAR100(root, split, check_md5=False).labels.numpy()
    return [int(place) for place in np.flatnonzero(labels < CIFAR_CLASSES)]


def data_options(dataset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Changes of a config; on CIFAR-100, ``images`` says how many are trained on."""
    if dataset == 'digits':
        return options
    root = os.environ.get('CIFAR100_ROOT', 'data/cifar100')
    test = cifar_images(root, 'test')
    chosen = dict(
        train=cifar_images(root, 'train')[: options['images']],
        val=test[:CIFAR_VAL],
        test=test[CIFAR_VAL:],
    )
    found: dict[str, Any] = {}
    for split, places in chosen.items():
        found[f'{split}_dataloader.dataset.check_md5'] = False
        found[f'{split}_dataloader.dataset.indices'] = places
    return found
