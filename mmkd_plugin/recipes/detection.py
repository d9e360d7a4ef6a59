"""Recipes on the logits of detectors and segmenters: one table of numbers, by what a row is.

A row is a region (``'roi'``), a position of a dense head (``'dense'``), a query (``'query'``) or a
pixel (``'pixel'``). The view that serves a model says which, so that a head with a view of its own
gets a recipe, too. Which rows a loss compares is its own default unless the table says otherwise.

Evidence for the numbers: *mdistiller* = DKD on the RoIs of Faster R-CNN in
megvii-research/mdistiller, *official code* = the method's own repository, *LD* = its configs in
mmdet, *recommended* = a choice of this project with no published value behind it. Every task weight
is 1: the published runs add their term to the detector's losses as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import placed
from ..registry import build_loss
from ..taps import TapError
from ..taps.body import body_of
from ..views import HeadSpec, LogitView, fitting, make_logit_view

ROWS = {
    'roi': 'regions of a two-stage detector',
    'dense': 'positions of a dense head',
    'query': 'queries',
    'pixel': 'pixels',
    'keypoint': 'keypoints',
}
_CLASSES = ('roi', 'dense', 'query', 'pixel')  # whose columns are classes
# The student's own class loss counts 2 in Deformable DETR and DINO.
_WEIGHT = dict(roi=1.0, dense=1.0, query=2.0, pixel=1.0, keypoint=1.0)
# On dense heads and queries 0.1 has less than 1 % of the task's gradient (docs/results.md).
_CKD_WEIGHT = dict(roi=0.1, dense=10.0, query=10.0, pixel=0.1)
_BY_DETECTIONS = ('cls_logits', 'boxes', 'mask_logits')  # rows that detections can teach
_AS_KD = "KD's numbers, all recommended"


@dataclass(frozen=True)
class Recipe:
    """A method with the numbers of each kind of row.

    Attributes:
        summary: one line for the tools' listings.
        term: loss and other keys of a term, from the head and the length of the training.
        sources: where the numbers come from, by kind of row; other kinds are refused.
        view: the rows.
        activations: what the head may do with its logits; ``'none'`` of boxes.
        without_truth: arguments of the loss for heads that never tell which object a row has.
        late: whether its pixels wait, see :func:`_late`.
    """

    summary: str
    term: Callable[[HeadSpec, dict[str, int]], dict]
    sources: dict[str, str]
    view: str = 'cls_logits'
    activations: tuple[str, ...] = ('softmax', 'sigmoid')
    late: bool = True
    without_truth: dict[str, Any] = field(default_factory=dict)


def _kd(head: HeadSpec, _length: dict[str, int]) -> dict:
    return dict(loss=dict(type='KDLoss', temperature=1.0), weight=_WEIGHT[head.kind])


def _dkd(**arguments: Any) -> Callable[[HeadSpec, dict[str, int]], dict]:
    def term(_head: HeadSpec, _length: dict[str, int]) -> dict:
        loss = dict(type='DKDLoss', temperature=1.0, alpha=1.0, beta=0.25, **arguments)
        return dict(loss=loss, weight=1.0)

    return term


def _loca(head: HeadSpec, _length: dict[str, int]) -> dict:
    loss = dict(type='LoCaLoss', temperature=1.0, alpha=0.9)
    return dict(loss=loss, weight=_WEIGHT[head.kind])


def _ckd(head: HeadSpec, _length: dict[str, int]) -> dict:
    return dict(loss=dict(type='CKDLoss', temperature=1.0), weight=_CKD_WEIGHT[head.kind])


def _ipwd(ratio: str) -> Callable[[HeadSpec, dict[str, int]], dict]:
    def term(head: HeadSpec, length: dict[str, int]) -> dict:
        # Plain KD for a third of the epochs in which it acts: its auxiliary layer learns meanwhile.
        # A loop that counts iterations stays in epoch 0, where the weights would wait for ever.
        epochs = length.get('epochs', 0)
        begin = _first(epochs) if head.kind == 'pixel' else 0
        loss = dict(
            type='IPWDLoss',
            temperature=1.0,
            ratio=ratio,
            normalize='batch_mean',
            clip_max=5.0,
            start_epoch=begin + (epochs - begin) // 3,
        )
        return dict(loss=loss, weight=_WEIGHT[head.kind])

    return term


def _bins(head: HeadSpec, _length: dict[str, int]) -> dict:
    # LD adds up w T^2 KL over positives and their four sides, w being the student's best class
    # score, times 0.25, divided by 4; its KL is a mean over the bins, KDLoss's a sum.
    loss = dict(type='KDLoss', temperature=10.0)
    select = dict(by='positive', weights='student_score', reduction='sum')
    return dict(loss=loss, select=select, weight=0.25 / 4 / head.num_classes)


def _boxes(_head: HeadSpec, _length: dict[str, int]) -> dict:
    return dict(loss=dict(type='BoxDistillLoss', kind='giou'), weight=1.0)


def _late(length: dict[str, int]) -> dict[str, Any]:
    """Keys of a term that begins after two fifths of the training.

    Most pixels are background: from the first step on, KD of all pixels holds a new student where
    it calls everything background (docs/weights.md). Later it does no harm.
    """
    if 'epochs' in length:
        begin = _first(length['epochs'])
        return dict(begin=begin, by_epoch=True) if begin else {}
    begin = _first(length.get('iterations', 0))
    return dict(begin=begin) if begin else {}


def _first(count: int) -> int:
    """The first epoch or iteration of so many in which pixels are distilled."""
    return 2 * count // 5


def _everywhere(source: str) -> dict[str, str]:
    return dict.fromkeys(_CLASSES, source)


_DKD_SOURCES = dict(
    roi='mdistiller', query='recommended: as on RoIs', pixel='recommended: as on RoIs'
)
_CALIBRATED = {kind: f'{source}; alpha recommended' for kind, source in _DKD_SOURCES.items()}

RECIPES = {
    'kd': Recipe(
        'KL between class probabilities, of a softmax or of each class on its own',
        _kd,
        dict(
            roi="recommended; T as mdistiller's DKD",
            dense='recommended',
            query='recommended',
            pixel='recommended',
            keypoint="recommended; RTMPose's loss has 1 and T=1",
        ),
    ),
    'dkd': Recipe(
        'decoupled KD: target and non-target classes weighted apart',
        _dkd(),
        _DKD_SOURCES,
        activations=('softmax',),
    ),
    'loca': Recipe("KD with the teacher's wrong answers calibrated", _loca, _everywhere(_AS_KD)),
    'dkd-loca': Recipe(
        "DKD with the teacher's wrong answers calibrated",
        _dkd(calibrate=0.9),
        _CALIBRATED,
        activations=('softmax',),
    ),
    'ckd': Recipe(
        'contrastive KD between the rows of a batch',
        _ckd,
        dict(
            roi='official code, there together with ReviewKD',
            dense='recommended: chosen on digits',
            query='recommended: as on dense heads',
            pixel='recommended: as on RoIs',
        ),
        late=False,  # its rows are a few of the pixels
    ),
    'ipwd': Recipe(
        'KD weighted by inverse propensity (ratio kd/cls)',
        _ipwd('kd_over_cls'),
        _everywhere(_AS_KD),
    ),
    'ipwd-inverse': Recipe(
        'KD weighted by inverse propensity, the ratio the other way round',
        _ipwd('cls_over_kd'),
        _everywhere(_AS_KD),
    ),
    'kd-bins': Recipe(
        "LD: KL between the bins of a box's sides (GFL and kin), beside a recipe for the classes",
        _bins,
        dict(dense='LD'),
        view='dfl_logits',
    ),
    'kd-masks': Recipe(
        'KL on the pixels of the masks of positive regions, beside a recipe for the classes',
        _kd,
        dict(pixel='recommended: the weight of the mask loss'),
        view='mask_logits',
        late=False,  # pixels of positive regions
    ),
    'boxes': Recipe(
        "the teacher's boxes as targets where they are nearer to the truth than the student's",
        _boxes,
        dict(roi='recommended', dense='recommended', query='recommended'),
        view='boxes',
        activations=('none',),
        without_truth=dict(when='always'),
    ),
}


def source(name: str, model: nn.Module) -> str:
    """Where the hyper-parameters of a recipe come from for this kind of model."""
    recipe = RECIPES[name]
    view = make_logit_view(_rows_view(recipe.view, model), model, (), name)
    kind = view.specs(body_of(model).module)[0].kind
    return recipe.sources[kind]


def plan(name: str, student: nn.Module, teacher: nn.Module, length: dict[str, int]) -> dict:
    """The term of a logit recipe for this pair; what the student's rows are decides.

    The arguments are those of :func:`mmkd_plugin.recipes.resolve`.

    Returns:
        ``dict(terms=[...], task_weight=1.0, kind=...)``; the kind is that of the student's rows.

    Raises:
        ValueError: a head without a view, a method that does not suit its rows, or a teacher whose
            rows cannot be brought to the student's.
    """
    recipe = RECIPES[name]
    chosen = _rows_view(recipe.view, student)
    view = make_logit_view(chosen, student, (), f'recipe {name!r}: student')
    spec = view.specs(student)[0]
    _check_method(name, recipe, spec, type(student).__name__)
    term = recipe.term(spec, length)
    if view.no_truth():
        term['loss'].update(recipe.without_truth)
    if spec.kind == 'pixel' and recipe.late:
        term.update(_late(length))
    # Once more, with what the loss needs beside logits, which a head may not have.
    loss = build_loss(term['loss'], f'recipe {name!r}')
    view = make_logit_view(chosen, student, loss.needs, f'recipe {name!r}: student')
    rows = dict(student=_view_name(chosen, spec, student))
    if not _same_rows(name, chosen, view, (student, teacher)):
        rows['teacher'] = 'detections'
        boxes = make_logit_view('detections', teacher, (), f'recipe {name!r}: teacher', 'teacher')
        with placed(f'recipe {name!r}: teacher'):
            boxes.check_loss(loss)
    term = dict(name=name.replace('-', '_'), **rows, **term)
    return dict(terms=[term], task_weight=1.0, kind=spec.kind)


def _check_method(name: str, recipe: Recipe, spec: HeadSpec, model: str) -> None:
    """Refuses a method that has no meaning on the student's rows."""
    if spec.activation not in recipe.activations:
        raise ValueError(
            f'The recipe {name!r} needs a softmax over the classes: it takes target and other '
            f'classes apart. The head of {model} ({spec.label}) has a sigmoid for each class, on '
            'its own. Take kd, loca, ckd or ipwd there.'
        )
    if spec.kind not in recipe.sources:
        kinds = ', '.join(ROWS[kind] for kind in recipe.sources)
        raise ValueError(
            f'The recipe {name!r} is for {kinds}, but the rows of {model} ({spec.label}) are '
            f'{ROWS.get(spec.kind, spec.kind)}. Write the term yourself if you know its weight.'
        )


def _rows_view(view: str, model: nn.Module) -> str:
    """The rows of a recipe in this model: a pose estimator has places in place of classes."""
    return 'keypoints' if view == 'cls_logits' and 'keypoints' in fitting(model) else view


def _view_name(view: str, spec: HeadSpec, model: nn.Module) -> str:
    """A semantic head by its more telling name; both are the same view."""
    is_semantic = view == 'cls_logits' and spec.kind == 'pixel'
    return 'seg_logits' if is_semantic and hasattr(model, 'decode_head') else view


def _same_rows(name: str, view: str, own: LogitView, models: tuple[nn.Module, nn.Module]) -> bool:
    """Whether the teacher's head has the student's rows; if not, its detections must do.

    Raises:
        TapError: if they do not, either.
    """
    (student, teacher), place = models, f'recipe {name!r}: teacher'
    try:
        theirs = make_logit_view(view, teacher, (), place, 'teacher')
        _compare(own.specs(student), theirs.specs(teacher), name, models)
        with placed(place):
            theirs.check_pair(own, models)
        return True
    except TapError as error:
        if view not in _BY_DETECTIONS:
            raise
        try:
            boxes = make_logit_view('detections', teacher, (), place, 'teacher')
            boxes.check_pair(own, models)
        except TapError:
            raise error from None
        return False


def _compare(
    own: list[HeadSpec], theirs: list[HeadSpec], name: str, models: tuple[nn.Module, nn.Module]
) -> None:
    """Refuses heads of another kind, activation or number; classes are the term's business."""
    forms = [[(s.kind, s.activation, s.background) for s in specs] for specs in (own, theirs)]
    if forms[0] == forms[1]:
        return
    told = [
        f'{len(specs)} of {ROWS.get(specs[0].kind, specs[0].kind)} ({specs[0].activation})'
        for specs in (own, theirs)
    ]
    raise TapError(
        f'The recipe {name!r} cannot pair the heads of the student ({type(models[0]).__name__}: '
        f'{told[0]}) with those of the teacher ({type(models[1]).__name__}: {told[1]}). Take a '
        "teacher of the student's kind, or distil features."
    )
