"""Tiny dense detectors and batches for the tests of the views on dense heads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from detectors import IMAGE, WIDTH, model_config
from mmdet.models.task_modules import AssignResult
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmkd_plugin.taps import Recorder
from mmkd_plugin.taps.partial_forward import set_inference
from mmkd_plugin.views import LogitView, Predictions, make_view

DENSE = ('RetinaNet', 'GFL', 'ATSS', 'FCOS', 'VFNet', 'RTMDet', 'YOLOX', 'RepPoints')
CLASSES = 10
PATTERN = dict(positive=(3, 8, 21), ignored=(5, 6, 30))  # of every 37 priors


def build(config: dict, seed: int = 0) -> nn.Module:
    """A detector whose heads say something: mmdet's own start makes all rows nearly equal."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        register_all_modules(init_default_scope=False)
        torch.manual_seed(seed)
        model = MODELS.build(copy.deepcopy(config))
    for parameter in model.bbox_head.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    model.data_preprocessor.batch_augments = None  # the batches below have their size
    return _calibrated(model)


@torch.no_grad()
def _calibrated(model: nn.Module) -> nn.Module:
    """Sets the statistics of batch norms; with those of a new model, maps grow without end."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    images = batch(model, sample(), sample((64, 80)))['inputs']  # with padding, as in the tests
    model.bbox_head(model.extract_feat(images))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return model


@cache
def _prototype(family: str, width: int, seed: int) -> nn.Module:
    return build(model_config(family, width), seed)


def student(family: str, seed: int = 0) -> nn.Module:
    return copy.deepcopy(_prototype(family, WIDTH, seed)).train()


def teacher(family: str, width: int = 2 * WIDTH, seed: int = 1) -> nn.Module:
    """A wider model, in the mode in which teachers run."""
    model = copy.deepcopy(_prototype(family, width, seed))
    set_inference(model)
    return model


def sample(
    size: Sequence[int] = (IMAGE, IMAGE),
    boxes: Sequence = ((10, 12, 60, 70), (40, 30, 90, 80)),
    crowds: Sequence = (),
) -> tuple[Tensor, DetDataSample]:
    """A random image of `size` (height, width) with its boxes, of classes 0, 1, ..."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, *size), np.uint8))
    shape = tuple(size)
    data = DetDataSample(
        metainfo=dict(
            img_shape=shape, ori_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0)
        )
    )
    data.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        labels=torch.arange(len(boxes)),
    )
    data.ignored_instances = InstanceData(
        bboxes=torch.tensor(crowds, dtype=torch.float32).view(-1, 4),
        labels=torch.zeros(len(crowds), dtype=torch.long),
    )
    return image, data


def batch(model: nn.Module, *samples: tuple[Tensor, DetDataSample]) -> dict:
    """The samples (two plain images, if none are given), as the model's preprocessor gives them."""
    images, data = zip(*(samples or (sample(), sample())))
    return model.data_preprocessor(dict(inputs=list(images), data_samples=list(data)), True)


def read(
    model: nn.Module, data: dict, name: str = 'cls_logits', needs: Sequence[str] = ()
) -> tuple[Predictions, LogitView, Recorder]:
    """What the view of a student says after a training step."""
    view = make_view(name, model, needs, 'term')
    recorder = Recorder(model, 'student')
    recorder.listen(view.points)
    recorder.arm()
    model(**data, mode='loss')
    recorder.disarm()
    assert recorder.overwritten() == []
    (predictions,) = view.read(recorder, data['data_samples'])
    return predictions, view, recorder


def follow(
    model: nn.Module, data: dict, own: Predictions, name: str = 'cls_logits'
) -> tuple[Predictions, LogitView, Recorder]:
    """What the view of a teacher says to a student's predictions."""
    view = make_view(name, model, (), 'term')
    recorder = Recorder(model, 'teacher')
    recorder.listen(view.teacher_points)
    recorder.arm()
    with torch.no_grad():
        model.bbox_head(model.extract_feat(data['inputs']))
        recorder.disarm()
        (predictions,) = view.read(recorder, data['data_samples'], student=[own])
    return predictions, view, recorder


def pattern(priors: int) -> Tensor:
    """What `patch_assignment` assigns: (priors,) with 1 or 2 for an object, 0 for none, -1 ignored.

    It is made for the order of priors in mmdet: level by level, row by row, anchor by anchor.
    """
    index = torch.arange(priors)
    positive = sum(index % 37 == k for k in PATTERN['positive']).bool()
    ignored = sum(index % 37 == k for k in PATTERN['ignored']).bool()
    return torch.where(positive, 1 + index % 2, torch.where(ignored, -1, 0))


def patch_assignment(head: nn.Module) -> None:
    """Replaces the head's assigner by one that follows `pattern`."""

    def assign(*args, **kwargs) -> AssignResult:
        instances = [a for a in (*args, *kwargs.values()) if isinstance(a, InstanceData)]
        objects = next(i for i in instances if 'labels' in i)
        indices = pattern(len(next(i for i in instances if 'priors' in i).priors))
        labels = objects.labels[indices.clamp(min=1) - 1]
        return AssignResult(len(objects), indices, (indices > 0).float() * 0.7, labels)

    def targets(instances: InstanceData, points: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        indices = pattern(len(points))
        labels = instances.labels[indices.clamp(min=1) - 1]
        return torch.where(indices > 0, labels, CLASSES), torch.ones(len(points), 4)

    if hasattr(head, 'refine_assigner'):
        head.refine_assigner.assign = assign
    elif hasattr(head, 'assigner'):
        head.assigner.assign = assign
    else:
        head._get_targets_single = targets
