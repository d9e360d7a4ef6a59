"""One distillation step: what runs beside the student, and what it adds to its losses.

:func:`mmkd_plugin.attach` puts a :class:`Distiller` on a live model; ``docs/how-it-works.md``
tells the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn

from .checks import check_int
from .errors import put_place
from .functional.compiling import is_compiling
from .images.pixels import Pixels, of_model
from .rng import RandomSource, rng_kept
from .saving.finite import on_this_rank
from .taps import Recorder, TapError, is_loss_input, refuse_checkpointed
from .taps.body import Body, body_of, hears_images, samples_of
from .taps.probe import Probe
from .teacher import Teacher
from .teacher.handle import teacher_view
from .teacher.probing import probe_both
from .terms.base import PlanRow, Term
from .terms.build import make_terms
from .terms.config import check_terms
from .terms.connector_size import tell_large_connectors
from .terms.modules import Modules
from .terms.settings import plain, settings
from .terms.task import COMPLEMENT, add_zero, checked_task_weight, refuse_taken, weighted
from .weights import Calibration, CalibrationError

ATTRIBUTE = 'distiller'  # of a student, where its distiller is


class Distiller(nn.Module):
    """Everything a distilled step needs beside the student itself. Build it with :func:`attach`.

    Connectors are registered modules (optimized, moved and wrapped by DDP with the student). The
    teacher is a plain attribute, so it is in none of that; it follows ``.to()`` and the like.

    Args:
        student: the live model.
        teacher: handle of the frozen teacher.
        terms: the terms as config dicts.
        task_weight: factor on the student's own losses; ``'complement'`` is one minus the current
            weights of the terms, whatever their schedules make of them.
        seed: seeds connectors and noise.
        probe_size: height and width of the image by which shapes are measured, or the probe itself.
        checkpointed: modules that will be wrapped by activation checkpointing.
        pixels: what the student's images are; by default what its data preprocessor says.
    """

    task_factor: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        terms: Sequence[dict],
        task_weight: float | str = 1.0,
        seed: int = 0,
        probe_size: Sequence[int] | Probe = (256, 256),
        checkpointed: Sequence[str] = (),
        pixels: Pixels | None = None,
    ) -> None:
        super().__init__()
        check_terms(terms)
        probe = probe_size if isinstance(probe_size, Probe) else Probe(probe_size)
        check_int(seed, 'seed')
        self.teacher = teacher
        self._owner = id(self)
        self.rng = RandomSource(seed, get_rank())
        self.terms: Modules[Term] = Modules(make_terms(terms, student, teacher))
        self._tell_other_classes(student)
        self._configs = [plain(config) for config in terms]
        self.task_weight = checked_task_weight(task_weight, self.terms)
        self.register_buffer('task_factor', torch.tensor(1.0), persistent=False)
        self._share_weight()
        self.calibration = Calibration(self.terms, ATTRIBUTE)
        self.recorder = Recorder(student, 'student')
        self.handles: list = []
        self.keys: dict[str, str] = {}  # entries of the terms in the losses, and whose they are
        self._rows: list[PlanRow] = []
        # Not the iteration itself: a compiled step that looked at it would be compiled each time.
        self._waiting = [term.name for term in self.terms if not term.schedule.is_constant]
        self._iteration: int | None = None
        self._batch: tuple[Any, Any] | None = None  # of a step whose body waits for its images
        self._samples: Any = None
        self._finite: tuple[list[str], Tensor] | None = None
        for term in self.terms:
            for point in term.student.heard():
                if not is_loss_input(point):  # labels carry no gradient anyway
                    refuse_checkpointed(student, point.path, checkpointed, term.where)
        points = [point for term in self.terms for point in term.teacher.heard(teacher=True)]
        self.pixels = of_model(student) if pixels is None else pixels
        teacher.connect(student, points, self.pixels)
        try:
            for term in self.terms:
                self.recorder.listen(term.student.heard())
            self.body = self._hear_body(student)
            self._measure(student, probe, seed)
            self._claim_keys()
        except BaseException:
            self.close()
            raise

    @property
    def _recorders(self) -> tuple[Recorder, Recorder]:
        """The student's, and that of the teacher, which is connected."""
        assert self.teacher.recorder is not None
        return self.recorder, self.teacher.recorder

    def _tell_other_classes(self, student: nn.Module) -> None:
        """Where no term compares classes, those of the teacher are worth a note."""
        if self.teacher.difference and not any(
            t.student.compares_classes(student) for t in self.terms
        ):
            print_log(
                f'{self.teacher.difference} The terms compare features, which need no classes.',
                'current',
            )

    def _claim_keys(self) -> None:
        """Refuses terms that would write into each other's entries."""
        for term in self.terms:
            for key in term.keys():  # noqa: SIM118  # a term is no dict
                owner = self.keys.setdefault(key, term.name)
                if owner != term.name:
                    raise ValueError(
                        f'The terms {owner!r} and {term.name!r} would both be logged as {key!r}; '
                        "give one of them another name (name='...')."
                    )

    def _hear_body(self, student: nn.Module) -> Body | None:
        """Where the batch does not tell which images the student's body gets, its backbone does."""
        body = body_of(student)
        paths = [point.path for term in self.terms for point in term.student.heard()]
        if not hears_images(body, paths):
            return None
        backbone = body.module.backbone
        self.handles.append(
            backbone.register_forward_pre_hook(self._before_backbone, with_kwargs=True)
        )
        return body

    def _measure(self, student: nn.Module, probe: Probe, seed: int) -> None:
        """Runs both models on one probe where taps need it, and builds the connectors."""
        points = [point for term in self.terms for point in term.probed]
        with rng_kept():
            if points:
                body = self.body or Body('', student)
                probe = probe if self.body is None else probe.of_body()
                probe_both(student, self.recorder, self.teacher, points, probe, body)
            # Connectors are made on the CPU; torch.manual_seed would seed all accelerators, too.
            torch.default_generator.manual_seed(seed)
            for term in self.terms:
                self._rows += term.connect(*self._recorders, self.rng)
        tell_large_connectors(self.terms, student)
        self._clear()

    def plan(self) -> list[PlanRow]:
        """What is distilled: one row per level, with the shapes of the probe."""
        return list(self._rows)

    @property
    def loss_keys(self) -> list[str]:
        """Entries of the terms that are optimized, those of idle terms included."""
        return [key for key in self.keys if 'loss' in key]

    def stale_keys(self, steps: int) -> list[str]:
        """Entries of the terms that acted in none of the last ``steps`` steps, or have ended."""
        now = self._iteration or 0
        fresh = {
            term.name
            for term in self.terms
            if term.last_turn is not None and now - term.last_turn < steps
        }
        return [key for key, name in self.keys.items() if name not in fresh]

    def set_progress(self, iteration: int, epoch: int = 0) -> None:
        """Tells where training is (both from 0); ``DistillHook`` calls it before each iteration.

        Weights follow the schedules, and the noise of a step depends on seed, rank and iteration
        only, which makes a resumed run continue exactly.
        """
        self._iteration = iteration
        self._waiting = []
        self.rng.reseed(iteration)
        for term in self.terms:
            term.update(iteration, epoch)
        self._share_weight()

    def _share_weight(self) -> None:
        """What the terms leave to the student's own losses, with ``task_weight='complement'``."""
        if self.task_weight == COMPLEMENT:
            self.task_factor.fill_(1.0 - sum(term.current_weight for term in self.terms))

    # -- one training step -------------------------------------------------------------------

    def begin_step(self, inputs: Any, data_samples: Any = None) -> None:
        """Runs the teacher and arms the student's taps, if a term acts at this step.

        The teacher sees the very batch of the student, or, where the data preprocessor made a view
        of its own for it, ``data_samples['teacher_inputs']``.

        The teacher goes first: what its layers need for a moment is freed before the student's
        activations, which must stay for the backward, begin to pile up.

        Args:
            inputs: the student's preprocessed batch; of most models (N, C, H, W).
            data_samples: the batch's samples, or ``None``.
        """
        if self._waiting:
            raise RuntimeError(
                f'The terms {self._waiting} have a schedule, but nobody said how far training is. '
                'Call distiller.set_progress(iteration, epoch) before each step (DistillHook does).'
            )
        if any(term.active for term in self.terms):
            if not is_compiling():
                for term in self.terms:  # the last step may have found a weight
                    term.apply_weight()
            if self.body is None:
                self._teach(inputs, data_samples)
            else:
                self._batch = inputs, data_samples
            self.recorder.arm()

    def _teach(self, inputs: Any, data_samples: Any) -> None:
        if not is_compiling():
            self.teacher.check_images(inputs)
        self.teacher.run(teacher_view(inputs, data_samples), data_samples)
        self._samples = data_samples

    def _before_backbone(self, _backbone: nn.Module, args: tuple, kwargs: dict) -> None:
        """Lets the teacher see the images that the student's body gets first in a step.

        What the body sees later (reference frames, images without labels) is not distilled.
        """
        if self._batch is None:
            self.recorder.end_pass()
            return
        inputs, data_samples = self._batch
        self._batch = None
        images = args[0] if args else next(iter(kwargs.values()))
        self._teach(images, samples_of(images, inputs, data_samples))

    def abandon(self) -> None:
        """Disarms the taps of a step that failed in the student's forward, and drops its captures.

        Otherwise every inference after an out-of-memory error would be captured, and kept.
        """
        self.recorder.disarm()
        self._clear()

    def forward(self, losses: dict) -> dict:
        """Adds the terms to the student's losses.

        Args:
            losses: what the student returned in ``mode='loss'``; it is not changed.

        Returns:
            A new dict: the student's losses times ``task_weight``, and ``loss_<name>`` per term.
        """
        self.recorder.disarm()
        self._finite = None
        active = [term for term in self.terms if term.active]
        try:
            task, losses = losses, weighted(losses, self.task_weight, self.task_factor)
            for key, name in self.keys.items():  # of all terms: one may act only epochs from now
                refuse_taken(key, name, losses)
            if active:
                self._add(losses, active)
                if self.calibrates:
                    self._calibrate(task, losses, active)
            idle = [term for term in self.terms if not term.active and list(term.parameters())]
            if idle and get_world_size() > 1:
                add_zero(losses, sum(term.idle() for term in idle))
        finally:
            self._clear()
        return losses

    def _add(self, losses: dict, active: Sequence[Term]) -> None:
        if not is_compiling():
            self._refuse_overwritten()
        names, finite = [], []
        for term in active:
            try:  # no context manager: the compiler would stop at it
                entries, watched = term.compute(*self._recorders, self._samples)
            except ValueError as error:
                put_place(error, term.where)
                raise
            names += [item.name for item in watched]
            finite += [
                torch.isfinite(item.tensor.detach().sum(dtype=torch.float32)) for item in watched
            ]
            for key, value in entries.items():
                refuse_taken(key, term.name, losses)
                losses[key] = value
                if key not in self.keys:  # a loss that does not name its keys
                    self.keys[key] = term.name
        self._finite = (names, torch.stack(finite))

    @property
    def calibrates(self) -> bool:
        """Whether the next step finds weights, which a compiled one cannot."""
        return any(term.active and self.calibration.is_open(term) for term in self.terms)

    def _calibrate(self, task: dict, losses: dict, active: Sequence[Term]) -> None:
        if is_compiling():
            raise RuntimeError(
                "A compiled step cannot find the weights of terms (weight='auto'). Run the first "
                'steps without torch.compile, while distiller.calibrates is true (DistillHook '
                'does), or give the terms numbers.'
            )
        try:
            self.calibration.step(self.recorder.model, task, losses, active)
        except CalibrationError:
            self.raise_if_not_finite()  # then the place that holds NaN says more
            raise

    def _refuse_overwritten(self) -> None:
        for recorder in self._recorders:
            for path in recorder.overwritten():
                raise TapError(
                    f'The {recorder.role} tap {path!r} was changed in place after it '
                    'was captured (by an in-place activation, say). Tap the module '
                    'that changes it, or set its inplace=False.'
                )

    def _clear(self) -> None:
        self._samples = self._batch = None
        for recorder in self._recorders:
            recorder.clear()

    def close(self) -> None:
        """Removes every hook from student and teacher."""
        for handle in self.handles:
            handle.remove()
        self.recorder.close()
        if self._owner == id(self):  # a deep copy shares the teacher but must not disconnect it
            self.teacher.close()

    # -- checks after a step -----------------------------------------------------------------

    def raise_if_not_finite(self) -> None:
        """Names the taps of the last step that held NaN or Inf. Reads one tensor from the device.

        Raises:
            FloatingPointError: naming tap and iteration.
        """
        if self._finite is None:
            return
        names, finite = self._finite
        bad = [name for name, ok in zip(names, finite.tolist()) if not ok]
        if bad:
            at = '' if self._iteration is None else f' at iteration {self._iteration}'
            raise FloatingPointError(
                f'NaN or Inf{at}{on_this_rank()} in the {", ".join(bad)}. '
                'Lower the learning rate or the weight of the term, clip gradients, or train with '
                'bfloat16 instead of float16.'
            )

    # -- state -------------------------------------------------------------------------------

    def term_types(self) -> dict[str, str]:
        """The loss of each term by the term's name."""
        return {term.name: type(term.losses[0]).__name__ for term in self.terms}

    def weights(self) -> dict[str, float]:
        """The weight of each term by its name, of those that have one for good."""
        return {t.name: t.weight for t in self.terms if not self.calibration.is_open(t)}

    def settings(self) -> dict:
        """The numbers of this run in plain values, by which a resumed run sees what has changed."""
        return dict(task_weight=self.task_weight, terms=settings(self.terms, self._configs))

    def resume_state(self) -> dict:
        """What a resumed run needs beside the student's own state."""
        connectors = {k: v.detach().cpu() for k, v in self.terms.state_dict().items()}
        state = dict(
            version=1,
            connectors=connectors,
            teacher=dict(self.teacher.identity),
            seed=self.rng.seed,
            settings=self.settings(),
            weights=self.weights(),
            calibration=self.calibration.state(),
        )
        changing = self.teacher.resume_state()
        return state if changing is None else dict(state, teacher_state=changing)

    def load_resume_state(self, state: dict) -> None:
        """Restores :meth:`resume_state`.

        Raises:
            ValueError: if the connectors of the checkpoint do not fit the terms of this run.
        """
        own = self.terms.state_dict()
        saved = state['connectors']
        wrong = sorted(set(own) ^ set(saved)) or [k for k in own if own[k].shape != saved[k].shape]
        if wrong:
            raise ValueError(
                "The checkpoint's distillation terms are not those of this run "
                f'(differing connectors: {wrong[:6]}). Resume with the same terms, or '
                'start a new run with load_from.'
            )
        self.terms.load_state_dict(saved)
        self.calibration.load(state.get('calibration', {}), self.terms)
        self.rng.seed = state['seed']
        if 'teacher_state' in state:
            self.teacher.load_resume_state(state['teacher_state'])

    def extra_repr(self) -> str:
        teacher = type(self.teacher.model).__name__
        return f'terms={[term.name for term in self.terms]}, teacher={teacher}'

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Distiller:
        if self._owner == id(self):  # a deep copy (EMA on another device) shares the teacher
            self.teacher.move(fn)
        return super()._apply(fn, *args, **kwargs)

    def apply(self, fn: Any) -> Distiller:
        """Does nothing: a detector-wide ``init_cfg`` reaches its modules by ``apply`` and must not
        initialise connectors (nor draw random numbers for them)."""
        return self
