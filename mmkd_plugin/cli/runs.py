"""Training runs as child processes: what is finished, what is left, and what they run on.

The demo and the benchmarks keep their runs in one way. A run has a folder of its own. ``run.json``
there holds what it was started with, and a log what its process has said. Started again after a
kill, a run goes on from its last checkpoint.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..files import whole_file

PACKAGE = Path(__file__).resolve().parents[1]
NOTE = 'run.json'
PACKAGES = (
    'torch',
    'torchvision',
    'mmengine',
    'onedl-mmengine',
    'mmcv',
    'onedl-mmcv',
    'mmdet',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
    'timm',
    'scikit-learn',
)
TRACEBACK = 'Traceback (most recent call last):'
MOST_LINES = 12  # of a run's log in a message
PATIENCE = 20  # seconds that a process has to end before it is killed


# -- files and the machine -----------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Replaces the file in one step, so that a kill leaves the old or the new one."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def read_json(path: Path) -> dict[str, Any] | None:
    """What the file holds; None if there is no file."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None


def machine() -> dict[str, Any]:
    """What numbers were measured on."""
    import torch

    cpu = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith('model name')]
        cpu = lines[0].split(':', 1)[1].strip() if lines else cpu
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    affinity = getattr(os, 'sched_getaffinity', None)  # not on every system
    return dict(
        cpu=cpu,
        cores=len(affinity(0)) if affinity else os.cpu_count(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else 'none',
        system=platform.system(),
        python=platform.python_version(),
        **versions,
    )


def child_environment(**more: str) -> dict[str, str]:
    """Environment variables of a training process: this one's and ``more``."""
    env = dict(os.environ)
    home = PACKAGE.parent
    if home.name not in ('site-packages', 'dist-packages'):  # a checkout may not be installed
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(home), env.get('PYTHONPATH')]))
    # Threads that wait by spinning make a shared machine many times slower.
    env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    return {**env, **more}


def hold(path: Path) -> int | None:
    """Locks a file for this process and for the children that inherit the descriptor.

    Returns:
        The descriptor; None if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except (ImportError, OSError):  # no locks on this system
        pass
    return descriptor


# -- runs ----------------------------------------------------------------------------------------


class Run:
    """One training run in a folder of its own."""

    log_name = 'log.txt'
    home: Path | None = None  # where its process is started; None is the present folder

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin = 0  # of this try in the log, in bytes

    @property
    def log(self) -> Path:
        return self.folder / self.log_name

    def command(self) -> list[str]:
        """What Python is told, to train the run or to go on with it."""
        raise NotImplementedError

    def has_result(self) -> bool:
        """Whether training has left what it is for."""
        raise NotImplementedError

    def note(self) -> dict[str, Any]:
        """What the run was started with; empty if that is not known."""
        try:
            return read_json(self.folder / NOTE) or {}
        except (OSError, ValueError):
            return {}

    def write_note(self, **content: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / NOTE, content)

    def start(
        self, env: dict[str, str], keep_open: Sequence[int] = ()
    ) -> subprocess.Popen[bytes] | None:
        """Starts the process that trains the run; it writes to the log, and inherits ``keep_open``.

        Returns:
            The process; None if the run is being trained already, such as by a process that has
            outlived whoever started it.
        """
        lock = hold(self.folder / 'lock')
        if lock is None:
            return None
        try:
            with self.log.open('ab') as log:
                self._begin = log.tell()
                # The process inherits the lock, which lasts as long as it lives.
                return subprocess.Popen(
                    [sys.executable, *self.command()],
                    cwd=self.home,
                    env=env,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock, *keep_open],
                )
        finally:
            os.close(lock)

    def reason(self, code: int) -> str:
        """Why the process has ended, in the words of its log; a code below 0 is a signal.

        Returns:
            The exception of the last traceback with its whole message; without a traceback the
            last lines. A signal comes first. Lines are indented.
        """
        with self.log.open('rb') as file:
            file.seek(self._begin)
            lines = file.read().decode(errors='replace').splitlines()
        said = [line for line in lines if line.strip()]
        found = [i for i, line in enumerate(said) if line.startswith(TRACEBACK)]
        if found:
            # Frames are indented, what was raised is not.
            said = list(itertools.dropwhile(lambda line: line[0] == ' ', said[found[-1] + 1 :]))
            said = said[:MOST_LINES]
        else:
            said = said[-MOST_LINES:]
        if code < 0:
            name = signal.Signals(-code).name
            hint = ', as the system does when memory runs out' if name == 'SIGKILL' else ''
            said.insert(0, f'ended by {name}{hint}')
        return '\n'.join(f'    {line}' for line in said or ['It wrote nothing.'])


AnyRun = TypeVar('AnyRun', bound=Run)


class Pool(Generic[AnyRun]):
    """Trains runs, some at a time; a subclass says what the user is told.

    Args:
        jobs: How many at a time.
        env: Environment variables of the processes.
        keep_open: File descriptors that they inherit.
    """

    interval = 0.2  # seconds between two looks at the processes

    def __init__(self, jobs: int, env: dict[str, str], keep_open: Sequence[int] = ()) -> None:
        self.jobs, self.env, self.keep_open = jobs, env, keep_open
        self.total = self.done = 0

    def on_start(self, run: AnyRun) -> None:
        """Called when a run's process has been started."""

    def on_wait(self, run: AnyRun) -> None:
        """Called once for a run that another process trains."""

    def on_look(self, run: AnyRun) -> None:
        """Called at each look at a run that is being trained."""

    def on_end(self, run: AnyRun, code: int) -> None:
        """Called when a run's process has ended with this exit code."""

    def train(self, runs: Sequence[AnyRun]) -> list[AnyRun]:
        """Works through ``runs``; returns those that failed, which does not stop the others.

        An interruption (Ctrl-C) ends the processes; what they saved is used the next time.
        """
        self.total, self.done, self.begin = len(runs), 0, time.perf_counter()
        waiting, failed = list(runs), []
        elsewhere: list[AnyRun] = []
        working: dict[AnyRun, subprocess.Popen[bytes]] = {}
        try:
            while waiting or working:
                self._start_some(waiting, working, elsewhere)
                time.sleep(self.interval)
                for run, process in list(working.items()):
                    if process.poll() is None:
                        self.on_look(run)
                        continue
                    del working[run]
                    self.done += 1
                    self.on_end(run, process.returncode)
                    if process.returncode or not run.has_result():
                        failed.append(run)
        finally:
            _stop(working.values())
        return failed

    def _start_some(
        self,
        waiting: list[AnyRun],
        working: dict[AnyRun, subprocess.Popen[bytes]],
        elsewhere: list[AnyRun],
    ) -> None:
        for run in list(waiting):
            if len(working) >= self.jobs:
                break
            if run in elsewhere and run.has_result():
                waiting.remove(run)
                self.done += 1
                continue
            process = run.start(self.env, self.keep_open)
            if process is not None:
                waiting.remove(run)
                working[run] = process
                self.on_start(run)
            elif run not in elsewhere:
                elsewhere.append(run)
                self.on_wait(run)


def _stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
