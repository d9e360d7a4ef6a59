"""A term between the class logits of two heads: selected rows, means over what was selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ..checks import shown
from ..errors import TapError, placed, put_place
from ..losses.base import taken
from ..losses.row_base import RowLoss
from ..taps import Recorder
from ..views import HeadSpec, LogitView, PairContext, Predictions
from ..views.base import takes
from .base import PlanRow, Term, Watched
from .config import TermConfig
from .modules import Modules
from .pairing.both import check_count
from .pairing.heads import check_heads, refuse_sum
from .pairing.rows import check_batch, check_rows, refuse_unlabelled
from .selected_loss import evaluate
from .selection import Selection, parse_select
from .shared_classes import SharedClasses


class LogitTerm(Term):
    """Distils the rows that a view reads, with one loss module for each stage or decoder layer.

    The loss of a head is a mean over its selected rows, over all ranks, or their sum on each rank
    (see ``selection.py``); that of several stages or layers is the mean of theirs.

    Args:
        config: the term.
        student: reads the student's rows.
        teacher: reads the teacher's, in the student's order.
        where: names the term in messages.
        models: student and teacher, or the detectors inside them that the views read.
        class_map: for each class of the student that of the teacher, or -1; None if they agree.
        copies: how many images of the student's maps belong to one of the teacher's.
    """

    student: LogitView
    teacher: LogitView
    losses: Modules[RowLoss]

    def __init__(
        self,
        config: TermConfig,
        student: LogitView,
        teacher: LogitView,
        where: str,
        models: tuple[nn.Module, nn.Module],
        class_map: Sequence[int] | None,
        copies: int = 1,
    ) -> None:
        super().__init__(config, student, teacher, where)
        self.copies = copies
        if config.resize is not None:
            raise ValueError(
                f'resize={shown(config.resize)} belongs to maps at module paths; '
                'the rows of a view are matched by position.'
            )
        names = [
            tap['view'] if isinstance(tap, dict) else tap
            for tap in (config.student, config.teacher)
        ]
        self.views = ' <- '.join(dict.fromkeys(names))
        self.selection = config.selection(where)
        self.selections: list[Selection] = []  # one for each head, its loss's own where none is set
        self.specs, self.teacher_specs = student.specs(models[0]), teacher.specs(models[1])
        check_heads((student, teacher), (self.specs, self.teacher_specs), models, class_map)
        more = dict(class_map=class_map) if takes(teacher.check_pair, 'class_map') else {}
        with placed(f'{where}.teacher'):
            teacher.check_pair(student, models, **more)
        self.tells_pair = takes(teacher.read, 'pair')
        heads = self.specs[0], self.teacher_specs[0]
        self.classes: SharedClasses | None = None
        if class_map is not None:
            self.classes = SharedClasses(class_map, *heads, in_columns=student.of_classes)

    @property
    def kind(self) -> str:
        return self.specs[0].kind

    def build_losses(
        self, student_recorder: Recorder, teacher_recorder: Recorder, rng: Any
    ) -> list[PlanRow]:
        parameter = next(student_recorder.model.parameters())
        wide = torch.promote_types(parameter.dtype, torch.float32)
        plan = []
        for i, spec in enumerate(self.specs):
            loss = cast(RowLoss, self.add_loss(rng))  # check_views refuses others
            columns = (self.classes and self.classes.width) or spec.columns
            width = spec.feature_dim if 'features' in loss.needs else None
            features = None if width is None else (1, width)
            try:
                loss.set_activation(spec.activation, spec.background)
                loss.connect((1, columns), (1, columns), features, priors=spec.priors)
            except ValueError as error:
                raise TapError(f'{spec.label!r}: {error}') from error
            loss.to(device=parameter.device, dtype=wide)
            self.selections.append(self.selection or self._default_select(loss, spec))
            refuse_sum(loss, self.selections[-1])
            refuse_unlabelled(loss, self.selections[-1], self.student)
            target = self.teacher_specs[min(i, len(self.teacher_specs) - 1)]
            given = target if self.student.of_classes else spec  # any teacher gives these as rows
            shapes = ('rows', spec.columns), ('rows', given.columns)
            count = sum(p.numel() for p in loss.parameters())
            how = f'{self.views}, select={self.selections[-1]}'
            labels = self.name, spec.label, target.label
            plan.append(PlanRow(*labels, *shapes, count, self.weight_text, how))
        return plan

    def _default_select(self, loss: RowLoss, spec: HeadSpec) -> Selection:
        for chosen in (self.teacher.default_select, self.student.default_select):
            by_view = chosen.get(spec.kind) if isinstance(chosen, dict) else chosen
            if by_view is not None:
                return parse_select(by_view, 'default_select')
        return parse_select(loss.default_select.get(spec.kind, 'all'), 'default_select')

    def keys(self) -> list[str]:
        keys = super().keys()
        return [*keys, f'{self.name}_rows'] if self.counts_rows else keys

    @property
    def counts_rows(self) -> bool:
        """Whether the number of rows is worth a line; of an image head it is the batch size."""
        return self.specs[0].kind != 'image'

    def compute(
        self, student_recorder: Recorder, teacher_recorder: Recorder, data_samples: Any
    ) -> tuple[dict[str, Tensor], list[Watched]]:
        own, theirs, pair = self._read(student_recorder, teacher_recorder, data_samples)
        check_count('heads', len(self.losses), own, theirs)
        results, amounts, watched = [], [], []
        for loss, s, t, selection in zip(self.losses, own, theirs, self.selections):
            check_rows(s, t)
            if self.observer is not None:
                self.observer.rows(self, s, t, pair.columns)
            value, count = evaluate(loss, s, t, selection, pair.columns, pair.images)
            results.append(taken(loss, value))
            amounts.append(count)
            watched += [
                Watched(f'{role} logits {p.label!r} of term {self.name!r}', _sum(p))
                for role, p in (('student', s), ('teacher', t))
            ]
        counts, entries = torch.stack(amounts), dict[str, Tensor]()
        factors = rank_factors(counts, [x.reduction == 'sum' for x in self.selections])
        for result, factor in zip(results, factors):
            self.add_extras(result, entries, 1 / len(self.losses), factor)
        if self.counts_rows:
            entries[f'{self.name}_rows'] = counts.mean()
        total = (torch.stack([result.value for result in results]) * factors).mean()
        return {f'loss_{self.name}': total * self.factor, **entries}, watched

    def _read(
        self, student_recorder: Recorder, teacher_recorder: Recorder, data_samples: Any
    ) -> tuple[list[Predictions], list[Predictions], PairContext]:
        """What both views say of this step, and what was told to the teacher's."""
        student_recorder = student_recorder.within(self.student.within)
        teacher_recorder = teacher_recorder.within(self.teacher.within)
        try:
            own = self.student.read(student_recorder, data_samples)
        except ValueError as error:
            put_place(error, f'{self.where}.student')
            raise
        images = len(data_samples) if isinstance(data_samples, (list, tuple)) else None
        check_batch(own, images)
        columns = class_map = None
        if self.classes is not None:
            columns, class_map = self.classes.columns, self.classes.class_map
        pair = PairContext(columns, class_map, self.copies, self.copies * (images or 1))
        more = dict(pair=pair) if self.tells_pair else {}
        try:
            with torch.no_grad():
                theirs = self.teacher.read(teacher_recorder, data_samples, student=own, **more)
        except ValueError as error:
            put_place(error, f'{self.where}.teacher')
            raise
        return own, theirs, pair


def rank_factors(counts: Tensor, summed: Sequence[bool]) -> Tensor:
    """A rank's rows (H,) over the mean of all ranks': DDP's average of gradients then is that of a
    mean over all rows. Of a sum it is the mean over the ranks, with 1. Waits for no device."""
    if get_world_size() == 1 or all(summed):
        return torch.ones_like(counts)
    mean = counts.clone()
    all_reduce(mean, 'mean')
    factors = counts / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return torch.stack([torch.ones_like(x) if s else x for x, s in zip(factors, summed)])


def _sum(predictions: Predictions) -> Tensor:
    """Sum of all logits: not finite if one of them is not, and cheaper than looking at each."""
    sums = [level.logits.detach().sum(dtype=torch.float32) for level in predictions.levels]
    return torch.stack(sums).sum()
