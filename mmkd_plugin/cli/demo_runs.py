"""The training runs of the demo: start, resume, watch and recognise them."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from ..diagnosis.compare.curves import read_lines
from .runs import PACKAGE, Pool, Run, child_environment

# Folders of the package whose code changes no training.
_NO_PART_OF_A_STEP = {'cli', 'datasets', 'diagnosis', 'report', 'visualization', '.mim'}


class DemoError(RuntimeError):
    """A run failed; the message is for the user."""


class DemoRun(Run):
    """One training run of the demo, in a folder of its own.

    Args:
        role: 'teacher', 'student' or 'distilled'.
        seed: Seed of the run.
        config: Its config: a path, or ``'mmkd_plugin::path'``.
        folder: Its work dir.
        epochs: Number of epochs.
        options: ``--cfg-options`` in the form key=value.
        teacher: The run whose checkpoint is the teacher.
    """

    log_name = 'train.log'

    def __init__(
        self,
        role: str,
        seed: int,
        config: str,
        folder: Path,
        epochs: int,
        options: list[str],
        teacher: DemoRun | None = None,
    ) -> None:
        super().__init__(folder)
        self.role, self.seed, self.config, self.epochs = role, seed, config, epochs
        self.options, self.teacher = options, teacher
        self.reused = False

    @property
    def name(self) -> str:
        return self.role if self.role == 'teacher' else f'{self.role}, seed {self.seed}'

    @property
    def checkpoint(self) -> Path:
        return self.folder / f'epoch_{self.epochs}.pth'

    def all_options(self) -> list[str]:
        if self.teacher is None:
            return self.options
        return [*self.options, f'custom_hooks.0.teacher.checkpoint={self.teacher.checkpoint}']

    def command(self) -> list[str]:
        """The command that trains it, or goes on from its last checkpoint."""
        command = ['-m', 'mmkd_plugin', 'train', self.config]
        command += ['--work-dir', str(self.folder), '--resume']
        options = self.all_options()
        return command + (['--cfg-options', *options] if options else [])

    def shown_command(self) -> str:
        return shlex.join(['python', *self.command()])

    def resolved(self):
        """Its config with all options applied."""
        from mmengine.config import DictAction

        from ..model_config import read_config

        config = read_config(self.config)
        if self.all_options():
            parser = argparse.ArgumentParser()
            parser.add_argument('--cfg-options', nargs='+', action=DictAction)
            config.merge_from_dict(
                parser.parse_args(['--cfg-options', *self.all_options()]).cfg_options
            )
        return config

    def iterations(self) -> int:
        config = self.resolved()
        loader = config.train_dataloader
        images = (loader.dataset.get('digits') or {}).get('train', 800)
        return self.epochs * math.ceil(images / loader.batch_size)

    # ------------------------------------------------------------------------ finished or not

    def fingerprint(self) -> str:
        """Changes with everything that would change the result: settings, and for a distilled run
        also the teacher's file and the plugin's code."""
        digest = hashlib.sha256()
        settings = self.resolved().to_dict()
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        if self.teacher is not None:
            digest.update(self.teacher.checkpoint.read_bytes())
            for source in sorted(PACKAGE.rglob('*.py')):
                if not set(source.relative_to(PACKAGE).parts) & _NO_PART_OF_A_STEP:
                    digest.update(source.read_bytes())
        return digest.hexdigest()

    def has_result(self) -> bool:
        return self.checkpoint.is_file()

    def is_finished(self, fingerprint: str) -> bool:
        note = self.note()
        same = note.get('fingerprint') == fingerprint and note.get('finished', False)
        return same and self.has_result()

    def set_aside(self) -> Path:
        """Keeps what lies in the folder as ``<folder>.previous``, in place of an older one."""
        previous = self.folder.with_name(self.folder.name + '.previous')
        shutil.rmtree(previous, ignore_errors=True)
        self.folder.rename(previous)
        return previous

    # ------------------------------------------------------------------------------- training

    def train(self, tell: Callable[[str], None], watch: Callable[[dict], None],
              fresh: bool = False, keep_open: tuple[int, ...] = ()) -> None:  # fmt: skip
        """Trains to the end unless that is done, and notes that it is finished.

        Args:
            tell: Called with a sentence about reuse or resumption.
            watch: Called about once a second with the newest line of the training log.
            fresh: Whether a finished run is trained anew, too; an interrupted one goes on.
            keep_open: File descriptors that the training process inherits.

        Raises:
            DemoError: if training fails.
        """
        fingerprint = self.fingerprint()
        if not fresh and self.is_finished(fingerprint):
            self.reused = True
            tell(f'{self.name}: trained already, reusing {self.checkpoint}')
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            finished = self.is_finished(fingerprint)
            if finished or self.note().get('fingerprint') != fingerprint:
                why = 'as asked' if finished else 'its settings, code or teacher have changed'
                tell(
                    f'{self.name}: training anew, {why}; the old run is kept in {self.set_aside()}'
                )
            else:
                last = sorted(self.folder.glob('epoch_*.pth'), key=lambda p: p.stat().st_mtime)
                after = f'after {last[-1].stem.replace("_", " ")}' if last else 'from the start'
                tell(f'{self.name}: was interrupted, going on {after}')
        self.write_note(fingerprint=fingerprint, finished=False, command=self.shown_command())
        _Watched(watch, keep_open).train([self])
        self.write_note(fingerprint=fingerprint, finished=True, command=self.shown_command())


class _Watched(Pool[DemoRun]):
    """Trains a run and hands the newest line of its training log to ``watch``."""

    interval = 1.0

    def __init__(self, watch: Callable[[dict], None], keep_open: tuple[int, ...]) -> None:
        super().__init__(1, child_environment(), keep_open)
        self.watch = watch

    def on_look(self, run: DemoRun) -> None:
        lines = read_lines(run.folder)[0]
        if lines:
            self.watch(lines[-1])

    def on_wait(self, run: DemoRun) -> None:
        raise DemoError(f'{run.name}: another process trains it in {run.folder}.')

    def on_end(self, run: DemoRun, code: int) -> None:
        if code:
            raise DemoError(
                f'{run.name}: training failed (exit status {code}); '
                f'the last lines of {run.log}:\n{run.reason(code)}'
            )
        if not run.has_result():
            raise DemoError(f'{run.name}: training ended without writing {run.checkpoint}.')
