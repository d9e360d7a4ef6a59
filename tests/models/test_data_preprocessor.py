"""ClsDataPreprocessor: normalising, the teacher's views, mixup, and bad input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as nnf

from mmkd_plugin.datasets import BatchCenterCrop, BatchRandomCrop, BatchRandomFlip
from mmkd_plugin.models import ClsDataPreprocessor
from mmkd_plugin.teacher.inputs import InputConverter

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
CROP = dict(type='BatchRandomResizedCrop', size=12)
PAD_CROP = dict(type='BatchRandomCrop', size=16, padding=2)
FLIP = dict(type='BatchRandomFlip')


def batch(count: int = 4, side: int = 16) -> dict:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)
    samples = dict(gt_label=torch.arange(count), index=torch.arange(count) + 10)
    return dict(inputs=images, data_samples=samples)


def make(**kwargs) -> ClsDataPreprocessor:
    return ClsDataPreprocessor(MEAN, STD, **kwargs)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images.float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def seeded(preprocessor: ClsDataPreprocessor, data: dict, training: bool = True) -> dict:
    torch.manual_seed(0)
    return preprocessor(data, training)


def test_evaluation_only_normalises():
    data = batch()
    out = make(batch_augments=[CROP, FLIP], mixup=1.0)(data, False)
    assert torch.equal(out['inputs'], normalised(data['inputs']))
    assert set(out['data_samples']) == {'gt_label', 'index'}
    assert set(data['data_samples']) == {'gt_label', 'index'}
    out = make(eval_transforms=[dict(type='BatchCenterCrop', size=8)])(data, False)
    assert torch.equal(out['inputs'], normalised(data['inputs'][:, :, 4:12, 4:12]))
    assert 'data_samples' in make()(dict(inputs=data['inputs']))


def test_range_of_funmatch():
    pixels = torch.tensor([0, 255]).to(torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    out = ClsDataPreprocessor([127.5], [127.5])(dict(inputs=pixels))['inputs']
    assert out[:, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_nothing_is_saved_and_other_models_can_convert():
    preprocessor = make()
    assert not preprocessor.state_dict()
    assert InputConverter(preprocessor, make()).is_identity
    other = ClsDataPreprocessor([0.0], [255.0])
    image = batch()['inputs']
    converted = InputConverter(preprocessor, other)(preprocessor(batch())['inputs'])
    assert torch.allclose(converted, image / 255, atol=1e-6)


def test_augmentation_is_the_chain_in_order():
    data = batch()
    out = seeded(make(batch_augments=[PAD_CROP, FLIP]), data)
    torch.manual_seed(0)
    expected = BatchRandomFlip()(BatchRandomCrop(16, 2)(data['inputs']))
    assert torch.equal(out['inputs'], normalised(expected))
    assert out['data_samples']['gt_label'].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('chain', [[CROP, FLIP], [PAD_CROP, FLIP], [FLIP]])
def test_teacher_view_same_is_the_same_part_at_another_size(chain):
    data = batch(8)
    smooth = nnf.interpolate(batch(8, 4)['inputs'].float(), (16, 16), mode='bicubic')
    data['inputs'] = smooth.clamp(0, 255).to(torch.uint8)
    plain = seeded(make(batch_augments=chain), data)
    out = seeded(make(batch_augments=chain, teacher_view=dict(mode='same', size=24)), data)
    assert torch.equal(out['inputs'], plain['inputs'])  # no further draw
    teacher = out['data_samples']['teacher_inputs']
    assert teacher.shape == (8, 3, 24, 24)
    back = nnf.interpolate(teacher, out['inputs'].shape[2:], mode='bilinear', antialias=True)
    assert (back - out['inputs'])[..., 1:-1, 1:-1].abs().mean() < 0.2  # of a deviation of about 1
    # at the student's own size there is one tensor for both
    size = out['inputs'].shape[2]
    view = dict(mode='same', size=size)
    out = seeded(make(batch_augments=chain, teacher_view=view), data)
    assert 'teacher_inputs' not in out['data_samples']


def test_teacher_view_fixed_is_not_augmented():
    data = batch()
    view = dict(mode='fixed', size=12)
    out = seeded(make(batch_augments=[CROP, FLIP], teacher_view=view), data)
    expected = normalised(BatchCenterCrop(12)(data['inputs']))
    assert torch.equal(out['data_samples']['teacher_inputs'], expected)
    view = dict(mode='fixed', size=8, resize=10)
    out = seeded(make(batch_augments=[CROP], teacher_view=view), data)
    assert out['data_samples']['teacher_inputs'].shape == (4, 3, 8, 8)
    out = seeded(make(batch_augments=[CROP], teacher_view=dict(mode='fixed')), data)
    assert torch.equal(out['data_samples']['teacher_inputs'], normalised(data['inputs']))


def test_teacher_view_independent_is_another_draw():
    data = batch()
    plain = seeded(make(batch_augments=[CROP, FLIP]), data)
    out = seeded(make(batch_augments=[CROP, FLIP], teacher_view=dict(mode='independent')), data)
    teacher = out['data_samples']['teacher_inputs']
    assert torch.equal(out['inputs'], plain['inputs'])
    assert teacher.shape == out['inputs'].shape and not torch.equal(teacher, out['inputs'])
    view = dict(mode='independent', size=20)
    out = seeded(make(batch_augments=[CROP], teacher_view=view), data)
    assert out['data_samples']['teacher_inputs'].shape == (4, 3, 20, 20)


def test_mixup_mixes_with_the_previous_image():
    data = batch()
    out = seeded(make(mixup=1.0), data)
    lam = out['data_samples']['mixed_lam']
    assert lam.shape == () and 0.5 <= lam <= 1
    x = normalised(data['inputs'])
    assert torch.allclose(out['inputs'], lam * x + (1 - lam) * x.roll(1, 0), atol=1e-5)
    assert out['data_samples']['gt_label'].tolist() == [0, 1, 2, 3]
    assert out['data_samples']['mixed_label'].tolist() == [3, 0, 1, 2]
    off = seeded(make(mixup=0), data)['data_samples']
    assert 'mixed_lam' not in off and 'mixed_label' not in off


def test_mixup_of_the_example_in_the_paper_notes(monkeypatch):
    """Raw 0.3 folds to 0.7."""
    monkeypatch.setattr(torch.distributions.Beta, 'sample', lambda self: torch.tensor(0.3))
    images = torch.tensor([[1.0, 0], [0, 2], [4, 4]])[:, None, None].expand(3, 3, 1, 2)
    out = ClsDataPreprocessor([0.0], [1.0], mixup=1.0)(dict(inputs=images), True)
    expected = torch.tensor([[1.9, 1.2], [0.3, 1.4], [2.8, 3.4]])
    assert torch.allclose(out['inputs'][:, 0, 0], expected)


@pytest.mark.parametrize('mode', ['same', 'fixed', 'independent'])
def test_both_views_are_mixed_alike(mode):
    view = dict(mode=mode, size=10)
    out = seeded(make(mixup=1.0, batch_augments=[CROP], teacher_view=view), batch())
    plain = seeded(make(batch_augments=[CROP], teacher_view=view), batch())
    lam = out['data_samples']['mixed_lam']
    for mixed, x in (
        (out['inputs'], plain['inputs']),
        (out['data_samples']['teacher_inputs'], plain['data_samples']['teacher_inputs']),
    ):
        assert torch.allclose(mixed, lam * x + (1 - lam) * x.roll(1, 0), atol=1e-5)


def test_folded_factors_cover_half_to_one():
    preprocessor = make(mixup=1.0)
    torch.manual_seed(0)
    drawn = torch.stack([preprocessor._draw_lam(torch.zeros(1)) for _ in range(500)])
    assert drawn.min() >= 0.5 and drawn.max() <= 1
    assert abs(drawn.mean() - 0.75) < 0.03 and len(drawn.unique()) == 500


def test_the_factor_is_that_of_rank_0(monkeypatch):
    def from_rank_0(tensor, src):
        assert src == 0
        tensor.fill_(0.875)

    monkeypatch.setattr('mmkd_plugin.models.data_preprocessor.broadcast', from_rank_0)
    assert make(mixup=1.0)(batch(), True)['data_samples']['mixed_lam'] == 0.875


def test_mixing_can_be_suspended():
    preprocessor = make(mixup=1.0, batch_augments=[FLIP])
    with preprocessor.without_mixup():
        assert 'mixed_lam' not in preprocessor(batch(), True)['data_samples']
    assert 'mixed_lam' in preprocessor(batch(), True)['data_samples']


def test_a_view_made_by_the_workers_is_normalised_and_mixed():
    data = batch()
    data['teacher_inputs'] = batch(4, 24)['inputs']
    out = make(mixup=1.0)(data, True)['data_samples']
    x, lam = normalised(data['teacher_inputs']), out['mixed_lam']
    assert torch.allclose(out['teacher_inputs'], lam * x + (1 - lam) * x.roll(1, 0), atol=1e-5)
    assert 'teacher_inputs' not in make()(data, False)['data_samples']
    for extra in (dict(batch_augments=[FLIP]), dict(teacher_view=dict(mode='fixed'))):
        with pytest.raises(ValueError, match="makes a teacher's view"):
            make(**extra)(data, True)


def test_images_in_a_list_are_stacked():
    data = batch()
    data['inputs'] = list(data['inputs'])
    assert make()(data)['inputs'].shape == (4, 3, 16, 16)


def test_mixup_of_one_image_is_refused():
    for count in (1, 0):
        with pytest.raises(ValueError, match=f'this one has {count}. Set drop_last=True'):
            make(mixup=1.0)(batch(count), True)
    assert make(mixup=1.0)(batch(1), False)['inputs'].shape[0] == 1


@pytest.mark.parametrize(
    'kwargs,message',
    [
        (dict(std=[0, 1, 1]), 'std must be 3 numbers .* above 0'),
        (dict(mean=[1, 2]), 'mean must be 3 numbers'),
        (dict(mixup=-1), 'mixup must be a number of at least 0'),
        (dict(mixup='yes'), 'mixup must be'),
        (dict(teacher_view='same'), "dict with a 'mode'"),
        (dict(teacher_view=dict(mode='smae')), "did you mean 'same'"),
        (dict(teacher_view=dict(mode='same')), 'needs size'),
        (dict(teacher_view=dict(mode='same', sise=3)), "unknown key 'sise'.*'size'"),
        (dict(teacher_view=dict(mode='independent', resize=3)), "unknown key 'resize'"),
        (dict(teacher_view=dict(mode='fixed', size=0)), 'size must be'),
        (dict(batch_augments=[dict(type='Flip')]), r'batch_augments\[0\]'),
        (dict(eval_transforms=[dict(type='Flip')]), r'eval_transforms\[0\]'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClsDataPreprocessor(**{**dict(mean=MEAN, std=STD), **kwargs})


@pytest.mark.parametrize('inputs', [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), 'text'])
def test_bad_inputs(inputs):
    with pytest.raises(ValueError, match='inputs must be one tensor .*whole_batch'):
        make()(dict(inputs=inputs))


def test_one_sample_per_image_is_not_what_it_takes():
    data = batch(2)
    data['data_samples'] = [dict(gt_label=0), dict(gt_label=1)]
    with pytest.raises(ValueError, match='data_samples must be one dict .*list.*whole_batch'):
        make()(data, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('mode', ['same', 'fixed', 'independent'])
def test_the_host_never_waits_for_the_gpu(mode):
    chain = [dict(type='BatchRandomCrop', size=14, padding=2), CROP, FLIP]
    view = dict(mode=mode, size=10)
    preprocessor = make(batch_augments=chain, mixup=1.0, teacher_view=view).cuda()
    data = preprocessor.cast_data(batch())  # copying from ordinary memory does wait
    preprocessor(data, True)
    torch.cuda.set_sync_debug_mode('error')
    try:
        out = preprocessor(data, True)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert out['inputs'].is_cuda and out['data_samples']['mixed_lam'].is_cuda
