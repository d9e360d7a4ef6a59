"""A step on a device whose values nobody can read: PyTorch's meta device stands for a GPU.

Whatever would make the host wait for a GPU (``.item()``, a tensor in an ``if``, a copy to the host)
fails there, and a tensor left on the CPU shows.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toys import toy_classifier

import mmkd_plugin
from mmkd_plugin.models import ClsDataPreprocessor, ImageClassifier
from mmkd_plugin.recipes import classification as recipes

AUGMENTS = [
    dict(type='BatchRandomCrop', size=16, padding=2),
    dict(type='BatchRandomResizedCrop', size=16),
    dict(type='BatchRandomFlip'),
]


def classifier(depth: int) -> ImageClassifier:
    return ImageClassifier(
        dict(type='CIFARResNet', depth=depth), dict(type='LinearHead', num_classes=5)
    )


class OneDevice(TorchDispatchMode):
    """Notes every operation between the meta device and the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            self.mixed.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device has no mixed precision, not even one to switch off."""
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: contextlib.nullcontext())


@pytest.mark.parametrize('recipe', recipes.names())
def test_a_distilled_step_reads_nothing_back_and_stays_on_the_device(recipe, no_autocast):
    student, teacher = classifier(8).to('meta'), classifier(14).to('meta')
    plan = recipes.plan(recipe, 'resnet56', 'resnet20', epochs=240)
    distiller = mmkd_plugin.attach(student, teacher, **plan, probe_size=(16, 16))
    everything = [*distiller.parameters(), *distiller.buffers()]
    assert {x.device.type for x in everything} == {'meta'}
    images = torch.empty(4, 3, 16, 16, device='meta')
    labels = torch.empty(4, dtype=torch.int64, device='meta')
    student.train()
    with OneDevice() as watch:
        for epoch in range(2):
            distiller.set_progress(epoch, epoch)
            losses = student(images, dict(gt_label=labels), mode='loss')
            sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert watch.mixed == []
    assert {x.device.type for x in losses.values()} == {'meta'}


def test_a_value_that_is_read_is_noticed(no_autocast):
    """Shows that the test above can fail."""
    student = classifier(8).to('meta').train()
    losses = student(
        torch.empty(4, 3, 16, 16, device='meta'),
        dict(gt_label=torch.empty(4, dtype=torch.int64, device='meta')),
        mode='loss',
    )
    with pytest.raises(RuntimeError):
        losses['loss_cls'].item()
    with OneDevice() as watch:
        losses['loss_cls'] * torch.ones(())
    assert watch.mixed


@pytest.mark.parametrize('mode', [None, 'same', 'fixed', 'independent'])
def test_augmentation_reads_nothing_back_and_stays_on_the_device(mode):
    view = None if mode is None else dict(mode=mode, size=12)
    preprocessor = ClsDataPreprocessor(
        [127.5], [127.5], batch_augments=AUGMENTS, mixup=1.0, teacher_view=view
    ).to('meta')
    images = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device='meta')
    labels = torch.empty(4, dtype=torch.int64, device='meta')
    with OneDevice() as watch:
        out = preprocessor(dict(inputs=images, data_samples=dict(gt_label=labels)), True)
    assert watch.mixed == []
    assert ('teacher_inputs' in out['data_samples']) == (mode is not None)
    tensors = tree_flatten(out)[0]
    assert {x.device.type for x in tensors} == {'meta'}


def test_complement_stays_on_the_device(no_autocast):
    student, teacher = classifier(8).to('meta'), classifier(8).to('meta')
    kd = dict(loss=dict(type='KDLoss'), student='cls_logits', weight=0.8, warmup=4)
    distiller = mmkd_plugin.attach(
        student, teacher, [kd], task_weight='complement', probe_size=(16, 16)
    )
    assert distiller.task_factor.device.type == 'meta'


def test_constant_weights_launch_nothing():
    student = toy_classifier(0)
    kd = dict(loss=dict(type='KDLoss'), student='cls_logits', weight=0.8)
    ramp = dict(kd, name='ramp', warmup=3)
    distiller = mmkd_plugin.attach(student, toy_classifier(1), [kd, ramp], probe_size=(16, 16))
    for iteration in range(5):
        before = [term.factor._version for term in distiller.terms]
        distiller.set_progress(iteration)
        written = [term.factor._version > v for term, v in zip(distiller.terms, before)]
        assert written == [False, iteration < 3]
        assert distiller.terms[1].factor.item() == pytest.approx(0.8 * min(1, (iteration + 1) / 3))
