"""A term between the class logits of two heads: selected rows, means over what was selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from .checks import shown
from .class_map import fit_class_map
from .losses.base import LogitLoss
from .selection import Selection, evaluate, parse_select
from .taps import Recorder, TapError
from .teacher import Teacher
from .terms import (
    PlanRow,
    TapTerm,
    Term,
    Watched,
    check_term,
    refuse_gradient_free,
    refuse_sigmoid_head,
    taps_of,
)
from .views import HeadSpec, LogitView, Predictions, TapView, make_view
from .views.batch import check_images, copies_of
from .views.classifier import ClassifierLogits


class LogitTerm(Term):
    """Distils the rows that a view reads, with one loss module for each stage or decoder layer.

    The loss of a head is a mean over its selected rows, over all ranks, or their sum on each rank
    (see :mod:`mmkd_plugin.selection`); that of several stages or layers is the mean of theirs.

    Args:
        config: a term as written in a config.
        student: reads the student's rows.
        teacher: reads the teacher's, in the student's order.
        name: what it is logged as.
        where: names the term in messages.
        models: student and teacher.
        class_map: for each class of the student that of the teacher, or -1; None if they agree.
        copies: how many images of the student's maps belong to one of the teacher's.
    """

    def __init__(
        self,
        config: dict,
        student: LogitView,
        teacher: LogitView,
        name: str,
        where: str,
        models: tuple[nn.Module, nn.Module],
        class_map: Sequence[int] | None,
        copies: int = 1,
    ) -> None:
        super().__init__(config, student, teacher, name, where)
        self.copies = copies
        if config.get('resize') is not None:
            raise ValueError(
                f'{self.where}: resize={shown(config["resize"])} belongs to maps at module paths; '
                'the rows of a view are matched by position.'
            )
        names = [tap['view'] if isinstance(tap, dict) else tap for tap in taps_of(config)]
        self.views = ' <- '.join(dict.fromkeys(names))
        self.selection = parse_select(config.get('select'), f'{self.where}.select')
        self.selections: list[Selection] = []  # one for each head, its loss's own where none is set
        self.specs = student.specs(models[0])
        self.teacher_specs = teacher.specs(models[1])
        teacher.class_map = class_map
        table = None if class_map is None else torch.tensor(class_map)
        self.register_buffer('class_map', table, persistent=False)
        self._check(class_map, models)
        self._map_classes(class_map if student.of_classes else None)

    def _check(self, class_map: Sequence[int] | None, models: tuple[nn.Module, nn.Module]) -> None:
        """Compares the two heads as far as they tell before any image."""
        names = [type(model).__name__ for model in models]
        follows = self.teacher.follows
        if len(self.specs) != len(self.teacher_specs) and not follows:
            lists = [_labels(specs) for specs in (self.specs, self.teacher_specs)]
            raise TapError(
                f'{self.where}: the student ({names[0]}) has {len(self.specs)} heads to distil '
                f'({lists[0]}) and the teacher ({names[1]}) has {len(self.teacher_specs)} '
                f'({lists[1]}): stages and decoder layers are compared one by one. Take a teacher '
                'with as many, or distil features.'
            )
        pairs = (
            zip(self.specs, self.teacher_specs[:1] * len(self.specs))
            if follows
            else zip(self.specs, self.teacher_specs)
        )
        for s, t in pairs:
            differ = self.student.of_classes and s.num_classes != t.num_classes
            if differ and class_map is None:
                raise TapError(
                    f'{self.where}: the student ({names[0]}, {s.label!r}) has {s.num_classes} '
                    f'classes and the teacher ({names[1]}, {t.label!r}) {t.num_classes}. Their '
                    'logits do not correspond: take a teacher of the same classes, or say which '
                    "classes they share: teacher=dict(..., class_map='names') or a dict of names."
                )
            if not follows and (s.activation, s.background) != (t.activation, t.background):
                by_boxes = s.kind == 'dense' and s.activation == 'sigmoid'
                raise TapError(
                    f'{self.where}: the logits of the student ({names[0]}, {s.label!r}) are for a '
                    f'{_form(s)}, those of the teacher ({names[1]}, {t.label!r}) for a {_form(t)}. '
                    + (
                        "Let the teacher's boxes speak instead: teacher='detections'."
                        if by_boxes and self.student.of_classes
                        else "Take a teacher of the student's kind, or distil features."
                    )
                )
        self.teacher.check_pair(self.student, models)

    def _map_classes(self, class_map: Sequence[int] | None) -> None:
        """Which columns of student and teacher belong together; buffers that are never saved."""
        self.mapped = class_map is not None
        if not self.mapped:
            return
        spec = self.specs[0]
        known = self.teacher_specs[0].num_classes
        own = fit_class_map(class_map, spec.num_classes, known, self.where)
        theirs = [class_map[i] for i in own]
        if spec.background:
            own, theirs = [*own, spec.num_classes], [*theirs, known]
        self.register_buffer('student_columns', torch.tensor(own), persistent=False)
        self.register_buffer('teacher_columns', torch.tensor(theirs), persistent=False)

    @property
    def kind(self) -> str:
        return self.specs[0].kind

    @property
    def columns(self) -> tuple[Tensor, Tensor] | None:
        """Columns of student and teacher that are compared; None for all."""
        return (self.student_columns, self.teacher_columns) if self.mapped else None

    def connect(self, student: Recorder, teacher: Recorder, rng: Any) -> list[PlanRow]:
        parameter = next(student.model.parameters())
        wide = torch.promote_types(parameter.dtype, torch.float32)
        rows = []
        for i, spec in enumerate(self.specs):
            loss = self.add_loss(rng)
            columns = len(self.student_columns) if self.mapped else spec.columns
            features = (1, spec.feature_dim) if 'features' in loss.needs else None
            try:
                loss.adopt(spec.activation, spec.background)
                loss.connect((1, columns), (1, columns), features, priors=spec.priors)
            except ValueError as error:
                raise TapError(f'{self.where}: {spec.label!r}: {error}') from error
            loss.to(device=parameter.device, dtype=wide)
            self.selections.append(self.selection or self._default_select(loss, spec))
            if self.selections[-1].reduction == 'sum' and not loss.separable:
                raise TapError(
                    f"{self.where}: select.reduction='sum' adds up the values of single rows, and "
                    f'{type(loss).__name__} has none: it looks at rows together. Take KDLoss, '
                    "DKDLoss or LoCaLoss, or reduction='mean'."
                )
            target = self.teacher_specs[min(i, len(self.teacher_specs) - 1)]
            shapes = ('rows', spec.columns), ('rows', target.columns)
            count = sum(p.numel() for p in loss.parameters())
            how = f'{self.views}, select={self.selections[-1]}'
            labels = self.name, spec.label, target.label
            rows.append(PlanRow(*labels, *shapes, count, self.weight_text, how))
        return rows

    def _default_select(self, loss: LogitLoss, spec: HeadSpec) -> Selection:
        by_view = self.teacher.default_select or self.student.default_select
        return parse_select(by_view or loss.default_select.get(spec.kind), 'default_select')

    def keys(self) -> list[str]:
        keys = super().keys()
        return [*keys, f'{self.name}_rows'] if self.counts_rows else keys

    @property
    def counts_rows(self) -> bool:
        """Whether the number of rows is worth a line; of an image head it is the batch size."""
        return self.specs[0].kind != 'image'

    def compute(
        self, student: Recorder, teacher: Recorder, data_samples: Any
    ) -> tuple[dict[str, Tensor], list[Watched]]:
        own = self.student.read(student, data_samples)
        images = len(data_samples) if isinstance(data_samples, (list, tuple)) else None
        for predictions in own:  # a teacher's view may compare classes to find its rows
            self._check_images(predictions, images)
            predictions.context.update(
                columns=self.columns,
                class_map=self.class_map,
                copies=self.copies,
                num_images=self.copies * (images or 1),
            )
        with torch.no_grad():
            theirs = self.teacher.read(teacher, data_samples, student=own)
        if not len(own) == len(theirs) == len(self.losses):
            raise TapError(
                f'{self.where}: {len(self.losses)} heads were connected, but this step gave '
                f'{len(own)} (student) and {len(theirs)} (teacher).'
            )
        values, counts, entries, watched = [], [], {}, []
        for loss, s, t, selection in zip(self.losses, own, theirs, self.selections):
            self._check_rows(s, t)
            value, count = evaluate(loss, s, t, selection, self.columns)
            values.append(value)
            counts.append(count)
            watched += [
                Watched(f'{role} logits {p.label!r} of term {self.name!r}', _sum(p))
                for role, p in (('student', s), ('teacher', t))
            ]
        counts = torch.stack(counts)
        summed = [selection.reduction == 'sum' for selection in self.selections]
        shares = share(counts, summed)
        for loss, part in zip(self.losses, shares):
            self.collect(loss, entries, 1 / len(self.losses), part)
        if self.counts_rows:
            entries[f'{self.name}_rows'] = counts.mean()
        total = (torch.stack(values) * shares).mean()
        return {f'loss_{self.name}': total * self.factor, **entries}, watched

    def _check_images(self, own: Predictions, images: int | None) -> None:
        """Refuses rows of other images than the batch has, where rows are counted by image."""
        level = own.levels[0]
        if images is not None and level.images is None:
            check_images(level.logits.shape[0], images, self.where)

    def _check_rows(self, s: Predictions, t: Predictions) -> None:
        for level in s.levels:
            refuse_gradient_free(level.logits, s.label, self.where)
        shapes = [[tuple(x.logits.shape[:3]) for x in p.levels] for p in (s, t)]
        if shapes[0] != shapes[1]:
            raise TapError(
                f'{self.where}: the rows of student {s.label!r} {shapes[0]} and teacher '
                f'{t.label!r} {shapes[1]} (images, positions, predictions at each, level by level) '
                'do not correspond.'
            )


def share(counts: Tensor, summed: Sequence[bool]) -> Tensor:
    """A rank's rows (H,) over the mean of all ranks': DDP's average of gradients then is that of a
    mean over all rows. Of a sum it is the mean over the ranks, with 1. Waits for no device."""
    if get_world_size() == 1 or all(summed):
        return torch.ones_like(counts)
    mean = counts.clone()
    all_reduce(mean, 'mean')
    shares = counts / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return torch.stack([torch.ones_like(x) if s else x for x, s in zip(shares, summed)])


def make_term(config: Any, student: nn.Module, teacher: Teacher, index: int) -> Term:
    """Builds a term of a config for a pair of models.

    Raises:
        ValueError: unknown key, bad weight or schedule, unknown loss.
        TapError: a tap or view that does not fit its model, or the other's.
    """
    where = f'terms[{index}]'
    name, loss = check_term(config, where)
    where = f'{where} ({name!r})'
    taps = taps_of(config)
    views = (
        make_view(taps[0], student, loss.needs, f'{where}.student'),
        make_view(taps[1], teacher.model, (), f'{where}.teacher'),
    )
    if views[0].compares_classes(student):
        teacher.refuse_other_classes(where)
    taps_only = [isinstance(view, TapView) for view in views]
    copies = copies_of(student, teacher.model, where)
    if all(taps_only):
        refuse_sigmoid_head(loss, views[0], student, where)
        kind = 'image_feature' if ClassifierLogits.fits(student) else 'feature'
        return TapTerm(config, *views, name, where, copies, kind)
    if any(taps_only):
        raise TapError(
            f'{where}: student={taps[0]!r} and teacher={taps[1]!r} are a view and a module path: '
            'rows of logits with a meaning, and a plain tensor. Give both of one kind.'
        )
    if views[0].follows:
        raise TapError(
            f'{where}: student={taps[0]!r} reads a teacher for the rows of a student. Name the '
            f"student's own rows: student='cls_logits', teacher={taps[0]!r}."
        )
    if not isinstance(loss, LogitLoss):
        raise TapError(
            f'{where}: {type(loss).__name__} compares feature maps, but student={taps[0]!r} gives '
            "rows of class logits. Tap a module path, such as 'neck', or take a loss on logits."
        )
    if copies > 1 and not views[0].repeats:
        raise TapError(
            f'{where}: {type(student).__name__} sees each image in {copies} branches, for which '
            f'the view {taps[0]!r} ({type(views[0]).__name__}) has no rows of a teacher. Distil '
            'features, such as the backbone.'
        )
    views[1].check_loss(loss)
    models = student, teacher.model
    return LogitTerm(config, *views, name, where, models, teacher.class_map, copies)


def _sum(predictions: Predictions) -> Tensor:
    """Sum of all logits: not finite if one of them is not, and cheaper than looking at each."""
    sums = [level.logits.detach().sum(dtype=torch.float32) for level in predictions.levels]
    return torch.stack(sums).sum()


def _labels(specs: Sequence[HeadSpec]) -> str:
    return ', '.join(spec.label for spec in specs)


def _form(spec: HeadSpec) -> str:
    return spec.activation + (' with a background column' if spec.background else '')
