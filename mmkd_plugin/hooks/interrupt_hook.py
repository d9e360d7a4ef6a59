"""Saves and stops after the running iteration when the process is asked to end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ..registry import HOOKS
from .rest_of_epoch import resume_within_epoch
from .safe_checkpoint_hook import save_whole

_ONCE = 2.0  # seconds in which a launcher may pass on a signal that its ranks have had already
_INFO = 'interrupted_ckpt'
_SIGNALS = 128  # numbers of signals are below


@HOOKS.register_module()
class InterruptHook(Hook):
    """Turns SIGTERM and Ctrl-C into a checkpoint and a clean end.

    At the first signal the running iteration is finished, a checkpoint is saved and the process
    ends with status 128 + signal. ``--resume`` then goes on with the next batch, in the middle of
    an epoch, too. A second signal ends the process at once. Signals that another library handles
    are left to it.

    Where the run's ``CheckpointHook`` counts epochs, the file is called ``iter_<n>.pth``. It is
    removed when a later one is complete in the same folder. During validation the process ends at
    once if the state is saved already (that validation is not repeated), otherwise after one
    iteration more. Gradients that are being accumulated are used first.

    With several ranks one signal to one of them is enough. Each looks once an iteration into the
    key-value store of the process group (no collective, no wait for the device); the first that
    was signalled writes there the iteration after which all stop, two later than its own.

    Args:
        signals: names of the signals.
    """

    # After CheckpointHook and all others: what is saved is the state after the iteration.
    priority = 'LOWEST'

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGINT')) -> None:
        known = [item.name for item in signal.Signals]
        if isinstance(signals, str) or not all(name in known for name in signals):
            raise ValueError(
                f"signals={signals!r} must be a list of names such as ['SIGTERM', 'SIGINT']."
            )
        self.signals = [getattr(signal, name) for name in signals]
        self._replaced: dict[int, Any] = {}
        self._received: int | None = None
        self._received_at = 0.0
        self._stop: tuple[int, int] | None = None  # iterations done then, and signal
        self._saved: tuple[str | None, int] = (None, -1)  # newest file, and iterations done then

    def before_train(self, runner: Runner) -> None:
        resume_within_epoch(runner)
        self._process = os.getpid()
        self._received = self._stop = None
        hook = _checkpoint_hook(runner)
        self._saved = (getattr(hook, 'last_ckpt', None), -1)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('Signals reach the main thread only: InterruptHook does nothing.')
            return
        for number in self.signals:
            # A handler of another library's knows what the signal means there.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._replaced[number] = signal.signal(number, self._receive)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        done = runner.iter + 1
        self._note_saved(runner, done)
        number = self._due(runner, done)
        if number is not None and not _between_updates(runner.optim_wrapper):
            self._end(runner, number, self._save(runner, done))

    def after_train_epoch(self, runner: Runner) -> None:
        self._note_saved(runner, runner.iter)
        self._end_if_saved(runner)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        self._end_if_saved(runner)

    def after_train(self, runner: Runner) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a worker of the data loader: the main process decides
        now = time.monotonic()
        if self._received is None:
            self._received, self._received_at = number, now
            name = signal.Signals(number).name
            os.write(2, f'\n{name}: saving after this iteration; again: ending at once\n'.encode())
        elif get_world_size() == 1 or now - self._received_at > _ONCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _due(self, runner: Runner, done: int) -> int | None:
        """The signal by which the run ends here, on all ranks alike."""
        if get_world_size() == 1:
            return self._received
        if self._stop is None:
            store, key = _store(), f'mmkd_plugin/interrupt/{runner.timestamp}'
            if self._received is not None and store.add(f'{key}/first', 1) == 1:
                # One iteration is how far ranks can be apart: each waits for the others' gradients.
                store.add(key, (done + 2) * _SIGNALS + self._received)
            said = store.add(key, 0)  # a counter: the one thing that every store reads at once
            if said:
                self._stop = divmod(said, _SIGNALS)
        if self._stop is None or done < self._stop[0]:
            return None
        return self._stop[1]

    def _note_saved(self, runner: Runner, done: int) -> None:
        """Remembers when the checkpoint hook last saved, and removes what its file replaces."""
        newest = getattr(_checkpoint_hook(runner), 'last_ckpt', None)
        if newest == self._saved[0]:
            return
        self._saved = (newest, done)
        old = runner.message_hub.runtime_info.get(_INFO)
        if old is not None:
            runner.message_hub.pop_info(_INFO)
            _remove_superseded(old, str(newest))

    def _save(self, runner: Runner, done: int) -> str:
        hook = _checkpoint_hook(runner)
        newest, saved = self._saved
        if saved == done and newest is not None:
            return newest
        if hook is not None and not hook.by_epoch:
            hook._save_checkpoint(runner)
            return hook.last_ckpt
        local = hook is not None and isinstance(hook.file_backend, LocalBackend)
        folder = hook.out_dir if hook is not None and local else runner.work_dir
        path = os.path.join(folder, f'iter_{done}.pth')
        old = runner.message_hub.runtime_info.get(_INFO)
        runner.message_hub.update_info(_INFO, path)
        save_whole(runner, path, meta=dict(epoch=runner.epoch, iter=done), by_epoch=False)
        if is_main_process():
            (Path(runner.work_dir) / 'last_checkpoint').write_text(path)
        if old is not None:
            _remove_superseded(old, path)
        return path

    def _end_if_saved(self, runner: Runner) -> None:
        # Ranks are not at the same batch of validation; several end after the next iteration.
        (newest, saved), number = self._saved, self._received
        if number is None or newest is None or get_world_size() > 1:
            return
        if saved == runner.iter:
            self._end(runner, number, newest)

    def _end(self, runner: Runner, number: int, path: str) -> None:
        barrier()  # a launcher ends all ranks when one has ended
        self._put_back()
        runner.visualizer.close()
        if is_main_process():
            runner.logger.warning(
                f'{signal.Signals(number).name} after iteration {runner.iter}: the state is saved '
                f'in {path}. Give the same command with --resume to go on.'
            )
        raise SystemExit(128 + number)


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _remove_superseded(old: str, new: str) -> None:
    """Removes the file of an earlier interruption, unless another work dir's run left it."""
    superseded, by = Path(old).resolve(), Path(new).resolve()
    if is_main_process() and superseded != by and superseded.parent == by.parent:
        superseded.unlink(missing_ok=True)


def _between_updates(optimizer: Any) -> bool:
    """Whether gradients are being accumulated, which no checkpoint holds."""
    several = getattr(optimizer, '_accumulative_counts', 1) > 1
    return several and not optimizer.should_update()


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
