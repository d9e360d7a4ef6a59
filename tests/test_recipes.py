"""Recipes on plain modules: families, taps, published weights, and what cannot be paired."""

from __future__ import annotations

import pytest
from torch import nn

from mmkd_plugin import recipes
from mmkd_plugin.recipes import classification, features


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


def terms(name: str, student: nn.Module, teacher: nn.Module, weights='published') -> list:
    return recipes.resolve(name, student, teacher, weights=weights)['terms']


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
    assert terms('gdd', student, teacher)[0]['weight'] == gdd
    term = terms('mgd', student, teacher)[0]
    assert term['weight'] == mgd
    assert term['loss'] == dict(type='MGDLoss', mask_ratio=mask_ratio, normalize='batch')
    assert terms('pkd', student, teacher)[0]['weight'] == pkd


@pytest.mark.parametrize('name', features.RECIPES)
@pytest.mark.parametrize('heads', [['roi_head'], ['bbox_head'], ['decode_head'], ['head']])
def test_methods_on_features_find_their_weight_unless_told(name, heads):
    net = model(*heads, neck=FPN(4))
    assert terms(name, net, net, None)[0]['weight'] == 'auto'
    assert terms(name, net, net)[0]['weight'] > 0
    assert terms(name, net, net, dict.fromkeys([name.partition('-')[0]], 2.0))[0]['weight'] == 2.0


def test_mgd_hides_channels_of_classifiers_and_positions_of_all_others():
    """As its official code: (N, C, 1, 1) for classifiers, (N, 1, H, W) elsewhere."""
    net = model('head')
    (term,) = terms('mgd', net, net)
    expected = dict(type='MGDLoss', mask_ratio=0.15, normalize='batch', mask='channel')
    assert (term['loss'], term['weight']) == (expected, 7e-5)


def test_gdd_noise_modes():
    net = model('bbox_head', neck=FPN(5))
    assert terms('gdd', net, net)[0]['loss']['noise'] == 'channel'
    assert terms('gdd-shared', net, net)[0]['loss']['noise'] == 'shared'


@pytest.mark.parametrize('name', [*features.RECIPES, *classification.names()])
def test_every_recipe_builds_its_loss(name):
    import mmkd_plugin.losses  # noqa: F401
    from mmkd_plugin.registry import build_loss

    families = [['head']]
    if name in features.RECIPES:
        families += [['roi_head'], ['bbox_head'], ['mask_head'], ['decode_head']]
    for heads in families:
        net = model(*heads, neck=FPN(4))
        (term,) = terms(name, net, net)
        assert type(build_loss(term['loss'], 'term')).__name__ == term['loss']['type']
        assert term['weight'] > 0
        assert recipes.source(name, net)
    assert recipes.describe(name)


def test_fpn_with_equal_counts_taps_its_convolutions():
    student, teacher = model('bbox_head', neck=FPN(5)), model('roi_head', neck=FPN(5))
    (term,) = terms('gdd', student, teacher)
    assert term['student'] == term['teacher'] == 'neck.fpn_convs.*.conv'
    assert term['weight'] == 65, 'the student decides'


@pytest.mark.parametrize('other', [PAFPN(4, 5), OutConvsNeck(5), nn.Conv2d(8, 8, 1)])
def test_other_necks_tap_the_neck(other):
    student, teacher = model('bbox_head', neck=FPN(5, 5)), model('bbox_head', neck=other)
    (term,) = terms('cwd', student, teacher)
    assert term['student'] == term['teacher'] == 'neck'


@pytest.mark.parametrize(
    'neck, other, counts',
    [
        (FPN(5), FPN(4), ('5', '4')),  # equal num_outs, other strides
        (FPN(5), OutConvsNeck(3), ('5', '3')),
        (OutConvsNeck(4), OutConvsNeck(3), ('4', '3')),
    ],
)
def test_different_numbers_of_levels_are_refused_where_no_stride_is_known(neck, other, counts):
    """These models cannot run; of others the strides are measured (test_level_pairs.py)."""
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
        (term,) = terms('gdd', net, net)
        assert term['student'] == term['teacher'] == LAST_STAGE


def test_one_side_without_neck_uses_the_last_stage_on_both():
    (term,) = terms('gdd', model('bbox_head', neck=FPN(5)), model('panoptic_head'))
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


def test_logit_recipes_want_the_same_classes():
    student, teacher = model('head'), model('head')
    student.head.num_classes, teacher.head.num_classes = 100, 1000
    with pytest.raises(ValueError, match="'kd' compares.*student has 100 .*teacher 1000.*gdd"):
        terms('kd', student, teacher)
    assert terms('gdd', student, teacher)
    teacher.head.num_classes = 100
    assert terms('kd', student, teacher)


def test_a_classifier_does_not_teach_a_detector():
    detector = model('bbox_head', neck=FPN(5))
    with pytest.raises(ValueError, match="'dkd' distils .* image classifiers here.*student.*gdd"):
        recipes.resolve('dkd', detector, model('head'))
    with pytest.raises(ValueError, match="'funmatch' distils .* image classifiers here"):
        recipes.resolve('funmatch', detector, detector)
    with pytest.raises(ValueError, match="'kd-bins' distils boxes or masks, which image classif"):
        recipes.resolve('kd-bins', model('head'), model('head'))


def test_recipes_are_listed_for_a_kind_of_model():
    assert 'kd-bins' in recipes.names() and 'funmatch' in recipes.names()
    assert 'kd-bins' not in recipes.names(model('head'))
    assert 'funmatch' not in recipes.names(model('bbox_head'))
    assert {'gdd', 'kd', 'kd-bins'} <= set(recipes.names(model('bbox_head')))
    assert recipes.names(nn.Sequential()) == recipes.names(), 'resolve says why none fits'


def test_a_head_without_a_view_is_named():
    detector = model('bbox_head', neck=FPN(5))
    with pytest.raises(ValueError, match="recipe 'kd': student: no view 'cls_logits' fits Module"):
        recipes.resolve('kd', detector, detector)


@pytest.mark.parametrize(
    'method, teacher, student, loss, weight, task_weight',
    [
        ('kd', 'resnet56', 'resnet20', dict(type='KDLoss', temperature=4.0), 0.9, 0.1),
        ('kd', 'resnet34', 'resnet18', dict(type='KDLoss', temperature=1.0), 0.5, 0.5),
        ('loca', 'vgg13', 'vgg8', dict(type='LoCaLoss', temperature=4.0, alpha=0.9), 0.9, 0.1),
        ('ckd', 'wrn_40_2', 'wrn_40_1', dict(type='CKDLoss', temperature=2.0), 50, 1),
        ('ckd', 'resnet32x4', 'resnet8x4', dict(type='CKDLoss', temperature=1.0), 100, 1),
        ('ckd', 'resnet34', 'resnet18', dict(type='CKDLoss', temperature=1.0), 10, 1),
        ('ipwd', 'vgg13', 'vgg8', dict(type='IPWDLoss', temperature=4.0), 0.9, 0.1),
        ('funmatch', 'vgg13', 'vgg8', dict(type='KDLoss', temperature=4.0), 1, 0),
        ('funmatch', 'resnet34', 'resnet18', dict(type='KDLoss', temperature=1.0), 1, 0),
    ],
)
def test_published_numbers_by_pair(method, teacher, student, loss, weight, task_weight):
    plan = classification.plan(method, teacher, student)
    (term,) = plan['terms']
    assert term['loss'] == loss and term['student'] == 'cls_logits'
    assert term['weight'] == weight and plan['task_weight'] == task_weight


@pytest.mark.parametrize('arch', ['resnet56', None, ['some', 'table'], dict(num_blocks=[2, 4])])
def test_an_architecture_without_a_name_gets_the_defaults(arch):
    model = nn.Module()
    model.backbone, model.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
    model.backbone.arch = arch
    plan = recipes.resolve('dkd', model, model, dict(epochs=240))
    assert plan['terms'][0]['loss'] == dict(type='DKDLoss', temperature=4.0, alpha=1.0, beta=8.0)


@pytest.mark.parametrize('name', ['dkd', 'dkd-loca'])
@pytest.mark.parametrize(
    'arches, weight',
    [
        (('resnet56', 'resnet20'), 1.0),
        (('cifar_resnet50', 'vgg8'), 1.0),
        (('resnet18', 'shufflenet_v2_x0_5'), 'auto'),
        ((None, None), 'auto'),
    ],
)
def test_dkd_finds_its_weight_where_nothing_is_published(name, arches, weight):
    pair = []
    for arch in arches:
        net = nn.Module()
        net.backbone, net.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        net.backbone.arch = arch
        pair.append(net)
    teacher, student = pair
    (term,) = recipes.resolve(name, student, teacher, dict(epochs=240))['terms']
    assert term['weight'] == weight
    (term,) = recipes.resolve(name, student, teacher, weights='published')['terms']
    assert term['weight'] == 1.0
    for net in pair:  # the same networks on data of ten classes
        net.head.num_classes = 10
    (term,) = recipes.resolve(name, student, teacher, dict(epochs=240))['terms']
    assert term['weight'] == 'auto'


@pytest.mark.parametrize(
    'teacher, student, beta',
    [
        ('resnet56', 'resnet20', 2),
        ('resnet110', 'resnet32', 2),
        ('resnet110', 'resnet20', 2),
        ('vgg13', 'vgg8', 6),
        ('vgg13', 'mobilenet_v2_half', 6),
        ('wrn_40_2', 'wrn_16_2', 6),
        ('wrn_40_2', 'wrn_40_1', 6),
        ('wrn_40_2', 'shufflenet_v1', 8),
        ('resnet32x4', 'resnet8x4', 8),
        ('cifar_resnet50', 'mobilenet_v2_half', 8),
        ('resnet34', 'resnet18', 0.5),
        ('resnet50', 'mobilenet_v1', 2),
    ],
)
def test_beta_of_dkd_by_pair(teacher, student, beta):
    (term,) = classification.plan('dkd', teacher, student)['terms']
    imagenet = beta == 0.5 or student == 'mobilenet_v1'
    assert term['loss']['beta'] == beta and term['loss']['alpha'] == 1
    assert term['loss']['temperature'] == (1 if imagenet else 4)
    assert (term['warmup'], term['by_epoch']) == (1 if imagenet else 20, True)


@pytest.mark.parametrize(
    'length, expected',
    [
        (dict(epochs=240), dict(warmup=20, by_epoch=True)),
        (dict(epochs=60), dict(warmup=5, by_epoch=True)),
        (dict(epochs=2), dict(warmup=1, by_epoch=True)),
        (dict(iterations=12000), dict(warmup=1000)),
    ],
)
def test_warmup_keeps_its_share_of_the_training(length, expected):
    (term,) = classification.plan('dkd', 'resnet56', 'resnet20', **length)['terms']
    assert {k: term[k] for k in expected} == expected
    assert ('by_epoch' in term) == ('by_epoch' in expected)


@pytest.mark.parametrize('classes, temperature', [(1000, 1.0), (10, 4.0)])
def test_imagenets_numbers_are_for_imagenets_classes(classes, temperature):
    student, teacher = model('head'), model('head')
    for net, arch in ((student, 'resnet18'), (teacher, 'resnet34')):
        net.backbone.arch, net.head.num_classes = arch, classes
    (term,) = terms('kd', student, teacher)
    assert term['loss']['temperature'] == temperature
