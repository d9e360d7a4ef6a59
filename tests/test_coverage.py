"""Sixteen detector families train with GDD and with CWD, and give plain checkpoints.

Every run goes through mmengine's Runner and the DistillHook, two iterations on the digits. The
teacher is a wider model of the same family with random weights (`allow_random=True`). The saved
file must then load strictly into mmdet's own model in a process without the plugin.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from detectors import FAMILIES, IMAGE, WIDTH, model_config, run_config, skip_if_too_large
from five_steps import PlainPackage
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmkd_plugin import attach
from mmkd_plugin.teacher import build_model

LOSSES = {'gdd': 'GDDLoss', 'cwd': 'CWDLoss'}
DOCS = Path(__file__).resolve().parents[1] / 'docs' / 'coverage.md'


@pytest.fixture(scope='module')
def plain_mmdet(tmp_path_factory):
    server = PlainPackage('mmdet', tmp_path_factory.mktemp('plain'))
    yield server
    server.close()


class Watch(Hook):
    """Keeps teacher and connectors as they are at both ends of a run, and all losses between."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.before = self.snapshot(runner.model.distiller)
        self.losses: list[dict] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items() if 'loss' in k})

    def after_train(self, runner) -> None:
        # the hook detaches after the run, so this is the last look
        self.after = self.snapshot(runner.model.distiller)
        self.plan = runner.model.distiller.plan()

    @staticmethod
    def snapshot(distiller) -> dict[str, dict]:
        teacher = distiller.teacher.model.state_dict()
        connectors = dict(distiller.named_parameters())
        return dict(
            teacher={k: v.clone() for k, v in teacher.items()},
            connectors={k: v.detach().clone() for k, v in connectors.items()},
        )


def distil_hook(family: str, method: str) -> dict:
    return dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config=dict(model=model_config(family, 2 * WIDTH), default_scope='mmdet'),
            checkpoint=None,
            allow_random=True,
        ),
        terms=[dict(loss=dict(type=LOSSES[method]), student=FAMILIES[family].tap, name=method)],
        probe_size=(IMAGE, IMAGE),
    )


@pytest.mark.parametrize('method', LOSSES)
@pytest.mark.parametrize('family', FAMILIES)
def test_family_trains_saves_and_reloads(family, method, digits_root, tmp_path, plain_mmdet):
    skip_if_too_large(family)
    watch = Watch()
    config = run_config(
        model_config(family),
        digits_root / 'annotations' / 'train.json',
        digits_root / 'train',
        tmp_path,
        FAMILIES[family].masks,
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
        custom_hooks=[distil_hook(family, method)],
    )
    runner = Runner.from_cfg(config)
    runner.register_hook(watch)
    runner.train()

    assert len(watch.plan) == FAMILIES[family].levels
    assert len(watch.losses) == 2
    for losses in watch.losses:
        assert losses[f'loss_{method}'] > 0
        assert all(math.isfinite(value) for value in losses.values()), losses

    # The connectors of every level learned (a bias may have no influence), the teacher did not. A
    # level of one position says nothing: the softmax over it is 1.
    for level, row in enumerate(watch.plan):
        assert row.connector_parameters > 0
        if row.student_shape[2:] == (1, 1):
            continue
        for name, value in watch.after['connectors'].items():
            if name.startswith(f'terms.0.losses.{level}.') and name.endswith('weight'):
                assert not torch.equal(value, watch.before['connectors'][name]), f'{name} is idle'
    for name, value in watch.after['teacher'].items():
        assert torch.equal(value, watch.before['teacher'][name]), f'the teacher changed at {name}'

    answer = plain_mmdet.load(model_config(family), tmp_path / 'iter_2.pth')
    assert answer == f'loaded {type(runner.model).__name__}'


@pytest.mark.parametrize(
    ('family', 'tap', 'reason'),
    [
        ('Faster R-CNN', 'roi_head.bbox_head.fc_cls', 'RoI head'),
        ('Deformable DETR', 'encoder', r'compares feature maps \(N, C, H, W\)'),
        ('RetinaNet', 'bbox_head.cls_convs.*.cov', 'bbox_head.cls_convs.0.conv'),
    ],
)
def test_what_cannot_be_distilled_is_refused(family, tap, reason):
    """The reasons given in docs/coverage.md are what a user is told."""
    student, teacher = (
        build_model(Config(dict(model=model_config(family, width), default_scope='mmdet')))
        for width in (WIDTH, 2 * WIDTH)
    )
    with pytest.raises(ValueError, match=reason):
        attach(student, teacher, [dict(loss=dict(type='GDDLoss'), student=tap)])
    assert not hasattr(student, 'distiller')


def test_yolox_mode_switch_reaches_the_distilled_student(digits_root, tmp_path):
    """The hook sets an attribute of the head and edits the data pipeline of the live run."""
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            seen.append((runner.epoch, runner.model.bbox_head.use_l1))

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            seen[-1] += ('loss_l1' in outputs, 'loss_gdd' in outputs)

    config = run_config(
        model_config('YOLOX'),
        digits_root / 'annotations' / 'train.json',
        digits_root / 'train',
        tmp_path,
        False,
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
        custom_hooks=[
            distil_hook('YOLOX', 'gdd'),
            dict(type='YOLOXModeSwitchHook', num_last_epochs=0, priority=48),
            dict(type='EMAHook', ema_type='ExpMomentumEMA', update_buffers=True, priority=49),
        ],
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=100),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2)),
    )
    single = dict(config.train_dataloader.dataset)
    single.update(indices=2, pipeline=single['pipeline'][:2])
    config.train_dataloader.dataset = dict(
        type='MultiImageMixDataset',
        dataset=single,
        pipeline=[dict(type='Mosaic', img_scale=(IMAGE, IMAGE)), dict(type='PackDetInputs')],
    )
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    runner = Runner.from_cfg(config)
    runner.register_hook(Look(), priority='VERY_LOW')
    runner.train()
    assert seen[0] == (0, False, False, True)
    assert seen[-1] == (1, True, True, True)
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert not any('distiller' in key for key in saved['ema_state_dict'])


def test_the_process_without_the_plugin_refuses_other_keys(tmp_path, plain_mmdet):
    """Guards the test above: a file with one extra entry must not count as loaded."""
    torch.save(dict(state_dict={'distiller.terms.0.weight': torch.zeros(1)}), tmp_path / 'x.pth')
    assert 'distiller.terms.0.weight' in plain_mmdet.load(
        model_config('RetinaNet'), tmp_path / 'x.pth'
    )


def test_the_documented_table_is_this_list():
    """docs/coverage.md names exactly these families, with these taps and numbers of levels."""
    rows = re.findall(r'^\| ([^|]+) \| `([^`|]+)` \| (\d+) \|', DOCS.read_text(), re.MULTILINE)
    listed = {name.strip(): (tap, int(levels)) for name, tap, levels in rows}
    assert listed == {name: (f.tap, f.levels) for name, f in FAMILIES.items()}
