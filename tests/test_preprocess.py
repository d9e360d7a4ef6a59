"""Input conversion: the teacher gets what its own data preprocessor would have made.

Every comparison is with mmdet's ``DetDataPreprocessor`` on the same raw images, padding included.
"""

from __future__ import annotations

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample

from mmkd_plugin.teacher.inputs import InputConverter

PYTORCH = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
RAW = dict()  # YOLOX: 0..255, BGR
RAW_RGB = dict(bgr_to_rgb=True)
GREY_STATS = dict(mean=[114.0], std=[50.0])

STYLES = dict(pytorch=PYTORCH, caffe=CAFFE, raw=RAW, raw_rgb=RAW_RGB, grey_stats=GREY_STATS)


def images() -> list:
    """Images of different size: both dimensions get padded in one batch."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        for h, w in ((37, 64), (64, 41), (20, 20))
    ]


def preprocess(preprocessor) -> tuple:
    """What the training loop makes of the raw images."""
    data = dict(
        inputs=images(),
        data_samples=[DetDataSample(metainfo=dict(img_shape=tuple(i.shape[1:]))) for i in images()],
    )
    batch = preprocessor(data, training=True)
    return batch['inputs'], batch['data_samples']


def make(style: str, **kwargs) -> DetDataPreprocessor:
    return DetDataPreprocessor(**STYLES[style], pad_size_divisor=32, **kwargs)


@pytest.mark.parametrize('student', STYLES)
@pytest.mark.parametrize('teacher', STYLES)
def test_equals_the_teacher_s_own_preprocessor(student, teacher):
    student, teacher = make(student), make(teacher)
    batch, samples = preprocess(student)
    expected, _ = preprocess(teacher)
    converted = InputConverter(student, teacher)(batch, samples)
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize('student, teacher', [('pytorch', 'caffe'), ('raw', 'pytorch')])
@pytest.mark.parametrize('pads', [(0, 114), (114, 0), (7, 7)])
def test_padding_is_the_teacher_s(student, teacher, pads):
    student = make(student, pad_value=pads[0])
    teacher = make(teacher, pad_value=pads[1])
    batch, samples = preprocess(student)
    expected, _ = preprocess(teacher)
    converted = InputConverter(student, teacher)(batch, samples)
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=2e-4)
    assert (converted[2, :, 20:] == pads[1]).all() and (converted[2, :, :, 20:] == pads[1]).all()


def test_other_padding_alone_is_converted_too():
    student, teacher = make('pytorch', pad_value=0), make('pytorch', pad_value=3)
    batch, samples = preprocess(student)
    before = batch.clone()
    converted = InputConverter(student, teacher)(batch, samples)
    assert torch.equal(converted, preprocess(teacher)[0])
    assert torch.equal(batch, before), "the student's batch was changed"


@pytest.mark.parametrize('style', STYLES)
def test_equal_preprocessors_return_the_same_tensor(style):
    batch, samples = preprocess(make(style))
    converter = InputConverter(make(style), make(style))
    assert converter.is_identity
    assert converter(batch, samples) is batch


@pytest.mark.parametrize('pair', [('pytorch', 'caffe'), ('raw', 'raw_rgb'), ('raw', 'pytorch')])
def test_the_student_s_batch_is_never_changed(pair):
    student, teacher = make(pair[0]), make(pair[1])
    batch, samples = preprocess(student)
    before = batch.clone()
    converter = InputConverter(student, teacher)
    assert not converter.is_identity
    converter(batch, samples)
    assert torch.equal(batch, before)


def test_models_without_preprocessor_or_samples():
    assert InputConverter(None, None).is_identity
    batch, _ = preprocess(make('raw'))
    # no samples (a classifier): the whole tensor is converted
    converted = InputConverter(None, make('pytorch'))(batch)
    mean, std = (torch.tensor(PYTORCH[k]).view(3, 1, 1) for k in ('mean', 'std'))
    torch.testing.assert_close(converted, (batch.flip(1) - mean) / std)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_the_dtype_stays(dtype):
    student, teacher = make('pytorch'), make('caffe')
    batch, samples = preprocess(student)
    converted = InputConverter(student, teacher)(batch.to(dtype), samples)
    assert converted.dtype == dtype
    limit = 0.2 if dtype == torch.float16 else 2e-4  # of 255
    torch.testing.assert_close(converted.float(), preprocess(teacher)[0], rtol=0, atol=limit)


@pytest.mark.parametrize('flag', ['channel_conversion', 'to_rgb'])
def test_the_channel_order_of_other_packages_is_read(flag):
    """mmseg and mmpretrain store the same facts under other names."""

    class Other:
        mean = torch.zeros(3, 1, 1)
        std = torch.ones(3, 1, 1)
        pad_val = 5

    other = Other()
    setattr(other, flag, True)
    batch, samples = preprocess(make('raw'))
    converted = InputConverter(make('raw'), other)(batch, samples)
    assert torch.equal(converted[0, :, :37], batch[0, :, :37].flip(0))
    assert (converted[0, :, 37:] == 5).all()
