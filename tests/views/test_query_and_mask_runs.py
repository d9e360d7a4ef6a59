"""Query detectors, SOLO and CondInst through the Runner and the DistillHook, with their views."""

from __future__ import annotations

import json

import pytest
import torch
from detectors import FAMILIES, WIDTH, model_config, run_config, skip_if_too_large
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd_plugin.teacher import build_model

VIEWS = {
    'Deformable DETR': ['cls_logits'],
    'DINO': ['cls_logits'],
    'SOLO': ['cls_logits', 'mask_logits'],
    'CondInst': ['cls_logits', 'mask_logits'],
}


@pytest.mark.parametrize('family', VIEWS)
def test_two_iterations_and_a_plain_checkpoint(family, digits_root, tmp_path):
    skip_if_too_large(family)
    teacher = dict(model=model_config(family, 2 * WIDTH), default_scope='mmdet')
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(config=teacher, allow_random=True),
        terms=[dict(loss=dict(type='KDLoss'), student=v, name=v) for v in VIEWS[family]],
    )
    config = run_config(
        model_config(family),
        digits_root / 'annotations' / 'train.json',
        digits_root / 'train',
        tmp_path,
        FAMILIES[family].masks,
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
        custom_hooks=[hook],
    )
    Runner.from_cfg(config).train()
    steps = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).open()]
    assert len(steps) == 2
    for view in VIEWS[family]:
        assert all(0 < step[f'loss_{view}'] < 1e4 and step[f'{view}_rows'] > 0 for step in steps)
    saved = torch.load(tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)
    plain = build_model(Config(dict(model=model_config(family), default_scope='mmdet')))
    plain.load_state_dict(saved['state_dict'], strict=True)
