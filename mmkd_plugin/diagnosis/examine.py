"""The doctor: what can be known of a distilled config before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..class_map import dataset_classes
from ..hooks.entries import distill_hooks
from ..rng import rng_kept
from ..teacher import build_model
from ..views import make_view
from .baseline import check_baseline
from .beginning import as_in_a_run
from .better import check_better, check_equal, own_metrics
from .class_checks import check_class_names, check_class_order, indices_of_teacher, names_of_teacher
from .cost import KEYS as COST_KEYS
from .cost import measure_cost
from .findings import Report
from .images import Labelled, build_dataset, labelled_sets, plain_loader
from .measure import examined, measure_terms
from .pair import Pair, attach_terms, build_pair, give_back
from .paired import Difference
from .pixel_checks import check_pixels
from .ranges import amp_dtype, check_ranges, watched
from .reader import Answers, Reader
from .readings import all_objects
from .refusals import note_refusal, note_unexamined
from .teacher_checks import (
    Fresh,
    check_still,
    check_trained,
    look_for_fresh,
)
from .term_checks import check_terms
from .verdict import decide

_NO_BATCH = (
    'train_dataloader gives no batch: its data set has {} images. Look at its ann_file, '
    'data_prefix and filter_cfg, and at batch_size with drop_last.'
)


@dataclass
class Options:
    """How much is looked at.

    Attributes:
        batches: of training data, for the terms.
        images: with labels, at most.
        student_checkpoint: weights of the student alone.
        baseline: config of the student alone.
        on_progress: told what is being done, how much of it is done, and how much there is.
    """

    batches: int = 8
    images: int = 200
    student_checkpoint: str | None = None
    baseline: Config | None = None
    on_progress: Callable[[str, int, int], None] | None = None


def examine(cfg: Config, options: Options) -> Report:
    """Looks at a distilled config; whatever it is refused for becomes a finding.

    Args:
        cfg: with one DistillHook. It is not changed.
        options: how much is looked at.

    Returns:
        The report.

    Raises:
        ValueError: a config without a DistillHook.
    """
    if len(distill_hooks(cfg)) != 1:
        raise ValueError(f'the config has {len(distill_hooks(cfg))} DistillHooks; give it one.')
    report = Report(cost=dict.fromkeys(COST_KEYS))
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope), as_in_a_run(cfg), rng_kept():
        torch.manual_seed(0)
        Doctor(cfg, options, report).run()
    return report


class Doctor:
    """One examination; its checks follow each other, and none of them stops the others.

    Args:
        cfg: the distilled config.
        options: how much is looked at.
        report: gets what is found.
    """

    def __init__(self, cfg: Config, options: Options, report: Report) -> None:
        self.cfg, self.options, self.report = cfg, options, report
        self.dataset: Any = None
        self.gain: Difference | None = None

    def run(self) -> None:
        """All checks and the verdict."""
        trained = False
        with self._refusing('student'):
            pair = self._pair()
            trained = pair.trained
            self._examine(pair)
        if self.options.baseline is not None:
            with self._trying('baseline'):
                check_baseline(self.cfg, self.options.baseline, self.report)
        decide(self.report, self.gain, trained)

    def _pair(self) -> Pair:
        self._tell('building both models', 0, 1)
        build_model(self.cfg)  # registers what the scope has, data sets too
        with self._refusing('train_dataloader'):
            self.dataset = build_dataset(self.cfg.train_dataloader)
        checkpoint = self.options.student_checkpoint
        pair = build_pair(self.cfg, self.dataset, checkpoint, self.report)
        self._tell('building both models', 1, 1)
        return pair

    def _examine(self, pair: Pair) -> None:
        if pair.teacher is None:
            return
        answers = Answers()
        with self._trying('labelled images'):
            answers = self._read(pair)
        self._judge(pair, answers)
        with self._trying('terms'):
            self._terms(pair)

    # -- on labelled images ------------------------------------------------------------------------

    def _read(self, pair: Pair) -> Answers:
        """Both models on labelled images, of the first set that has labels."""
        assert pair.teacher is not None
        teacher, count = pair.teacher, _class_count(pair)
        own = dataset_classes(self.dataset) if self.dataset is not None else None
        names = names_of_teacher(teacher.class_map, teacher.classes, own)
        comparable = (
            names is not None or teacher.difference is None or len(teacher.classes or ()) == count
        )
        pixels = pair.pixels
        answers = Answers(names, comparable)

        def refuse(name: str, error: Exception) -> None:
            note_refusal(self.report, error, name)

        for images in labelled_sets(self.cfg, self.options.images, refuse):
            theirs = teacher.pixels(pixels)
            models = pair.student, teacher.model, pair.trained
            reader = Reader(*models, (pixels, theirs), names, comparable)
            with self._trying(f'images of {images.name}'), self._reading(images) as step:
                reader.read(images, self.cfg, step)
            answers = reader.answers
            if answers.refused is not None:
                note_refusal(self.report, answers.refused, 'teacher.inputs')
            if answers.teacher or any(answers.others.values()):
                return answers
        self.report.add(
            'no-images',
            'val_dataloader',
            dict(images=0),
            'val_dataloader: a data set with images, and LoadAnnotations in its pipeline',
        )
        return answers

    @contextmanager
    def _reading(self, images: Labelled) -> Iterator[Callable[[int], None]]:
        done, what = [0], f'reading {images.count} images of {images.name}'
        self._tell(what, 0, images.count)

        def step(count: int) -> None:
            done[0] += count
            self._tell(what, done[0], images.count)

        yield step

    def _judge(self, pair: Pair, answers: Answers) -> None:
        """What the readings say of the teacher."""
        assert pair.teacher is not None
        report, config = self.report, pair.teacher_config
        other, exchanged, fresh = None, False, Fresh()
        with self._trying('teacher.checkpoint'):
            fresh = look_for_fresh(pair.teacher.model, config)
        with self._trying('teacher.inputs'):
            other = check_pixels(answers, report)
        with self._trying('class_map'):
            if answers.comparable and answers.teacher and other is None and not fresh:
                objects, count = all_objects(answers.teacher), _class_count(pair)
                indices = indices_of_teacher(pair.teacher.class_map, answers.names, count)
                exchanged = bool(check_class_order(objects, indices, count, report))
            if not exchanged:  # else it is the names that are wrong
                self._names(pair)
        exempt = other is not None or exchanged or not answers.teacher
        with self._trying('teacher.checkpoint'):
            if check_trained(fresh, answers.teacher, exempt, report) and not exempt:
                self.gain = check_better(
                    answers.teacher, answers.student, answers.comparable, report
                )
        with self._trying('teacher'):
            check_equal(pair.teacher.model, pair.student, report)
        report.teacher = {**own_metrics(answers.teacher), **answers.metrics.get('teacher', {})}
        if pair.trained:
            report.student = {**own_metrics(answers.student), **answers.metrics.get('student', {})}

    def _names(self, pair: Pair) -> None:
        """Names of classes that differ; terms on classes are refused for it."""
        assert pair.teacher is not None
        teacher = pair.teacher
        own = dataset_classes(self.dataset) if self.dataset is not None else None
        if teacher.difference is None or own is None or teacher.classes is None:
            return
        compared = not teacher.allow_class_mismatch and _compares_classes(pair)
        check_class_names(teacher.classes, own, compared, self.report)

    # -- on training data --------------------------------------------------------------------------

    def _terms(self, pair: Pair) -> None:
        assert pair.teacher is not None
        if self.dataset is None or attach_terms(pair, self.report) is None:
            return
        try:
            with self._refusing('train_dataloader'):
                loader = plain_loader(dict(self.cfg.train_dataloader, dataset=self.dataset))
                if next(iter(loader), None) is None:
                    raise ValueError(_NO_BATCH.format(len(self.dataset)))
                with self._trying('terms'):
                    self._measure(pair, loader)
        finally:
            give_back(pair.student)

    def _measure(self, pair: Pair, loader: Any) -> None:
        """Losses and gradients of the terms that are attached, and what a step costs."""
        assert pair.teacher is not None
        teacher, report, total = pair.teacher.model, self.report, self.options.batches
        done = [0]

        def step(_images: int) -> None:
            done[0] += 1
            self._tell(f'measuring the terms on {total} batches', done[0], total)

        with watched(dict(student=pair.student, teacher=teacher)) as largest:
            measured = measure_terms(pair.student, loader, total, step)
        check_terms(measured, pair.trained, report)
        check_ranges(largest, amp_dtype(self.cfg.get('optim_wrapper')), report)
        with self._trying('teacher in training'):
            self._still(pair, loader)
        acting = [name for name, term in measured.terms.items() if term.losses]
        if acting:
            self._tell('timing', 0, 1)
            idle = measured.terms.keys() - acting
            with self._trying('cost'), examined(pair.student, idle):
                report.cost = measure_cost(pair.student, loader)
            self._tell('timing', 1, 1)

    def _still(self, pair: Pair, loader: Any) -> None:
        """Whether the teacher of a training step moves."""
        assert pair.teacher is not None
        with torch.no_grad():
            data = pair.student.data_preprocessor(next(iter(loader)), True)
            images = pair.teacher.convert(data['inputs'], data.get('data_samples'))
        check_still(pair.teacher.model, images, data.get('data_samples'), self.report)

    # -- helpers -----------------------------------------------------------------------------------

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.options.on_progress is not None:
            self.options.on_progress(what, done, total)

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """A check that could not be made is a note."""
        try:
            yield
        except Exception as error:
            note_unexamined(self.report, what, error)

    @contextmanager
    def _refusing(self, where: str) -> Iterator[None]:
        """What training would not begin with is an error."""
        try:
            yield
        except Exception as error:
            note_refusal(self.report, error, where)


def _class_count(pair: Pair) -> int:
    """How many classes the student has; 0 if neither its data nor a module tells."""
    if pair.dataset is not None and (names := dataset_classes(pair.dataset)):
        return len(names)
    counts = [getattr(module, 'num_classes', None) for module in pair.student.modules()]
    # A proposal head knows one class, objects.
    return max((count for count in counts if isinstance(count, int)), default=0)


def _compares_classes(pair: Pair) -> bool:
    """Whether a term compares the classes of both models; without terms, that is not known."""
    assert pair.teacher is not None
    try:
        chosen = pair.hook.method.resolve(pair.student, pair.teacher.model, {})
    except ValueError:
        return True
    for term in chosen.terms:
        try:
            view = make_view(term['student'], pair.student)
        except ValueError:
            continue
        if view.compares_classes(pair.student):
            return True
    return False
