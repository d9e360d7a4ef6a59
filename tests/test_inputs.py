"""What the teacher's first layer gets, in runs and attachments as users write them.

The right value is always what the teacher's own preprocessing makes of the same raw images.
"""

from __future__ import annotations

import copy

import pytest
import torch
from detectors import IMAGE, model_config, run_config
from mmcv.transforms import TRANSFORMS, BaseTransform
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from toys import (
    hook_config,
    runner_config,
    toy_batch,
    toy_classifier,
    toy_model,
    train,
)

import mmkd_plugin
from mmkd_plugin.images.pixels import Pixels, image_channels
from mmkd_plugin.images.size import image_size
from mmkd_plugin.model_config import load_model_config
from mmkd_plugin.teacher import Teacher, build_model
from mmkd_plugin.teacher.inputs import InputConverter
from mmkd_plugin.teacher.self_teacher import SelfTeacher

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
UNIT = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], range=1, order='rgb')
NORMALISE = dict(type='mmcv.Normalize', mean=MEAN, std=STD, to_rgb=True)
GDD = dict(loss=dict(type='GDDLoss'), student='neck.fpn_convs.*.conv')


def raw_images(n: int = 2, size: tuple = (16, 16), channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, *size), generator=generator, dtype=torch.uint8)
    return images.float()


def first_input(model: nn.Module) -> list:
    """What the first convolution of a model is given from now on."""
    seen = []
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    return seen


# -- a module that does not say what it was trained on ---------------------------------------------


def bare() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())


TAPS = dict(loss=dict(type='GDDLoss'), student='neck.convs.0', teacher='0')


def toy_student(**preprocessor) -> nn.Module:
    preprocessor = dict(mean=MEAN, std=STD, bgr_to_rgb=True) | preprocessor
    return toy_model(data_preprocessor=dict(type='ImgDataPreprocessor', **preprocessor))


def one_step(student: nn.Module, raw: torch.Tensor) -> dict:
    images = student.data_preprocessor(dict(inputs=list(raw)))['inputs']
    return student.train()(images, toy_batch(len(raw))[1], mode='loss')


def test_a_bare_module_is_refused_with_the_line_to_write():
    with pytest.raises(ValueError) as error:
        mmkd_plugin.attach(toy_student(), bare(), [TAPS])
    line = 'inputs=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], range=255, '
    assert line + "order='rgb')" in str(error.value)
    student = toy_student()
    with pytest.raises(ValueError):
        mmkd_plugin.attach(student, bare(), [TAPS])
    assert not hasattr(student, 'distiller') and not student._forward_hooks


@pytest.mark.parametrize('way', ['dict', 'handle'])
@pytest.mark.parametrize('rgb', [True, False])
def test_a_bare_module_gets_what_is_stated(way, rgb):
    teacher = bare()
    seen = first_input(teacher)
    given = (
        dict(model=teacher, inputs=UNIT) if way == 'dict' else Teacher(teacher, inputs=dict(UNIT))
    )
    caffe = dict(mean=MEAN[::-1], std=[1.0] * 3, bgr_to_rgb=False)
    student = toy_student(**({} if rgb else caffe))
    mmkd_plugin.attach(student, given, [TAPS])
    raw = raw_images()  # BGR, as files are loaded
    one_step(student, raw)
    mean, std = (torch.tensor(UNIT[k]).view(3, 1, 1) for k in ('mean', 'std'))
    torch.testing.assert_close(seen[-1], (raw.flip(1) / 255 - mean) / std, rtol=1e-4, atol=1e-4)


def test_one_mean_for_all_channels_still_has_an_order():
    grey = dict(mean=0.5, std=0.5, range=1)
    with pytest.raises(ValueError, match='teacher.inputs has no order'):
        mmkd_plugin.attach(toy_student(), Teacher(bare(), inputs=grey), [TAPS])
    teacher = bare()
    seen = first_input(teacher)
    student = toy_student()
    mmkd_plugin.attach(student, Teacher(teacher, inputs=dict(grey, order='rgb')), [TAPS])
    one_step(student, raw_images())
    torch.testing.assert_close(seen[-1], raw_images().flip(1) / 127.5 - 1, rtol=0, atol=1e-4)


def test_stated_raw_pixels():
    teacher = bare()
    seen = first_input(teacher)
    student = toy_student()
    mmkd_plugin.attach(student, Teacher(teacher, inputs=dict(range=255, order='bgr')), [TAPS])
    raw = raw_images()
    one_step(student, raw)
    torch.testing.assert_close(seen[-1], raw, rtol=0, atol=1e-2)


def test_models_that_change_no_pixel_need_no_word():
    student, teacher = toy_model(), bare()
    seen = first_input(teacher)
    mmkd_plugin.attach(student, teacher, [TAPS])
    one_step(student, raw_images() / 255)  # whatever it is, both see the same
    assert torch.equal(seen[-1], raw_images() / 255)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(range=2), 'range=2 must be 255 or 1'),
        (dict(range=True), 'range=True must be 255 or 1'),
        (dict(range=255), 'Write range=1'),
        (dict(mean=MEAN, std=STD), 'Write range=255'),
        (dict(order='RGB'), "order='RGB' must be 'rgb' or 'bgr'"),
        (dict(order=None), "order=None must be 'rgb' or 'bgr'"),
        (dict(std=None), 'only one of mean and std'),
        (dict(std=[0.2, 0.0, 0.2]), 'must be above 0'),
        (dict(std=[0.2, 0.2]), '3 values in mean, but 2 in std'),
        (dict(mean='0.5'), "mean='0.5' must be a list of numbers"),
        (dict(means=[0.5]), 'means'),
    ],
)
def test_wrong_statements_are_refused_by_their_key(change, message):
    with pytest.raises(ValueError) as error:
        Teacher(bare(), inputs=UNIT | change)
    assert message in str(error.value) and 'teacher.inputs' in str(error.value)
    with pytest.raises(ValueError, match='student_inputs'):
        mmkd_plugin.attach(toy_student(), toy_model(1), [TAPS], student_inputs=UNIT | change)


def test_images_that_are_no_pixels_are_noticed_in_the_first_step():
    """attach sees no data loader: a preprocessor without mean and std means pixels of 0 to 255."""
    student = toy_student(mean=None, std=None, bgr_to_rgb=False)
    teacher = toy_model(
        1, data_preprocessor=dict(type='ImgDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True)
    )
    term = dict(loss=dict(type='GDDLoss'), student='neck.convs.0')
    normalised = (raw_images().flip(1) - torch.tensor(MEAN).view(3, 1, 1)) / 58
    mmkd_plugin.attach(student, copy.deepcopy(teacher), [term])
    with pytest.raises(ValueError, match='student_inputs=dict'):
        one_step(student, normalised)
    mmkd_plugin.detach(student)
    for scale in (1, 255):  # ToTensor, and no step at all
        mmkd_plugin.attach(student, copy.deepcopy(teacher), [term])
        if scale == 1:
            with pytest.raises(ValueError, match='between 0 and 1'):
                one_step(student, raw_images() / 255)
        else:
            one_step(student, raw_images())
        mmkd_plugin.detach(student)
    stated = dict(mean=MEAN, std=[58.0] * 3, range=255, order='rgb')
    mmkd_plugin.attach(student, teacher, [term], student_inputs=stated)
    seen = first_input(teacher)
    one_step(student, normalised)
    own = teacher.data_preprocessor(dict(inputs=list(raw_images())))['inputs']
    torch.testing.assert_close(seen[-1], own, rtol=1e-4, atol=1e-4)


# -- runs of MMDetection ---------------------------------------------------------------------------


class Watch(Hook):
    """Keeps the raw images of a run and what the teacher's first layer gets."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.teacher = runner.model.distiller.teacher.model
        self.seen = first_input(self.teacher)
        self.raw, self.losses = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.raw.append([image.clone() for image in data_batch['inputs']])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items() if 'loss' in k})


def gfl(width: int, preprocessor: dict, **changes) -> dict:
    model = model_config('GFL', width)
    model.data_preprocessor = dict(type='DetDataPreprocessor', **preprocessor)
    for key, value in changes.items():
        model.backbone[key] = value
    return model


def run(
    tmp_path, root, student, teacher, *terms, steps=(), scale=(IMAGE, IMAGE), wrap=dict, **hook
):
    """Two iterations; ``steps`` come before the pack step, ``teacher`` is a model or a config."""
    hook = dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(config=teacher if 'model' in teacher else dict(model=teacher))
        | dict(checkpoint=None, allow_random=True)
        | hook.pop('said', {}),
        terms=list(terms) or [GDD],
        **hook,
    )
    hook['teacher']['config'].setdefault('default_scope', 'mmdet')
    config = run_config(
        student,
        root / 'annotations' / 'train.json',
        root / 'train',
        tmp_path,
        False,
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
        custom_hooks=[hook],
        experiment_name=f'inputs_{tmp_path.name}',
    )
    data = config.train_dataloader.dataset
    data.pipeline[2].scale = scale
    data.pipeline[-1:-1] = list(steps)
    config.train_dataloader.dataset = wrap(data)
    runner, watch = Runner.from_cfg(config), Watch()
    runner.register_hook(watch)
    runner.train()
    return watch


def normalised(raw: list, mean=MEAN, std=STD) -> torch.Tensor:
    mean, std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    return (torch.stack(raw).float().flip(1) - mean) / std


NO_STATISTICS = dict(mean=None, std=None, bgr_to_rgb=False, pad_size_divisor=32)
STATISTICS = dict(mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32)


def outside(data: dict) -> dict:
    """The steps after resizing belong to a wrapper, as with Mosaic."""
    inner = dict(data, pipeline=data['pipeline'][:3])
    return dict(type='MultiImageMixDataset', dataset=inner, pipeline=data['pipeline'][3:])


WRAPPERS = dict(
    plain=dict,
    concat=lambda data: dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[data, copy.deepcopy(data)]),
    ),
    outside=outside,
)


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_a_pipeline_that_normalises_is_read(wrapper, digits_root, tmp_path):
    student, teacher = gfl(16, NO_STATISTICS), gfl(16, dict(STATISTICS, mean=[0.0] * 3))
    wrap = WRAPPERS[wrapper]
    watch = run(tmp_path, digits_root, student, teacher, steps=[NORMALISE], wrap=wrap)
    # raw is what the pipeline gave, here normalised for the student
    back = torch.stack(watch.raw[-1]) * torch.tensor(STD).view(3, 1, 1)
    pixels = (back + torch.tensor(MEAN).view(3, 1, 1)).round()
    expected = pixels / torch.tensor(STD).view(3, 1, 1)
    assert 0 <= pixels.min() and pixels.max() > 100
    torch.testing.assert_close(watch.seen[-1], expected, rtol=1e-4, atol=1e-3)


def test_a_usual_teacher_sees_what_such_a_student_sees(digits_root, tmp_path):
    student, teacher = gfl(16, NO_STATISTICS), gfl(16, STATISTICS)
    watch = run(tmp_path, digits_root, student, teacher, steps=[NORMALISE])
    torch.testing.assert_close(watch.seen[-1], torch.stack(watch.raw[-1]), rtol=1e-4, atol=1e-4)


def test_a_teacher_whose_pipeline_normalised_is_read_from_its_config(digits_root, tmp_path):
    """The other way round: the student's preprocessor has mean and std, the teacher's has none."""
    teacher = gfl(16, NO_STATISTICS)
    pipeline = [dict(type='LoadImageFromFile'), NORMALISE, dict(type='PackDetInputs')]
    config = dict(model=teacher, train_dataloader=dict(dataset=dict(pipeline=pipeline)))
    watch = run(tmp_path, digits_root, gfl(16, dict(STATISTICS, std=[1.0] * 3)), config)
    torch.testing.assert_close(watch.seen[-1], normalised(watch.raw[-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('said', [{}, dict(inputs=dict(range=255, order='bgr'))])
def test_a_teacher_of_whom_nothing_is_known_is_refused(said, digits_root, tmp_path):
    """Both have no mean and std; the student's pipeline normalises, the teacher's is not given."""
    models = gfl(16, NO_STATISTICS), gfl(16, NO_STATISTICS)
    arguments = dict(steps=[NORMALISE], said=said)
    if not said:
        with pytest.raises(ValueError, match=r'cannot be established.*inputs=dict\(mean=\[123.675'):
            run(tmp_path, digits_root, *models, **arguments)
        return
    watch = run(tmp_path, digits_root, *models, **arguments)
    back = torch.stack(watch.raw[-1]) * torch.tensor(STD).view(3, 1, 1)
    pixels = (back + torch.tensor(MEAN).view(3, 1, 1)).flip(1)
    torch.testing.assert_close(watch.seen[-1], pixels, rtol=0, atol=0.01)


@TRANSFORMS.register_module(force=True)
class ScaleToUnit(BaseTransform):
    """A step of the user's own that says nothing of what it does."""

    def transform(self, results):
        results['img'] = results['img'].astype('float32') / 255
        return results


@TRANSFORMS.register_module(force=True)
class NormalizeEachImage(ScaleToUnit):
    pass


@pytest.mark.parametrize(
    'step, message',
    [
        ('ScaleToUnit', r'first batch lies between 0\.'),
        ('NormalizeEachImage', 'The step NormalizeEachImage of the pipeline normalises'),
    ],
)
def test_steps_that_cannot_be_read_are_refused(step, message, digits_root, tmp_path):
    student, teacher = gfl(16, NO_STATISTICS), gfl(16, STATISTICS)
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, digits_root, student, teacher, steps=[dict(type=step)])
    assert 'student_inputs=dict(mean=' in str(error.value)
    if step == 'ScaleToUnit':
        said = dict(range=1, order='bgr')
        where = tmp_path / 'said'
        watch = run(
            where, digits_root, student, teacher, steps=[dict(type=step)], student_inputs=said
        )
        raw = [255 * image for image in watch.raw[-1]]
        torch.testing.assert_close(watch.seen[-1], normalised(raw), rtol=1e-4, atol=1e-3)


class Silent(DetDataPreprocessor):
    """Normalises without saying how."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        return dict(data, inputs=data['inputs'] / 127.5 - 1)


def test_a_preprocessor_that_says_nothing_is_noticed(digits_root, tmp_path):
    MODELS.register_module(module=Silent, force=True)
    student, teacher = gfl(16, NO_STATISTICS), gfl(16, STATISTICS)
    student.data_preprocessor.type = 'Silent'
    with pytest.raises(ValueError, match='first batch lies between -'):
        run(tmp_path, digits_root, student, teacher)


def test_an_own_teacher_of_last_epoch_sees_the_student_s_images():
    """Whatever a pipeline makes of them: the teacher is the same network."""
    student = Pixels(
        mean=(3.0,), std=(2.0,), order='rgb', files='bgr', source='pipeline', early=True
    )
    for model in (toy_model(), toy_student()):
        assert InputConverter(student, SelfTeacher(model).pixels(student)).is_identity


# -- grey images -----------------------------------------------------------------------------------


@pytest.mark.parametrize('term', ['gdd', 'kd'])
def test_grey_images_under_a_grey_teacher(term, digits_root, tmp_path):
    terms = dict(gdd=GDD, kd=dict(loss=dict(type='KDLoss'), student='cls_logits'))
    one = dict(pad_size_divisor=32, mean=[114.0], std=[57.0])
    student = gfl(16, one, in_channels=1)
    teacher = gfl(32, dict(one, mean=[127.5], std=[60.0]), in_channels=1)

    def grey(data):
        data['pipeline'][0] = dict(type='LoadImageFromFile', color_type='grayscale')
        return data

    watch = run(tmp_path, digits_root, student, teacher, terms[term], wrap=grey)
    raw = torch.stack(watch.raw[-1]).float()
    assert raw.shape[1] == 1
    torch.testing.assert_close(watch.seen[-1], (raw - 127.5) / 60, rtol=1e-4, atol=1e-4)
    assert all(value == value for loss in watch.losses for value in loss.values())


@pytest.mark.parametrize('channels', [1, 4, 13])
def test_any_number_of_channels(channels):
    def model(width):
        made = toy_model(width, width=width)
        made.backbone.stem[0] = nn.Conv2d(channels, width, 3, 2, 1)
        return made

    student = model(4)
    teacher = model(8)
    seen = first_input(teacher)
    term = dict(loss=dict(type='GDDLoss'), student='neck.convs.*')
    mmkd_plugin.attach(student, teacher, [term])
    raw = raw_images(channels=channels)
    assert torch.isfinite(one_step(student, raw)['loss_gdd'])
    assert torch.equal(seen[-1], raw)


def test_other_channels_are_refused():
    student = toy_model()
    student.backbone.stem[0] = nn.Conv2d(1, 4, 3, 2, 1)
    with pytest.raises(ValueError, match='images of 1 channel, the teacher .* of 3.*in_channels=3'):
        mmkd_plugin.attach(student, toy_model(1), [dict(TAPS, teacher='neck.convs.0')])


def test_yolox_cuts_images_of_three_channels(digits_root):
    register_all_modules(init_default_scope=False)
    model = build_model(load_model_config(dict(model=model_config('YOLOX'), default_scope='mmdet')))
    assert image_channels(model) == 3


# -- sizes -----------------------------------------------------------------------------------------


def test_a_teacher_that_needs_padding_gets_it(digits_root, tmp_path):
    """YOLOX joins maps that fit together in images of multiples of 32 only."""
    student = gfl(16, dict(STATISTICS, pad_size_divisor=1))
    teacher = model_config('YOLOX', 32)
    teacher.data_preprocessor.pad_value = 114
    term = dict(
        loss=dict(type='GDDLoss'),
        student=dict(path='neck', levels=[0, 1, 2]),
        teacher='neck.out_convs.*.conv',
    )
    watch = run(tmp_path, digits_root, student, teacher, term, scale=(75, 90))
    raw = torch.stack(watch.raw[-1]).float()
    assert raw.shape[2:] == (90, 75)
    # Focus has stacked every second pixel
    seen = watch.seen[-1]
    assert seen.shape[2:] == (48, 48)
    torch.testing.assert_close(seen[:, :3, :45, :37], raw[:, :, ::2, :74:2], rtol=0, atol=0.01)
    assert (seen[:, :, 45:] == 114).all() and (seen[:, :3, :, 38:] == 114).all()
    assert len(watch.losses) == 2 and all(loss['loss_gdd'] > 0 for loss in watch.losses)


def test_padded_maps_are_cut_to_the_student_s():
    """The same network: what it sees of a padded image is, away from the edge, what it sees."""
    register_all_modules(init_default_scope=False)

    def build(divisor):
        config = dict(model=gfl(16, dict(STATISTICS, pad_size_divisor=divisor)))
        return build_model(load_model_config(dict(config, default_scope='mmdet')))

    student, teacher = build(1), build(32)
    teacher.load_state_dict(student.state_dict())
    terms = [
        dict(loss=dict(type='PKDLoss'), student='neck', name='pkd'),
        dict(loss=dict(type='KDLoss'), student='cls_logits'),
    ]
    distiller = mmkd_plugin.attach(student, teacher, terms, probe_size=(90, 75))
    points = distiller.terms[0].teacher.points
    images = torch.randn(2, 3, 90, 75, generator=torch.Generator().manual_seed(0))
    samples = [DetDataSample(metainfo=dict(img_shape=(90, 75))) for _ in images]
    distiller.teacher.run(images, samples)
    captures = distiller.teacher.recorder.read(points)
    plain = student.eval().extract_feat(images)
    assert [c.tensor.shape for c in captures] == [x.shape for x in plain]
    assert [tuple(x.shape[2:]) for x in plain] == [(12, 10), (6, 5), (3, 3), (2, 2), (1, 1)]
    torch.testing.assert_close(captures[0].tensor[:, :, 0, 0], plain[0][:, :, 0, 0], atol=2, rtol=1)


def test_what_sees_an_image_as_a_whole_is_not_padded():
    register_all_modules(init_default_scope=False)
    solo = [model_config('SOLO', width) for width in (16, 32)]
    solo[0].data_preprocessor.pad_size_divisor = 1
    student, teacher = (
        build_model(load_model_config(dict(model=model, default_scope='mmdet'))) for model in solo
    )
    term = dict(loss=dict(type='KDLoss'), student='cls_logits')
    with pytest.raises(ValueError, match=r'multiples of 32.*pad_size_divisor=32'):
        mmkd_plugin.attach(student, teacher, [term])


class Only32(nn.Module):
    """A backbone like an MLP-Mixer: it takes one size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, 4)
        self.mix = nn.Linear(64, 64)

    def forward(self, x):
        assert x.shape[2:] == (32, 32), f'made for 32 x 32, not {tuple(x.shape[2:])}'
        x = self.conv(x)
        return (self.mix(x.flatten(2)).unflatten(2, (8, 8)),)


def fixed_model(width: int, **changes) -> nn.Module:
    model = toy_classifier(width=width)
    model.backbone = Only32(2 * width)
    for name, value in changes.items():
        setattr(model.backbone, name, value)
    return model


MAPS = dict(loss=dict(type='GDDLoss'), student='backbone')


def test_networks_of_one_size_say_it_or_name_the_key():
    with pytest.raises(ValueError, match=r'student \(ToyClassifier\).*256 x 256.*probe_size'):
        mmkd_plugin.attach(fixed_model(4), fixed_model(8), [MAPS])
    mmkd_plugin.attach(fixed_model(4), fixed_model(8), [MAPS], probe_size=(32, 32))
    student = fixed_model(4, img_size=32)
    mmkd_plugin.attach(student, fixed_model(8), [MAPS])
    with pytest.raises(ValueError, match=r'teacher \(ToyClassifier\).*64 x 64.*probe_size'):
        mmkd_plugin.attach(toy_classifier(), fixed_model(8), [MAPS], probe_size=(64, 64))


def test_a_run_measures_on_its_data_or_at_the_size_that_is_said(tmp_path):
    def probed(*hooks, **changes):
        watch = Plan()
        train(runner_config(tmp_path, *hooks, max_iters=1, **changes), watch)
        return watch.rows[0].student_shape

    hook = hook_config()
    del hook['probe_size']
    loader = runner_config(tmp_path).train_dataloader
    loader.dataset.size = 24
    assert probed(hook, train_dataloader=loader) == (2, 6, 12, 12)
    assert probed(dict(hook, probe_size=(64, 32)), train_dataloader=loader) == (1, 6, 32, 16)


def test_a_config_of_data_says_the_size_of_a_made_up_image():
    data = dict(type='CocoDataset', pipeline=[RESIZE])
    distiller = mmkd_plugin.attach(
        toy_model(), toy_model(1), [dict(TAPS, teacher='neck.convs.0')], data=data
    )
    assert distiller.plan()[0].student_shape == (1, 6, 50, 100)


class Plan(Hook):
    def before_train(self, runner) -> None:
        self.rows = runner.model.distiller.plan()


RESIZE = dict(type='Resize', scale=(200, 100))


@pytest.mark.parametrize(
    'steps, preprocessor, size',
    [
        ([RESIZE], {}, (100, 200)),
        ([RESIZE], dict(pad_size_divisor=32), (128, 224)),
        ([dict(RESIZE, keep_ratio=True)], {}, (256, 256)),
        ([RESIZE, dict(type='RandomCrop', crop_size=(64, 80))], {}, (64, 80)),
        ([dict(type='RandomResizedCrop', scale=224)], {}, (224, 224)),
        ([dict(RESIZE, keep_ratio=True), dict(type='Pad', size=(300, 200))], {}, (200, 300)),
        ([RESIZE, dict(type='Pad', size_divisor=64)], {}, (128, 256)),
        ([RESIZE, dict(type='MinIoURandomCrop')], {}, (256, 256)),
        ([RESIZE, dict(type='RandomApply', transforms=[dict(type='Resize', scale=(9, 9))])], {},
         (256, 256)),
        ([dict(type='Compose', transforms=[RESIZE])], {}, (100, 200)),
        ([dict(type='torchvision/RandomResizedCrop', size=96)], {}, (96, 96)),
        ([dict(type='torchvision/Resize', size=96)], {}, (256, 256)),
        ([dict(type='TopdownAffine', input_size=(192, 256))], {}, (256, 192)),
    ],
)  # fmt: skip
def test_the_size_of_a_pipeline(steps, preprocessor, size):
    model = toy_model(data_preprocessor=dict(type='ImgDataPreprocessor', **preprocessor))
    data = dict(type='RepeatDataset', dataset=dict(pipeline=steps))
    assert image_size(model, data) == size


# -- moving ----------------------------------------------------------------------------------------


class OwnTo(type(toy_model())):
    """MMDetection's LD and LAD define these with their own arguments."""

    def to(self, device):
        return super().to(device=device)

    def cuda(self, device):
        return super().cuda(device)


def test_a_teacher_with_a_to_of_its_own_follows_the_student():
    teacher = OwnTo(width=8)
    teacher.register_buffer('steps', torch.tensor(3))
    student = toy_model().double()
    mmkd_plugin.attach(student, teacher, [dict(TAPS, teacher='neck.convs.0')], probe_size=(16, 16))
    assert teacher.backbone.stem[0].weight.dtype == torch.float64
    assert teacher.steps.dtype == torch.int64
    student.float()
    assert teacher.backbone.stem[0].weight.dtype == torch.float32
