"""Detectors inside a model (trackers, semi-supervised wrappers), and models that fold their batch.

Every run goes through MMEngine's Runner and the DistillHook, two iterations on made-up data whose
first batch measures the shapes. The file that it leaves must load into the plain model.
"""

from __future__ import annotations

import math

import mmengine.config.config
import pytest
import torch
import wrapped
import yapf.yapflib.yapf_api
from detectors import model_config
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmkd_plugin
from mmkd_plugin.taps.body import body_of
from mmkd_plugin.teacher import build_model

MODELS = {
    'QDTrack': (wrapped.qdtrack, 'clip'),
    'MaskTrack R-CNN': (wrapped.masktrack, 'clip'),
    'ByteTrack': (wrapped.bytetrack, 'image'),
    'Mask2Former-VIS': (wrapped.mask2former_vis, 'clip'),
    'SoftTeacher': (wrapped.soft_teacher, 'semi'),
    'semi-supervised': (wrapped.semi, 'semi'),
    'ReID': (wrapped.reid, 'person'),
}


@pytest.fixture(autouse=True)
def unformatted(monkeypatch):
    """The text of a config need not be pretty, which takes seconds."""
    for module in (mmengine.config.config, yapf.yapflib.yapf_api):
        monkeypatch.setattr(module, 'FormatCode', lambda text, **_: (text, True), raising=False)


class Watch(Hook):
    """Keeps the plan, all losses, and what the teacher saw."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.losses: list[dict] = []
        self.seen: list = []
        distiller = runner.model.distiller
        self.plan = distiller.plan()
        run = distiller.teacher.run

        def look(inputs, samples=None, **kwargs):
            self.seen.append((inputs, samples))
            return run(inputs, samples, **kwargs)

        distiller.teacher.run = look

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items() if 'loss' in k})


def built(model) -> torch.nn.Module:
    return build_model(Config(dict(model=model, default_scope='mmdet')))


def run(tmp_path, model, kind, teacher, **hook) -> Watch:
    register_all_modules(init_default_scope=False)
    watch = Watch()
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(config=dict(model=teacher, default_scope='mmdet'), allow_random=True),
        **hook,
    )
    config = Config(
        dict(
            default_scope='mmdet',
            model=model,
            train_dataloader=wrapped.loader(kind),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.001)),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            ),
            custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
            custom_hooks=[hook],
            work_dir=str(tmp_path),
            log_level='WARNING',
            randomness=dict(seed=0),
            experiment_name=tmp_path.name,
        )
    )
    runner = Runner.from_cfg(config)
    runner.register_hook(watch)
    runner.train()
    return watch


@pytest.mark.parametrize('name', MODELS)
def test_a_wrapped_model_trains_with_gdd_and_reloads(name, tmp_path):
    if name == 'ReID':
        pytest.importorskip('mmpretrain')
    make, kind = MODELS[name]
    watch = run(tmp_path, make(), kind, make(32), recipe='gdd:1')
    assert len(watch.losses) == 2
    for losses in watch.losses:
        assert losses['loss_gdd'] > 0
        assert all(math.isfinite(value) for value in losses.values()), losses
    saved = torch.load(tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)
    built(make()).load_state_dict(saved['state_dict'], strict=True)


def test_classes_of_reid_are_refused_before_training():
    pytest.importorskip('mmpretrain')
    with pytest.raises(ValueError, match='LinearReIDHead, ends its forward with the embedding'):
        mmkd_plugin.attach(built(wrapped.reid()), built(wrapped.reid(32)), recipe='kd')


@pytest.mark.parametrize(
    'name, detector',
    [
        ('QDTrack', None),
        ('QDTrack', 'Faster R-CNN'),
        ('ByteTrack', 'YOLOX'),
        ('SoftTeacher', 'Faster R-CNN'),
        ('semi-supervised', 'RetinaNet'),
    ],
)
def test_logits_of_a_detector_inside(name, detector, tmp_path):
    """The teacher is a wrapper, too, or a plain detector; it sees what the body is given first."""
    make, kind = MODELS[name]
    teacher = make(32) if detector is None else model_config(detector, 32, wrapped.CLASSES)
    if detector is not None:  # the body of ByteTrack sees pixels, that of others normalised images
        teacher.data_preprocessor = dict(type='DetDataPreprocessor', **PIXELS.get(name, {}))
    watch = run(tmp_path, make(), kind, teacher, recipe='kd:1')
    assert len(watch.losses) == len(watch.seen) == 2
    for losses, (images, samples) in zip(watch.losses, watch.seen):
        assert losses['loss_kd'] > 0
        assert all(math.isfinite(value) for value in losses.values()), losses
        assert len(images) == len(samples) == SEEN[name]


SEEN = {'QDTrack': 2, 'ByteTrack': 2, 'SoftTeacher': 1, 'semi-supervised': 1}
PIXELS = {
    'QDTrack': dict(mean=[103.53, 116.28, 123.675], std=[1.0] * 3, bgr_to_rgb=False),
    'SoftTeacher': dict(mean=[0.0] * 3, std=[255.0] * 3),  # other images than the student's
}


def test_the_teacher_inside_a_wrapper_never_teaches(tmp_path):
    """Neither the student's own nor that of a teacher that is such a wrapper."""
    model = built(wrapped.semi())
    assert body_of(model) == ('student', model.student)
    teacher = built(wrapped.semi(32))
    called = []
    for part in (model.teacher, teacher.teacher):
        part.backbone.register_forward_hook(lambda *_: called.append(1))
    mmkd_plugin.attach(model, teacher, recipe='gdd:1+kd:1', probe_size=(64, 64))
    batch = model.data_preprocessor(wrapped.semi_batch(), True)
    losses = model.train()(**batch, mode='loss')
    assert losses['loss_gdd'] > 0 and losses['loss_kd'] > 0
    assert len(called) == 1, 'the student asked its own teacher for labels, once'


def test_a_place_outside_the_detector_is_refused():
    student, teacher = built(wrapped.qdtrack()), built(wrapped.qdtrack(32))
    term = dict(loss=dict(type='PKDLoss'), student='track_head.embed_head.fc_embed')
    with pytest.raises(ValueError, match="'track_head.embed_head.fc_embed'.*outside.*QDTrack"):
        mmkd_plugin.attach(student, teacher, [term], probe_size=(64, 64))
    assert not hasattr(student, 'distiller')
