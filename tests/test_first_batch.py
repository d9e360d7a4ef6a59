"""Shapes are measured on the first images of the training set, which nobody notices.

Toys through MMEngine's Runner: batches of other forms than (N, C, H, W), data that keep states of
their own, and data that give nothing.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from toys import TERM, ToyDetector, ToyImages, hook_config, runner_config, toy_model, train

import mmkd_plugin
from mmkd_plugin.images.first_batch import _copied, first_batch


def measuring(*terms, **hook) -> dict:
    """A DistillHook that says nothing of a size."""
    config = hook_config(*terms, **hook)
    del config['probe_size']
    return config


class Watch(Hook):
    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.rows = runner.model.distiller.plan() if hasattr(runner.model, 'distiller') else []
        self.batches: list = []
        self.losses: list[dict] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.batches.append(data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items() if 'loss' in k})


# -- nobody notices ------------------------------------------------------------------------------


@DATASETS.register_module(force=True)
class WithStates(ToyImages):
    """Draws from every global generator, has one of its own, counts, and keeps images for later."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own = np.random.default_rng(3)
        self.pipeline = Caching()
        self.count = 0

    def __getitem__(self, index):
        item = super().__getitem__(index)
        self.count += 1
        noise = random.random() + np.random.rand() + torch.rand(1) + self.own.random() + self.count
        return self.pipeline(dict(item, inputs=item['inputs'] + noise))


class Caching:
    """As CachedMosaic: mixes the images that it has seen before."""

    def __init__(self):
        self.results_cache: list = []

    def __call__(self, item):
        self.results_cache.append(item['inputs'])
        return dict(item, inputs=torch.stack(self.results_cache).mean(0))


@pytest.mark.parametrize('workers', [0, 1])
def test_the_batches_are_those_of_a_plain_run(tmp_path, workers):
    def trained(*hooks):
        config = runner_config(tmp_path / str(len(hooks)), *hooks)
        loader = dict(dataset=dict(type='WithStates'), num_workers=workers)
        config.train_dataloader.update(loader, persistent_workers=workers > 0)
        watch = Watch()
        return watch, train(config, watch).model.state_dict()

    (plain, before), (distilled, after) = trained(), trained(measuring(dict(TERM, begin=9)))
    assert distilled.rows[0].student_shape == (2, 6, 8, 8)
    for one, other in zip(plain.batches, distilled.batches):
        assert all(torch.equal(a, b) for a, b in zip(one['inputs'], other['inputs']))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_every_process_measures_the_same_images():
    torch.manual_seed(1)
    first = first_batch(WithStates())
    torch.manual_seed(2)
    random.seed(5)
    second = first_batch(WithStates())
    assert all(torch.equal(a, b) for a, b in zip(first['inputs'], second['inputs']))


def test_large_arrays_are_shared_and_transforms_are_not():
    data = WithStates()
    data.images, data.index = np.zeros((4, 2, 2), np.uint8), list(range(2000))
    data.seen = []
    first_batch(data)
    assert data.count == 0 and not data.pipeline.results_cache
    own = _copied(data)
    assert own.images is data.images and own.index is data.index
    assert own.pipeline is not data.pipeline and own.seen is not data.seen


# -- what cannot be measured ---------------------------------------------------------------------


@DATASETS.register_module(force=True)
class Broken(ToyImages):
    def __getitem__(self, index):
        raise FileNotFoundError('images/0.png is not there')


@pytest.mark.parametrize(
    'loader, words',
    [
        (dict(dataset=dict(type='ToyImages', length=0)), ('yields nothing', 'ToyImages', 'empty')),
        (dict(dataset=dict(type='Broken')), ('train_dataloader.dataset (Broken)', '0.png')),
        (
            dict(
                dataset=dict(type='ToyImages', length=3),
                sampler=dict(type='DefaultSampler', shuffle=True),
                batch_size=4,
                drop_last=True,
            ),
            ('yields nothing', '3 items', 'batch_size=4', 'drop_last=True'),
        ),
    ],
)
def test_data_that_give_nothing_are_refused_by_their_key(tmp_path, loader, words):
    config = runner_config(tmp_path, measuring())
    config.train_dataloader.update(loader)
    with pytest.raises(ValueError) as error:
        train(config)
    message = str(error.value)
    assert 'train_dataloader' in message and all(word in message for word in words), message
    assert '\n' not in message


@MODELS.register_module(force=True)
class OtherNames(ToyDetector):
    def forward(self, img, gt=None, mode='tensor'):
        return super().forward(img, gt, mode)


@DATASETS.register_module(force=True)
class OtherNamesImages(ToyImages):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return dict(img=item['inputs'], gt=item['data_samples'])


@MODELS.register_module(force=True)
class Stacked(BaseDataPreprocessor):
    """Stacks the images of a batch, whatever they are called and however many dimensions."""

    def forward(self, data, training=False):
        data = self.cast_data(data)
        key = 'img' if 'img' in data else 'inputs'
        return {**data, key: torch.stack(data[key])}


def test_a_model_that_calls_its_images_otherwise_is_refused(tmp_path):
    model = dict(type='OtherNames', data_preprocessor=dict(type='Stacked'))
    config = runner_config(tmp_path, measuring(), model=model)
    config.train_dataloader.dataset = dict(type='OtherNamesImages')
    train(runner_config(tmp_path / 'plain', model=model, train_dataloader=config.train_dataloader))
    with pytest.raises(ValueError, match="OtherNames is called with 'img', 'gt', but without 'inp"):
        train(config)


@MODELS.register_module(force=True)
class NoDetectorInside(ToyDetector):
    """Has nothing that a recipe knows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.detector = nn.Conv2d(3, 3, 1)
        self.body, self.reader = self.backbone, self.bbox_head
        del self.backbone, self.bbox_head


def test_a_wrapped_model_without_a_detector_inside_is_refused(tmp_path):
    hook = measuring(recipe='gdd')
    del hook['terms']
    config = runner_config(tmp_path, hook, model=dict(type='NoDetectorInside'))
    with pytest.raises(ValueError, match='no detector with a backbone inside'):
        train(config)


# -- other forms of a batch ----------------------------------------------------------------------


@MODELS.register_module(force=True)
class Clips(ToyDetector):
    """Folds clips (N, T, C, H, W) into images, as recognizers of MMAction2 do."""

    def extract_feat(self, inputs, stage='neck'):
        return super().extract_feat(inputs.view((-1, *inputs.shape[-3:])))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        frames = 1 if inputs.dim() == 4 else inputs.shape[1]
        features = self.extract_feat(inputs)
        if mode == 'tensor':
            return features
        features = tuple(x.unflatten(0, (-1, frames)).mean(1) for x in features)
        targets = torch.tensor([s.label for s in data_samples])
        return self.bbox_head.loss(features, targets)


@MODELS.register_module(force=True)
class Lists(ToyDetector):
    """Gets a list of images, and stacks them itself."""

    def extract_feat(self, inputs):
        return super().extract_feat(torch.stack(list(inputs)))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        targets = torch.tensor([s.label for s in data_samples])
        return self.bbox_head.loss(self.extract_feat(inputs), targets)


@MODELS.register_module(force=True)
class Voxels(Lists):
    """Draws points into an image before its backbone, as detectors of MMDetection3D do."""

    def extract_feat(self, inputs):
        images = []
        for points in inputs['points']:
            image = points.new_zeros(3, 16, 16)
            x, y = (points[:, :2] * 16).long().unbind(1)
            images.append(image.index_put((torch.zeros_like(x), y, x), points[:, 2]))
        return super().extract_feat(images)


@MODELS.register_module(force=True)
class OneSampleForAll(ToyDetector):
    """Gets the samples of a batch as one dict, as detectors of MMYOLO do."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        return self.bbox_head.loss(self.extract_feat(inputs), data_samples['labels'])


@DATASETS.register_module(force=True)
class Items(ToyImages):
    """The same images in another form."""

    def __init__(self, form, **kwargs):
        super().__init__(**kwargs)
        self.form = form

    def __getitem__(self, index):
        item = super().__getitem__(index)
        image, sample = item['inputs'], item['data_samples']
        if self.form == 'clip':
            image = torch.stack([image, image + 1, image - 1])
        elif self.form == 'points':
            image = dict(points=torch.rand(20, 3, generator=torch.Generator().manual_seed(index)))
        return (image, sample) if self.form == 'tuple' else dict(inputs=image, data_samples=sample)


@MODELS.register_module(force=True)
class OneDict(BaseDataPreprocessor):
    def forward(self, data, training=False):
        data = self.cast_data(data)
        samples = dict(
            labels=torch.tensor([s.label for s in data['data_samples']]),
            img_metas=[s.metainfo for s in data['data_samples']],
        )
        return dict(inputs=torch.stack(data['inputs']), data_samples=samples)


FORMS = {
    'clip': ('Clips', 'Stacked', (6, 6, 8, 8)),
    'points': ('Voxels', 'BaseDataPreprocessor', (2, 6, 8, 8)),
    'list': ('Lists', 'BaseDataPreprocessor', (2, 6, 8, 8)),
    'tuple': ('Lists', 'BaseDataPreprocessor', (2, 6, 8, 8)),
    'dict': ('OneSampleForAll', 'OneDict', (2, 6, 8, 8)),
}


@pytest.mark.parametrize('tap', ['neck.convs.*', 'backbone'])
@pytest.mark.parametrize('form', FORMS)
def test_other_forms_of_a_batch(tmp_path, form, tap):
    kind, preprocessor, shape = FORMS[form]
    model = dict(type=kind, data_preprocessor=dict(type=preprocessor))
    teacher = dict(config=dict(model, width=8, neck=6), allow_random=True)
    hook = measuring(dict(TERM, student=tap), teacher=teacher)
    config = runner_config(tmp_path, hook, model=model, max_iters=2)
    config.train_dataloader.dataset = dict(type='Items', form=form)
    watch = Watch()
    runner = train(config, watch)
    shape = shape if tap != 'backbone' else (shape[0], 4, *shape[2:])
    assert watch.rows[0].student_shape == shape
    assert len(watch.losses) == 2 and all(loss['loss_gdd'] > 0 for loss in watch.losses)
    saved = torch.load(runner.work_dir + '/iter_2.pth', weights_only=False)
    MODELS.build(model).load_state_dict(saved['state_dict'], strict=True)


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_images_of_other_channels(tmp_path, channels):
    def many(model):
        model.backbone.stem[0] = nn.Conv2d(channels, model.backbone.stem[0].out_channels, 3, 2, 1)
        return model

    class ManyChannels(ToyImages):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return dict(item, inputs=item['inputs'][:1].expand(channels, -1, -1))

    plain = dict(type='ImgDataPreprocessor')
    student, teacher = (
        many(toy_model(seed, data_preprocessor=plain, width=width))
        for seed, width in ((0, 4), (1, 8))
    )
    data = torch.utils.data.DataLoader(
        ManyChannels(), batch_size=2, collate_fn=lambda items: _together(items)
    )
    distiller = mmkd_plugin.attach(student, teacher, [TERM], data=data)
    assert distiller.plan()[0].student_shape == (2, 6, 8, 8)
    batch = student.data_preprocessor(next(iter(data)), True)
    losses = student.train()(**batch, mode='loss')
    assert losses['loss_gdd'] > 0


def _together(items):
    return {key: [item[key] for item in items] for key in items[0]}


def test_a_batch_of_one_sample(tmp_path):
    watch = Watch()
    train(runner_config(tmp_path, measuring(), batch_size=1, max_iters=1), watch)
    assert watch.rows[0].student_shape == (1, 6, 8, 8)


def test_a_size_that_is_said_makes_an_image_up(tmp_path):
    watch = Watch()
    train(runner_config(tmp_path, hook_config(), max_iters=1), watch)
    assert watch.rows[0].student_shape == (1, 6, 8, 8)


def test_padding_is_known_from_samples_in_one_dict_and_of_images_in_a_list():
    """MMYOLO describes the images of a batch by ``img_metas``."""
    own, theirs = (dict(type='ImgDataPreprocessor', mean=[m] * 3, std=[s] * 3) for m, s in PIXELS)
    student, teacher = toy_model(data_preprocessor=own), toy_model(1, data_preprocessor=theirs)
    distiller = mmkd_plugin.attach(student, teacher, [TERM], probe_size=(16, 16))
    images, meta = torch.ones(1, 3, 16, 16), dict(img_shape=(8, 16))
    done = distiller.teacher.convert(images, dict(img_metas=[meta]))
    assert torch.allclose(done[:, :, :8], torch.tensor((1 * 2 + 9 - 7) / 3))
    assert (done[:, :, 8:] == 0).all()
    (image,) = distiller.teacher.convert([images[0]], [BaseDataElement(metainfo=meta)])
    assert torch.equal(image, done[0])
    clip = distiller.teacher.convert(torch.ones(2, 4, 3, 16, 16))
    assert clip.shape == (2, 4, 3, 16, 16) and torch.allclose(clip, done[0, 0, 0, 0])
    with pytest.raises(ValueError, match=r'shape \(1, 2, 3, 4, 8, 8\).*same data_preprocessor'):
        distiller.teacher.convert(torch.ones(1, 2, 3, 4, 8, 8))


PIXELS = ((9, 2), (7, 3))  # mean and std of student and teacher
