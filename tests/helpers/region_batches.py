"""Tiny detectors with weights by seed, batches made by hand, and a step as a view sees it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectors import model_config
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmkd_plugin.taps import Recorder
from mmkd_plugin.taps.partial_forward import PartialForward, set_inference
from mmkd_plugin.teacher import build_model
from mmkd_plugin.views import LogitView, Predictions

CLASSES = 4
BOXES = ((10.0, 12.0, 50.0, 60.0), (40.0, 30.0, 90.0, 80.0))


def detector(family: str, width: int = 16, seed: int = 0, classes: int = CLASSES, edit=None):
    """A tiny detector whose random weights depend on `seed` only.

    Args:
        family: A key of `detectors.FAMILIES`.
        width: Channels of neck and head.
        seed: Seed of the weights.
        classes: Number of classes.
        edit: Changes the model config in place.
    """
    config = model_config(family, width, classes)
    if edit is not None:
        edit(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(Config(dict(model=config, default_scope='mmdet')))
        for name, parameter in model.named_parameters():
            # Classes that differ, boxes near their priors.
            if name.endswith(('fc_cls.weight', 'conv_logits.weight')):
                nn.init.normal_(parameter, std=0.2)
            elif name.endswith(('fc_reg.weight', 'rpn_reg.weight')):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter)
            elif 'fc_cls' in name:
                nn.init.normal_(parameter, std=0.5)
    return model.train()


def sample(
    boxes: Sequence[Sequence[float]] = BOXES,
    labels: Sequence[int] = (1, 3),
    size: tuple[int, int] = (96, 96),
    canvas: tuple[int, int] = (96, 96),
    crowd: Sequence[Sequence[float]] = (),
) -> DetDataSample:
    """Truth of an image of `size` in a batch of `canvas`: boxes with a mask each, crowd regions."""
    meta = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=canvas,
        batch_input_shape=canvas,
        scale_factor=(1.0, 1.0),
    )
    masks = np.zeros((len(boxes), *canvas), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[int(y1) : int(y2), int(x1) : int((x1 + x2) / 2)] = 1  # the left half
    found = DetDataSample(metainfo=meta)
    found.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=BitmapMasks(masks, *canvas),
    )
    found.ignored_instances = InstanceData(
        bboxes=torch.tensor(crowd, dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(crowd), dtype=torch.long),
        masks=BitmapMasks(np.zeros((len(crowd), *canvas), dtype=np.uint8), *canvas),
    )
    return found


def empty(**kwargs) -> DetDataSample:
    """An image without objects; `crowd=[...]` gives it ignore regions."""
    return sample(boxes=(), labels=(), **kwargs)


def images(samples: Sequence[DetDataSample], seed: int = 0) -> Tensor:
    """Noise for a batch, zero where an image is padded."""
    generator = torch.Generator().manual_seed(seed)
    height, width = samples[0].batch_input_shape
    batch = torch.zeros(len(samples), 3, height, width)
    for image, found in zip(batch, samples):
        h, w = found.img_shape
        image[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    return batch


def student_step(
    model: nn.Module, view: LogitView, samples: list, seed: int = 0
) -> tuple[list[Predictions], dict]:
    """What `view` reads in a training step of `model`, and the model's losses."""
    recorder = Recorder(model, 'student')
    recorder.listen(view.points)
    recorder.arm()
    torch.manual_seed(seed)  # RoI samplers draw
    losses = model(images(samples), samples, mode='loss')
    recorder.disarm()
    assert not recorder.overwritten()
    predictions = view.read(recorder, samples)
    recorder.close()
    return predictions, losses


def teacher_step(
    model: nn.Module, view: LogitView, samples: list, student: list[Predictions], **more: object
) -> list[Predictions]:
    """What `view` reads of a teacher that ran as deep as the view wants."""
    set_inference(model)
    recorder = Recorder(model, 'teacher')
    recorder.listen(view.teacher_points)
    forward = PartialForward(model, [point.path for point in view.teacher_points])
    with torch.no_grad():
        recorder.arm()
        forward(images(samples), samples)
        recorder.disarm()
        predictions = view.read(recorder, samples, student=student, **more)
    recorder.close()
    return predictions
