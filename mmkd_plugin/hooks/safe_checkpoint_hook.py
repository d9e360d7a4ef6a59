"""A CheckpointHook that gives up no checkpoint before a complete and finite one takes its place."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..registry import HOOKS
from ..saving.finite import not_finite
from ..saving.optimizer_state import parameter_names
from .runner_model import student_of

NOT_FINITE = 'not_finite'  # in a checkpoint's meta: entries that may hold NaN or Inf
_PART = '.part'


class _DeferredRemovals:
    """File backend whose removals wait until :meth:`commit`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: list = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._waiting.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self._waiting.append((self._backend.rmtree, path))

    def commit(self, written: Collection[str]) -> None:
        for remove, path in self._waiting:
            if path not in written:  # validated twice, an epoch may be the best once more
                remove(path)
        self._waiting.clear()


class _WholeFiles:
    """Runner whose checkpoints have their names only when they are complete."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        path = os.path.join(out_dir, filename)
        save_whole(self._runner, path, *args, **kwargs)
        self.written.append(path)


def save_whole(runner: Runner, path: str, *args: Any, **kwargs: Any) -> None:
    """``runner.save_checkpoint`` to a local file that gets its name when it is complete."""
    folder, name = os.path.split(path)
    try:
        runner.save_checkpoint(folder, name + _PART, *args, **kwargs)
        if is_main_process():
            os.replace(path + _PART, path)
    except BaseException:
        if is_main_process():
            Path(path + _PART).unlink(missing_ok=True)
        raise


# It has no base of its own and is put in front of any CheckpointHook: super() is one.
_AddedTo: Any = object


class SafeSaving(_AddedTo):
    """What :class:`SafeCheckpointHook` adds to a ``CheckpointHook``, or to a subclass of it."""

    out_dir: Any
    file_backend: Any
    _exempt: tuple[str, ...] = ()
    _saved: str | None = None  # the newest file that was looked at

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._exempt = tuple(not_finite(dict(student_of(runner).state_dict())))
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            self._remove_leftovers(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Looks at what is about to be written.

        Raises:
            FloatingPointError: naming the first entries that hold NaN or Inf.
        """
        bad = not_finite(checkpoint, self._exempt)
        if bad:
            raise FloatingPointError(
                f'NaN or Inf at iteration {runner.iter} in the {_told(bad, runner)}: this state '
                f'is not saved and training stops. {self.intact()} Lower the learning rate, clip '
                'gradients, look for broken annotations, or train with bfloat16 instead of '
                'float16.'
            )
        checkpoint['meta'][NOT_FINITE] = list(self._exempt)

    def intact(self) -> str:
        """A sentence about the newest checkpoint of this run."""
        if self._saved is None:
            return 'This run has saved no checkpoint before.'
        return f'The checkpoint {self._saved} was looked at when it was saved: it is finite.'

    def _save_checkpoint(self, runner: Runner) -> None:
        self._safely(super()._save_checkpoint, runner)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        self._safely(super()._save_best_checkpoint, runner, metrics)

    def _safely(self, save: Any, runner: Runner, *args: Any) -> None:
        backend, deferred, last = self.file_backend, _DeferredRemovals(self.file_backend), None
        self.file_backend = deferred
        # The strategies of a FlexibleRunner may write folders, and from every rank.
        local = isinstance(runner, Runner) and isinstance(backend, LocalBackend)
        files = _WholeFiles(runner)
        before = self._files()
        try:
            save(files if local else runner, *args)
            last = self.last_ckpt
        except OSError as error:
            for path in self._files() - before:
                path.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f'{error.strerror or error}: the checkpoint could not be written to '
                f'{self.out_dir}. {self._previous()}Make room and start again with --resume',
            ) from error
        finally:
            self.file_backend = backend
        deferred.commit(files.written)
        self._saved = last or self._saved

    def _previous(self) -> str:
        return f'The previous one is intact: {self._saved}. ' if self._saved else ''

    def _files(self) -> set[Path]:
        folder = Path(self.out_dir)
        return {p for p in folder.glob('*.pth') if p.is_file()} if folder.is_dir() else set()

    def _remove_leftovers(self, runner: Runner) -> None:
        """Removes what a kill kept MMEngine's own bookkeeping from removing."""
        for part in Path(self.out_dir).glob(f'*.pth{_PART}'):
            part.unlink(missing_ok=True)
        kept = runner.message_hub.runtime_info.get('keep_ckpt_ids')
        file = runner._load_from  # of another work dir: what is here is not of its run
        elsewhere = file and Path(file).resolve().parent != Path(self.out_dir).resolve()
        if self.max_keep_ckpts <= 0 or not kept or elsewhere:
            return
        pattern = re.escape(self.filename_tmpl).replace(r'\{\}', r'(\d+)')
        for path in Path(self.out_dir).glob('*.pth'):
            found = re.fullmatch(pattern, path.name)
            if found and int(found.group(1)) not in kept and int(found.group(1)) < max(kept):
                runner.logger.info(f'{path} was left behind by a killed run and is removed.')
                path.unlink(missing_ok=True)


@HOOKS.register_module()
class SafeCheckpointHook(SafeSaving, CheckpointHook):
    """MMEngine's ``CheckpointHook``, safe from full disks, kills and NaN.

    * The original removes an old checkpoint first (``max_keep_ckpts``, ``save_best``) and writes
      the new one in its place. Here the old one goes when the new one is complete, and a file gets
      its name only then.
    * What is about to be written is looked at: weights, buffers, optimizer, moving averages and
      connectors. Where one of them holds NaN or Inf, nothing is written or removed and training
      stops. Entries of the model that held them when training began, such as masks of -inf, may go
      on doing so.
    * Checkpoints that a kill left behind are removed by ``max_keep_ckpts`` after a resume.

    The look costs nothing in steps that do not save. :class:`DistillHook` gives these abilities to
    the ``CheckpointHook`` of its run, whatever script started it. Arguments are those of
    ``CheckpointHook``.
    """


def guard(runner: Runner) -> None:
    """Makes the runner's checkpoint hooks safe, subclasses of ``CheckpointHook`` too."""
    for hook in runner.hooks:
        kind = type(hook)
        if kind is CheckpointHook:
            hook.__class__ = SafeCheckpointHook
        elif isinstance(hook, CheckpointHook) and not isinstance(hook, SafeSaving):
            hook.__class__ = type(f'Safe{kind.__name__}', (SafeSaving, kind), {})


def intact(runner: Runner) -> str:
    """A sentence about the newest checkpoint of the run, or nothing where no hook looked at it."""
    for hook in runner.hooks:
        if isinstance(hook, SafeSaving):
            return hook.intact()
    return ''


def _told(paths: list[str], runner: Runner, count: int = 4) -> str:
    """The paths in words, the optimizer's with the names of their parameters."""
    named = dict(student_of(runner).named_parameters())
    names = parameter_names(runner.optim_wrapper, named)
    words = []
    for path in paths[:count]:
        start = next((key for key in names if path.startswith(key)), None)
        if start is not None:
            words.append(f"optimizer's {path[len(start) :]} of {names[start]}")
        else:
            part, _, name = path.partition('.')
            words.append(f'{_PARTS.get(part, part)} {name.removeprefix("module.")}')
    more = f' and {len(paths) - count} more' if len(paths) > count else ''
    return ', '.join(words) + more


_PARTS = dict(state_dict='weights of', ema_state_dict='weights of', distiller='distillation state')
