"""Recipes on plain modules: families, taps, published weights, and what cannot be paired."""

from __future__ import annotations

import pytest
from torch import nn

from mmkd_plugin import recipes


class Level(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)


class FPN(nn.Module):
    def __init__(self, convs: int, num_outs: int = 5) -> None:
        super().__init__()
        self.fpn_convs = nn.ModuleList(Level() for _ in range(convs))
        self.num_outs = num_outs


class PAFPN(FPN):
    """Its fpn_convs are an intermediate stage, not what the head sees."""

    def __init__(self, convs: int, num_outs: int = 5) -> None:
        super().__init__(convs, num_outs)
        self.pafpn_convs = nn.ModuleList(Level() for _ in range(convs - 1))


class OutConvsNeck(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.out_convs = nn.ModuleList(Level() for _ in range(levels))


def model(*heads: str, neck: nn.Module | None = None) -> nn.Module:
    net = nn.Module()
    net.backbone = nn.Conv2d(3, 8, 1)
    if neck is not None:
        net.neck = neck
    for head in heads:
        setattr(net, head, nn.Conv2d(8, 1, 1))
    return net


LAST_STAGE = dict(path='backbone', levels=[-1])


@pytest.mark.parametrize(
    'heads, family, gdd, mgd, mask_ratio, pkd',
    [
        (['rpn_head', 'roi_head'], 'two-stage', 4, 5e-7, 0.45, 6),
        (['bbox_head'], 'one-stage', 65, 2e-5, 0.65, 10),
        (['bbox_head', 'mask_head'], 'one-stage', 65, 2e-5, 0.65, 10),  # CondInst has boxes
        (['mask_head'], 'mask', 200, 2e-5, 0.65, 6),
        (['panoptic_head'], 'query-mask', 200, 2e-5, 0.65, 6),
        (['decode_head', 'auxiliary_head'], 'semantic', 145, 2e-5, 0.75, 6),
    ],
)
def test_published_numbers_by_family(heads, family, gdd, mgd, mask_ratio, pkd):
    student, teacher = (model(*heads, neck=FPN(4)) for _ in range(2))
    assert recipes.family(student) == family
    assert recipes.resolve('gdd', student, teacher)[0]['weight'] == gdd
    term = recipes.resolve('mgd', student, teacher)[0]
    assert term['weight'] == mgd
    assert term['loss'] == dict(type='MGDLoss', mask_ratio=mask_ratio, normalize='batch')
    assert recipes.resolve('pkd', student, teacher)[0]['weight'] == pkd


def test_gdd_noise_modes():
    net = model('bbox_head', neck=FPN(5))
    assert recipes.resolve('gdd', net, net)[0]['loss']['noise'] == 'channel'
    assert recipes.resolve('gdd-shared', net, net)[0]['loss']['noise'] == 'shared'


@pytest.mark.parametrize('name', recipes.names())
def test_every_recipe_builds_its_loss(name):
    import mmkd_plugin.losses  # noqa: F401
    from mmkd_plugin.registry import build_loss

    for heads in (['roi_head'], ['bbox_head'], ['mask_head'], ['decode_head'], ['head']):
        net = model(*heads, neck=FPN(4))
        (term,) = recipes.resolve(name, net, net)
        assert type(build_loss(term['loss'], 'term')).__name__ == term['loss']['type']
        assert term['weight'] > 0
        assert recipes.source(name, net)
    assert recipes.describe(name)


def test_fpn_with_equal_counts_taps_its_convolutions():
    student, teacher = model('bbox_head', neck=FPN(5)), model('roi_head', neck=FPN(5))
    (term,) = recipes.resolve('gdd', student, teacher)
    assert term['student'] == term['teacher'] == 'neck.fpn_convs.*.conv'
    assert term['weight'] == 65, 'the student decides'


@pytest.mark.parametrize('other', [PAFPN(4, 5), OutConvsNeck(5), nn.Conv2d(8, 8, 1)])
def test_other_necks_tap_the_neck(other):
    student, teacher = model('bbox_head', neck=FPN(5, 5)), model('bbox_head', neck=other)
    (term,) = recipes.resolve('cwd', student, teacher)
    assert term['student'] == term['teacher'] == 'neck'


@pytest.mark.parametrize(
    'neck, other, counts',
    [
        (FPN(5), FPN(4), ('5', '4')),  # equal num_outs, other strides
        (FPN(5), OutConvsNeck(3), ('5', '3')),
        (OutConvsNeck(4), OutConvsNeck(3), ('4', '3')),
    ],
)
def test_different_numbers_of_levels_are_refused(neck, other, counts):
    with pytest.raises(ValueError) as error:
        recipes.resolve('gdd', model('bbox_head', neck=neck), model('bbox_head', neck=other))
    assert f'{counts[0]} ' in str(error.value) and f'with {counts[1]} ' in str(error.value)
    assert 'inspect_model.py' in str(error.value)


def test_semantic_classification_and_neckless_models_use_the_last_stage():
    for heads, neck in (
        (['decode_head'], FPN(4)),
        (['head'], nn.AdaptiveAvgPool2d(1)),
        (['panoptic_head'], None),
    ):
        net = model(*heads, neck=neck)
        (term,) = recipes.resolve('gdd', net, net)
        assert term['student'] == term['teacher'] == LAST_STAGE


def test_one_side_without_neck_uses_the_last_stage_on_both():
    (term,) = recipes.resolve('gdd', model('bbox_head', neck=FPN(5)), model('panoptic_head'))
    assert term['student'] == term['teacher'] == LAST_STAGE


def test_unknown_recipe_names_the_nearest():
    net = model('bbox_head', neck=FPN(5))
    with pytest.raises(ValueError, match="no recipe 'gddd'.*'gdd'.*All recipes: .*pkd"):
        recipes.resolve('gddd', net, net)


def test_a_model_without_known_heads_is_explained():
    with pytest.raises(ValueError, match='its sub-modules: 0, 1.*terms='):
        recipes.resolve('gdd', nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), model('bbox_head'))
    headed = nn.Module()
    headed.bbox_head, headed.trunk = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match='`backbone`, which the student .*bbox_head, trunk'):
        recipes.resolve('gdd', headed, model('bbox_head', neck=FPN(5)))
