"""Pictures of a running distillation: which, when, to whom, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectors import skip_if_too_large
from mmengine.hooks import Hook
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend
from ranks import run_ranks
from region_batches import BOXES, detector, images, sample
from toys import TERM, hook_config, runner_config, toy_batch, toy_classifier, toy_model, train

import mmkd_plugin
from mmkd_plugin.hooks import DistillVisHook
from mmkd_plugin.hooks.observed import Observed, as_rgb, attention
from mmkd_plugin.hooks.observed_rows import difference, places, rows_of
from mmkd_plugin.images.pixels import Pixels
from mmkd_plugin.views import HeadSpec, Level, Predictions
from mmkd_plugin.visualization.pictures import PlacedBoxes

VIS = dict(type='mmkd_plugin.DistillVisHook', interval=2)
KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', name='kd')


@VISBACKENDS.register_module()
class Collects(BaseVisBackend):
    """Keeps what it is given."""

    seen: list = []

    def _init_env(self):
        pass

    @property
    def experiment(self):
        return self

    def add_image(self, name, image, step=0, **kwargs):
        Collects.seen.append((name, image.shape[2], image.dtype, step))


def config(work_dir, *hooks, **overrides):
    backends = [dict(type='LocalVisBackend'), dict(type='Collects', save_dir=str(work_dir))]
    visualizer = dict(type='Visualizer', vis_backends=backends, name=Path(work_dir).name)
    return runner_config(work_dir, *hooks, visualizer=visualizer, **overrides)


def weights(work_dir) -> dict:
    return torch.load(Path(work_dir) / 'iter_4.pth', weights_only=False)['state_dict']


def test_every_backend_gets_a_picture_of_each_level(tmp_path):
    Collects.seen.clear()
    train(config(tmp_path, hook_config(), VIS))
    names = [f'distill_gdd_neck.convs.{i}' for i in (0, 1)]
    assert [(name, step) for name, *_, step in Collects.seen] == [
        (name, step) for step in (2, 4) for name in names
    ]
    assert {(channels, dtype) for _, channels, dtype, _ in Collects.seen} == {
        (3, np.dtype('uint8'))
    }
    files = {path.name for path in tmp_path.rglob('vis_image/*.png')}
    assert files == {f'{name}_{step}.png' for name in names for step in (2, 4)}
    picture = cv2.imread(str(next(tmp_path.rglob('vis_image/*.png'))))
    assert picture.shape[1] > 2 * picture.shape[0] and picture.std() > 10, 'four panels in a row'


def test_nothing_but_pictures_is_different(tmp_path):
    """Noise of the loss, dropout and the order of images come from states that stay as they are."""
    for name, hooks in (('with', [dict(VIS, interval=1)]), ('without', [])):
        cfg = config(tmp_path / name, hook_config(), *hooks)
        cfg.model = dict(type='ToyDetector', dropout=0.3)
        train(cfg)
    own, other = weights(tmp_path / 'with'), weights(tmp_path / 'without')
    assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)
    plain = torch.load(tmp_path / 'with' / 'iter_4.pth', weights_only=False)['meta']['cfg']
    assert 'DistillVisHook' not in plain


def test_between_intervals_nobody_looks(tmp_path):
    state = []

    class Spy(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            state.append(len(runner.model._forward_pre_hooks))

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            terms = runner.model.distiller.terms
            state.append([term.observer for term in terms])

    train(config(tmp_path, hook_config(), VIS), Spy())
    assert state == [1, [None], 2, [None], 1, [None], 2, [None]]


def test_terms_that_rest_are_not_drawn(tmp_path):
    Collects.seen.clear()
    train(config(tmp_path, hook_config(dict(TERM, begin=2)), VIS))
    assert {step for *_, step in Collects.seen} == {4}


def test_a_step_that_fails_leaves_nothing_behind(tmp_path):
    """Whoever goes on after an error, out of memory say, has terms that nobody looks at."""
    state = []

    class Fails(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                handle = runner.model.bbox_head.register_forward_pre_hook(self.fail)
                with pytest.raises(MemoryError):
                    runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
                handle.remove()
                state.extend(term.observer for term in runner.model.distiller.terms)

        @staticmethod
        def fail(*_):
            raise MemoryError

    Collects.seen.clear()
    train(config(tmp_path, hook_config(), VIS), Fails())
    assert state == [None]
    assert {step for *_, step in Collects.seen} == {2, 4}


def test_several_images_have_pictures_of_their_own(tmp_path):
    Collects.seen.clear()
    term = dict(TERM, student='neck.convs.0')
    train(config(tmp_path, hook_config(term), dict(VIS, images=3)))
    names = [name for name, *_ in Collects.seen]
    assert names == ['distill_gdd_neck.convs.0_0', 'distill_gdd_neck.convs.0_1'] * 2


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match='what a DistillHook compares, and custom_hooks has none'):
        train(config(tmp_path, VIS))
    for key in ('interval', 'images'):
        with pytest.raises(ValueError, match=f'{key}=0 must be a whole number'):
            DistillVisHook(**{key: 0})


def test_a_compiled_step_is_not_looked_into(tmp_path, caplog):
    class Runs:
        hooks = [mmkd_plugin.hooks.DistillHook(teacher='previous_epoch', recipe='kd')]
        cfg = dict(compile=True)
        iter = 1

    hook = DistillVisHook(interval=2)
    with caplog.at_level('WARNING'):
        hook.before_train(Runs)
    hook.before_train_iter(Runs, 1)
    assert not hook._handles


def test_one_of_two_processes_draws(tmp_path):
    code = f"""
import torch.distributed as dist
import toys
from mmengine.runner import Runner
dist.init_process_group('gloo')
cfg = toys.runner_config({str(tmp_path)!r}, toys.hook_config(), {VIS!r}, max_iters=2,
    launcher='pytorch', experiment_name='two', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
cfg.model.norm = False
Runner.from_cfg(cfg).train()
"""
    run_ranks(code)
    assert len(list(tmp_path.rglob('vis_image/*.png'))) == 2


# -- what is on them ---------------------------------------------------------------------------


def observed(student, teacher, terms, inputs, samples, **kwargs) -> list:
    distiller = mmkd_plugin.attach(student, teacher, terms, **kwargs)
    watcher = Observed(inputs, distiller.pixels, 1, ('one', 'two'))
    for term in distiller.terms:
        term.observer = watcher
    losses = student(inputs, samples, mode='loss')
    assert all(torch.isfinite(losses[f'loss_{t.name}']) for t in distiller.terms)
    return watcher.pictures


@pytest.mark.parametrize(
    'family, view, heads',
    [
        ('GFL', 'cls_logits', ['bbox_head']),
        ('GFL', 'dfl_logits', ['bbox_head-bins']),
        ('RetinaNet', 'cls_logits', ['bbox_head']),
        ('SOLO', 'cls_logits', ['mask_head.conv_cls']),
        ('Faster R-CNN', 'cls_logits', ['roi_head.bbox_head']),
        ('Cascade R-CNN', 'cls_logits', [f'roi_head.bbox_head.{i}' for i in range(3)]),
        ('Mask R-CNN', 'mask_logits', ['roi_head.mask_head']),
        ('Deformable DETR', 'cls_logits', None),
    ],
)
def test_every_kind_of_head_has_a_picture(family, view, heads):
    skip_if_too_large(family)
    truth = [sample(), sample(boxes=BOXES[:1], labels=(2,))]
    term = dict(KD, student=view)
    student, teacher = detector(family), detector(family, width=32, seed=1)
    pictures = observed(student, teacher, [term], images(truth), truth)
    if heads is not None:
        assert [picture.name for picture in pictures] == [f'distill_kd_{head}' for head in heads]
    assert pictures and all(picture.array.std() > 10 for picture in pictures)


def test_the_boxes_of_another_kind_of_teacher_have_one_too():
    truth = [sample()]
    term = dict(KD, teacher='detections')
    pictures = observed(
        detector('GFL'), detector('Faster R-CNN', 32, 1), [term], images(truth), truth
    )
    assert [picture.name for picture in pictures] == ['distill_kd_bbox_head']


def test_a_segmenter_has_a_picture():
    pytest.importorskip('mmseg')
    from segmenters import seg_batch, segmenter, segmenter_config

    batch, samples = seg_batch()
    student, teacher = segmenter(segmenter_config()), segmenter(segmenter_config(16), 1)
    pictures = observed(student, teacher, [dict(KD, student='seg_logits')], batch, samples)
    assert len(pictures) == 1 and pictures[0].name.startswith('distill_kd_decode_head')


def test_a_classifier_has_its_classes():
    term = dict(TERM, student=dict(path='backbone', levels=[-1]))
    pictures = observed(
        toy_classifier(0), toy_classifier(1), [KD, term], *toy_batch(2), probe_size=(16, 16)
    )
    names = [picture.name for picture in pictures]
    assert names == ['distill_kd_head.fc', 'distill_gdd_backbone-level-1']


def test_half_precision_is_drawn_like_any_other():
    student, teacher = toy_model(0), toy_model(1, width=8)
    distiller = mmkd_plugin.attach(student, teacher, [TERM], probe_size=(16, 16))
    inputs, samples = toy_batch(2)
    watcher = Observed(inputs, distiller.pixels, 1)
    distiller.terms[0].observer = watcher
    with torch.autocast('cpu', dtype=torch.bfloat16):
        student(inputs, samples, mode='loss')
    assert len(watcher.pictures) == 2


def level_of(logits, **kwargs) -> Level:
    return Level(torch.as_tensor(logits)[None, :, None], **kwargs)


def predictions(level, kind='dense', activation='sigmoid', **kwargs) -> Predictions:
    spec = HeadSpec('head', kind, activation, level.logits.shape[-1], **kwargs)
    return Predictions.of(spec, [level])


def test_disagreement_lies_where_it_is():
    """A map of 2 x 3 positions of stride 8 on an image of 16 x 20: one position differs."""
    y, x = torch.meshgrid(torch.arange(2), torch.arange(3), indexing='ij')
    centers = torch.stack((x.flatten(), y.flatten()), 1) * 8.0 + 4
    own = torch.zeros(6, 2)
    theirs = own.clone()
    theirs[4, 1] = 100.0  # second row, second column
    level = level_of(own, centers=centers, stride=8)
    head = predictions(level)
    rows = rows_of(0, level, level_of(theirs), head, None)
    heat = places([rows], head, (16, 20))
    assert heat.shape == (16, 20)
    assert (heat[8:, 8:16] == 0.5).all() and heat.sum() == 0.5 * 64
    level.valid = torch.ones(1, 6, 1, dtype=torch.bool)
    level.valid[0, 4] = False
    rows = rows_of(0, level, level_of(theirs), head, None)
    assert places([rows], head, (16, 20)).sum() == 0, 'what does not count is no disagreement'
    columns = torch.tensor([0]), torch.tensor([1])
    level.valid = None
    rows = rows_of(0, level, level_of(theirs), head, columns)
    assert rows.student.shape == (6, 1, 1) and rows.values.tolist() == [0, 0, 0, 0, 0.5, 0]


def test_regions_are_told_by_their_images():
    boxes = torch.arange(12.0).reshape(1, 3, 1, 4)

    class Corners:
        decode = staticmethod(lambda: boxes)

    logits = [[0.0, 0.0], [9.0, -9.0], [0.0, 0.0]]
    level = level_of(logits, images=torch.tensor([[0, 1, 1]]), boxes=Corners)
    other = level_of([[0.0, 0.0]] * 3)
    head = predictions(level, 'roi', 'softmax')
    found = places([rows_of(1, level, other, head, None)], head, (32, 32))
    assert isinstance(found, PlacedBoxes)
    assert found.corners.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert found.values == pytest.approx([0.5, 0.0], abs=1e-6)
    assert rows_of(1, level_of(logits), other, head, None) is None, 'a batch of one image'


def test_differences_are_between_0_and_1():
    own, theirs = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.7])
    assert difference(own, theirs, 'softmax') == pytest.approx(0.6)
    assert difference(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.4]), 'sigmoid') == (
        pytest.approx(0.8)
    )


def test_maps_of_other_scale_and_width_are_comparable():
    features = torch.rand(4, 3, 5)
    wide = torch.cat([features, features]) * 1000
    torch.testing.assert_close(attention(features), attention(wide))
    assert attention(features).mean() == pytest.approx(1, abs=1e-5)
    assert attention(torch.full((2, 2, 2), float('nan'))).isfinite().all()


def test_images_are_shown_in_the_colours_they_have():
    pixels = Pixels((100.0, 50.0, 0.0), (2.0, 2.0, 2.0), order='rgb', source='preprocessor')
    rgb = torch.tensor([200.0, 100.0, 30.0])
    image = ((rgb - torch.tensor(pixels.mean)) / 2)[:, None, None].expand(3, 2, 2)
    assert as_rgb(image, pixels)[0, 0].tolist() == [200, 100, 30]
    bgr = Pixels((100.0, 50.0, 0.0), (2.0, 2.0, 2.0), order='bgr', source='preprocessor')
    assert as_rgb(image, bgr)[0, 0].tolist() == [30, 100, 200]
    assert as_rgb(torch.rand(1, 4, 4), Pixels()).shape == (4, 4, 3)
