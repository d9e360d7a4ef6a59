"""Recipes on class logits: the published numbers of the CIFAR-100 and ImageNet pairs, in one table.

Evidence for the numbers: *mdistiller* = the yaml files of megvii-research/mdistiller, *official
code* = the method's own repository, *recommended* = a choice of this project with no published
value behind it. A pair that no table lists gets the CIFAR-100 defaults.
"""

from __future__ import annotations

from collections.abc import Callable

Pair = tuple[str | None, str | None]

# DKD's beta per CIFAR-100 pair (mdistiller); 8 for all others. No official config has ResNet110 to
# ResNet20, which gets that of the other pairs of such ResNets (recommended).
DKD_BETA: dict[Pair, float] = {
    ('resnet56', 'resnet20'): 2.0,
    ('resnet110', 'resnet32'): 2.0,
    ('resnet110', 'resnet20'): 2.0,
    ('vgg13', 'vgg8'): 6.0,
    ('vgg13', 'mobilenet_v2_half'): 6.0,
    ('wrn_40_2', 'wrn_16_2'): 6.0,
    ('wrn_40_2', 'wrn_40_1'): 6.0,
}
# CKD's weight and temperature per CIFAR-100 pair; (10, 1) for others (all official code).
CKD_NUMBERS: dict[Pair, tuple[float, float]] = {
    ('resnet56', 'resnet20'): (10.0, 1.0),
    ('resnet110', 'resnet32'): (10.0, 1.0),
    ('resnet32x4', 'resnet8x4'): (100.0, 1.0),
    ('wrn_40_2', 'wrn_16_2'): (100.0, 1.0),
    ('wrn_40_2', 'wrn_40_1'): (50.0, 2.0),
    ('vgg13', 'vgg8'): (100.0, 1.0),
    ('resnet32x4', 'shufflenet_v1'): (100.0, 1.0),
    ('resnet32x4', 'shufflenet_v2'): (100.0, 1.0),
    ('wrn_40_2', 'shufflenet_v1'): (100.0, 1.0),
    ('vgg13', 'mobilenet_v2_half'): (50.0, 2.0),
    ('cifar_resnet50', 'mobilenet_v2_half'): (100.0, 1.0),
}
# DKD's beta per ImageNet pair (mdistiller); the listing also says which pairs are ImageNet's.
IMAGENET_DKD_BETA: dict[Pair, float] = {
    ('resnet34', 'resnet18'): 0.5,
    ('resnet50', 'mobilenet_v1'): 2.0,
}
# Pairs of CIFAR-100 whose training the published numbers belong to. The last has the defaults.
_CIFAR_PAIRS = {*DKD_BETA, *CKD_NUMBERS, ('cifar_resnet50', 'vgg8')}


def is_published(pair: Pair, num_classes: int | None) -> bool:
    """Whether the numbers were published for this training, of heads with so many classes (None
    where they do not say). Names of ImageNet's pairs stand there only if it is its data.
    """
    return pair in IMAGENET_DKD_BETA or (pair in _CIFAR_PAIRS and num_classes in (None, 100))


def _kd(pair: Pair) -> tuple[float, dict]:
    """Share of the distillation term and temperature of classic KD, which LoCa and IPWD keep."""
    if pair in IMAGENET_DKD_BETA:
        return 0.5, dict(temperature=1.0)  # mdistiller
    return 0.9, dict(temperature=4.0)  # RepDistiller and mdistiller


def _classic(loss: str, **arguments: object) -> Callable[[Pair, dict], dict]:
    def plan(pair: Pair, _length: dict) -> dict:
        share, softening = _kd(pair)
        term = dict(loss=dict(type=loss, **softening, **arguments), weight=share)
        return dict(term=term, task_weight=round(1 - share, 12))

    return plan


def _dkd(**arguments: object) -> Callable[[Pair, dict], dict]:
    def plan(pair: Pair, length: dict) -> dict:
        imagenet = pair in IMAGENET_DKD_BETA
        numbers = dict(
            temperature=1.0 if imagenet else 4.0,
            alpha=1.0,
            beta=IMAGENET_DKD_BETA[pair] if imagenet else DKD_BETA.get(pair, 8.0),
        )
        # mdistiller: a linear ramp over 20 of 240 epochs (CIFAR-100), 1 of 100 (ImageNet).
        ramp = _ramp(1, 100, length) if imagenet else _ramp(20, 240, length)
        term = dict(loss=dict(type='DKDLoss', **numbers, **arguments), weight=1.0, **ramp)
        return dict(term=term, task_weight=1.0)

    return plan


def _ckd(pair: Pair, _length: dict) -> dict:
    weight, temperature = CKD_NUMBERS.get(pair, (10.0, 1.0))
    term = dict(loss=dict(type='CKDLoss', temperature=temperature), weight=weight)
    return dict(term=term, task_weight=1.0)


def _funmatch(pair: Pair, _length: dict) -> dict:
    # No label term of any kind. T: official code for ImageNet, recommended (1 or 4) for CIFAR.
    temperature = 1.0 if pair in IMAGENET_DKD_BETA else 4.0
    term = dict(loss=dict(type='KDLoss', temperature=temperature), weight=1.0)
    return dict(term=term, task_weight=0.0)


def _ramp(epochs: int, of: int, length: dict) -> dict:
    """A warm-up with the published share of the schedule, in the unit the run counts in."""
    if 'iterations' in length:
        return dict(warmup=max(1, round(length['iterations'] * epochs / of)))
    return dict(warmup=max(1, round(length.get('epochs', of) * epochs / of)), by_epoch=True)


_PLANS: dict[str, tuple[Callable[[Pair, dict], dict], str]] = {
    'kd': (_classic('KDLoss'), 'KL between softened class probabilities'),
    'dkd': (_dkd(), 'decoupled KD: target and non-target classes weighted apart'),
    'loca': (_classic('LoCaLoss', alpha=0.9), "KD with the teacher's wrong answers calibrated"),
    'dkd-loca': (_dkd(calibrate=0.9), "DKD with the teacher's wrong answers calibrated"),
    'ckd': (_ckd, 'contrastive KD between the samples of a batch'),
    'ipwd': (_classic('IPWDLoss'), 'KD weighted by inverse propensity (ratio kd/cls)'),
    'ipwd-inverse': (
        _classic('IPWDLoss', ratio='cls_over_kd'),
        'KD weighted by inverse propensity, the ratio the other way round',
    ),
    'funmatch': (_funmatch, 'function matching: mixup, the same view, no labels'),
}
SOURCES = {
    'kd': 'RepDistiller and mdistiller (0.1 CE + 0.9 KD, T=4; ImageNet 0.5 + 0.5, T=1)',
    'dkd': 'mdistiller (beta by pair, else 8)',
    'loca': "KD's numbers; alpha recommended",
    'dkd-loca': "DKD's numbers; alpha recommended",
    'ckd': "official code (weight and temperature by pair, else its code's default 10 and 1)",
    'ipwd': "KD's numbers; ratio recommended",
    'ipwd-inverse': "KD's numbers",
    'funmatch': 'official code (ImageNet, T=1); T=4 elsewhere recommended',
}


def names() -> list[str]:
    return list(_PLANS)


def describe(method: str) -> str:
    """One line about a method."""
    return _PLANS[method][1]


def plan(
    method: str,
    teacher_arch: str | None,
    student_arch: str | None,
    epochs: int | None = None,
    iterations: int | None = None,
) -> dict:
    """What ``DistillHook`` gets for a method and a pair.

    Args:
        method: one of :func:`names`.
        teacher_arch: ``arch`` of the teacher's backbone, such as ``'resnet56'``.
        student_arch: that of the student.
        epochs: length of the training; warm-ups keep their published share of it.
        iterations: the same for a training that counts iterations.

    Returns:
        ``dict(terms=[...], task_weight=...)``.

    Example:
        >>> plan('dkd', 'resnet56', 'resnet20')['terms'][0]['loss']['beta']
        2.0
    """
    length = {k: v for k, v in dict(epochs=epochs, iterations=iterations).items() if v}
    made = _PLANS[method][0]((teacher_arch, student_arch), length)
    name = method.replace('-', '_')
    return dict(
        terms=[dict(name=name, student='cls_logits', **made['term'])],
        task_weight=made['task_weight'],
    )
