"""Partial forwards: no deeper than the taps need, and probes that leave no trace."""

from __future__ import annotations

import random
from collections import Counter
from functools import wraps

import numpy as np
import pytest
import torch
from detectors import model_config, skip_if_too_large
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn
from toys import toy_model

from mmkd_plugin.rng import rng_kept
from mmkd_plugin.taps import TapError
from mmkd_plugin.taps.partial_forward import (
    PartialForward,
    inference_mode_kept,
)
from mmkd_plugin.taps.probe import Probe

SIZE = (64, 64)


@pytest.fixture(scope='module')
def detectors():
    with DefaultScope.overwrite_default_scope('mmdet'), rng_kept():
        register_all_modules(init_default_scope=False)
        torch.manual_seed(0)
        return {
            name: MODELS.build(model_config(name))
            for name in ('GFL', 'Faster R-CNN', 'DINO', 'Mask2Former')
        }


def _counted(calls: Counter, name: str, forward):
    @wraps(forward)
    def counted(*args, **kwargs):
        calls.update([name])
        return forward(*args, **kwargs)

    return counted


def count_calls(model: nn.Module, paths: list, size=SIZE) -> tuple:
    """How often each part of the model runs for these taps, and the depth.

    Counted by ``forward`` itself: query detectors call their head's directly, around all hooks.
    """
    calls = Counter()
    parts = dict(model.named_children())
    for name, child in parts.items():
        child.forward = _counted(calls, name, child.forward)
    forward = PartialForward(model, paths)
    Probe(size).run(model, forward)
    for child in parts.values():
        del child.forward
    return forward.depth, dict(calls)


@pytest.mark.parametrize(
    'paths, depth, calls',
    [
        (['backbone.layer1'], 'backbone', dict(backbone=1)),
        (['backbone'], 'backbone', dict(backbone=1)),
        (['backbone.layer1', 'neck'], 'neck', dict(backbone=1, neck=1)),
        (['neck.fpn_convs.0.conv'], 'neck', dict(backbone=1, neck=1)),
        (['bbox_head.gfl_cls'], 'head', dict(backbone=1, neck=1, bbox_head=1)),
        (
            ['backbone', 'bbox_head.gfl_cls', 'bbox_head.gfl_reg'],
            'head',
            dict(backbone=1, neck=1, bbox_head=1),
        ),
    ],
)
def test_a_dense_detector_runs_as_deep_as_its_taps(detectors, paths, depth, calls):
    assert count_calls(detectors['GFL'], paths) == (depth, calls)


def test_a_two_stage_detector_never_runs_its_roi_head(detectors):
    model = detectors['Faster R-CNN']
    assert count_calls(model, ['neck.fpn_convs.*.conv']) == ('neck', dict(backbone=1, neck=1))
    assert count_calls(model, ['rpn_head.rpn_cls']) == (
        'head',
        dict(backbone=1, neck=1, rpn_head=1),
    )
    with pytest.raises(TapError) as error:
        PartialForward(model, ['neck', 'roi_head.bbox_head.fc_cls'], 'teacher tap')
    message = str(error.value)
    assert "teacher tap 'roi_head.bbox_head.fc_cls'" in message and 'rpn_head' not in message
    views, features = message.find("student='cls_logits'"), message.find('backbone or the neck')
    assert 0 < views < message.find("'mask_logits'") < features, 'the views made for it come first'


def test_a_query_detector_runs_its_head_within_the_whole_model(detectors):
    skip_if_too_large('DINO')
    depth, calls = count_calls(detectors['DINO'], ['bbox_head.cls_branches.0'])
    assert depth == 'full' and all(calls[part] == 1 for part in ('encoder', 'decoder', 'bbox_head'))
    # but its neck alone needs no transformer
    assert count_calls(detectors['DINO'], ['neck']) == ('neck', dict(backbone=1, neck=1))
    depth, calls = count_calls(detectors['DINO'], ['encoder.layers.0'])
    assert depth == 'full' and calls['encoder'] == 1


def test_a_detr_head_is_not_called_on_image_features():
    """Its forward takes one argument like a dense head's, but that is the decoder's output."""
    config = get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py').model
    config.backbone.update(depth=18, init_cfg=None)
    config.neck.in_channels = [512]
    config.encoder.num_layers = config.decoder.num_layers = 1
    with DefaultScope.overwrite_default_scope('mmdet'), rng_kept():
        register_all_modules(init_default_scope=False)
        model = MODELS.build(config)
    depth, calls = count_calls(model, ['bbox_head.fc_cls'])
    assert depth == 'full' and calls['encoder'] == calls['bbox_head'] == 1


def test_a_mask_transformer_gets_the_samples_its_head_asks_for(detectors):
    depth, calls = count_calls(detectors['Mask2Former'], ['panoptic_head.cls_embed'])
    assert depth == 'full' and calls['panoptic_head'] == 1
    assert count_calls(detectors['Mask2Former'], ['backbone']) == ('backbone', dict(backbone=1))


def test_a_toy_detector_and_a_plain_module():
    assert count_calls(toy_model(), ['neck.convs.0'], (16, 16))[0] == 'neck'
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert count_calls(plain, ['0'], (16, 16)) == ('full', {'0': 1, '1': 1})


# -- probes ------------------------------------------------------------------------------------


def state_of_everything(model: nn.Module) -> dict:
    return dict(
        flags=[m.training for m in model.modules()],
        values={k: v.clone() for k, v in model.state_dict().items()},
        torch=torch.get_rng_state(),
        numpy=np.random.get_state(),
        python=random.getstate(),
        default=torch.get_default_dtype(),
        grad=torch.is_grad_enabled(),
    )


def same(a, b) -> bool:
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


class Noisy(nn.Module):
    """Draws from every generator, in whatever mode, and keeps statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)
        return self.frozen(self.drop(self.norm(x)))


@pytest.mark.parametrize('training', [True, False])
def test_a_probe_leaves_no_trace(training):
    model = Noisy().train(training)
    model.frozen.eval()  # flags of single modules come back as they were, too
    before = state_of_everything(model)
    seen = []
    Probe((8, 8)).run(model, lambda image, samples: seen.append((model.training, model(image))))
    assert same(state_of_everything(model), before)
    assert seen[0][0] is False and not seen[0][1].requires_grad


def test_a_probe_of_a_detector_leaves_no_trace(detectors):
    model = detectors['GFL'].train()
    before = state_of_everything(model)
    assert before['values']['backbone.bn1.running_mean'] is not None
    Probe(SIZE).run(model, PartialForward(model, ['bbox_head.gfl_cls']))
    assert same(state_of_everything(model), before)


def test_a_failing_probe_leaves_no_trace_either():
    model = Noisy().train()
    before = state_of_everything(model)

    def fail(image, samples):
        model(image)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Probe((8, 8)).run(model, fail)
    assert same(state_of_everything(model), before)


def test_the_states_do_move_without_protection():
    model = Noisy().train()
    before = state_of_everything(model)
    model(torch.rand(2, 3, 8, 8))
    after = state_of_everything(model)
    for key in ('values', 'torch', 'numpy', 'python'):
        assert not same(after[key], before[key]), key


def test_the_probe_image_follows_the_model():
    model = nn.Conv2d(3, 1, 1).double()
    image, samples = Probe((24, 40)).inputs(model)
    assert image.shape == (1, 3, 24, 40) and image.dtype == torch.float64
    assert samples[0].img_shape == samples[0].batch_input_shape == (24, 40)
    assert torch.equal(image, Probe((24, 40)).inputs(model)[0])  # the same in every process


def test_inference_keeps_norm_and_dropout_in_eval():
    model = Noisy().train()
    model.frozen.eval()
    with inference_mode_kept(model):
        assert not any(m.training for m in model.modules())
    assert model.training and model.norm.training and not model.frozen.training
