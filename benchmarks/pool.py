"""Training runs as processes: what is finished, what is left, and what it runs on."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.methods import TASKS
from mmkd_plugin.files import whole_file

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / 'benchmarks' / 'worker.py'
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
MOST_LINES = 12  # of a worker's log in a message


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.machine()
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
    date = datetime.now(timezone.utc).strftime('%Y-%m-%d')
    return dict(
        cpu=cpu, cores=os.cpu_count(), python=platform.python_version(), **versions, date=date
    )


def write_json(path: Path, content: Any) -> None:
    """Replaces the file in one step, so that a kill leaves the old or the new one."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + '\n')


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, else None."""
    file = folder / 'results.json'
    return json.loads(file.read_text()) if file.is_file() else None


def prepare_run(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The results of an equal finished run, else None with ``folder`` prepared for the worker.

    Raises:
        SystemExit: The folder holds a run of other settings.
    """
    spec = folder / 'run.json'
    if spec.is_file():
        old, new = json.loads(spec.read_text()), json.loads(json.dumps(run))
        if old != new:
            keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
            raise SystemExit(
                f'{folder} holds a run made with other settings ({", ".join(keys)}). Remove that '
                'folder to train it again, or name another --work-dir.'
            )
        return read_results(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(spec, run)
    return None


def headline(result: dict[str, Any]) -> str:
    """The number that counts, as text: ``'AP 41.3'``."""
    task = TASKS[result.get('task', 'detection')]
    return f'{task.main} {task.scale * result[task.main]:.1f}'


def label(folder: Path) -> str:
    """A run as the log names it: ``'runs/pkd-seed0'``."""
    return '/'.join(folder.parts[-2:])


def reason(log: Path, start: int, code: int) -> str:
    """Why a worker ended, in the words of its log.

    Args:
        log: What the worker wrote to; earlier tries may stand in front.
        start: Where this try began in it, in bytes.
        code: The exit code of the worker's process; below 0 it is a signal.

    Returns:
        The exception of the last traceback with its whole message; without a traceback the last
        lines. A signal comes first. Lines are indented.
    """
    with log.open('rb') as file:
        file.seek(start)
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


class Pool:
    """Runs workers as processes.

    Args:
        jobs: How many at a time.
        threads: CPU threads of each.
        env: Further environment variables, such as which GPU to use.
    """

    def __init__(self, jobs: int, threads: int, env: dict[str, str] | None = None) -> None:
        self.jobs = jobs
        threads = str(threads)
        # Threads that wait must not spin: the cores are shared with the other runs.
        self.env = {
            **os.environ,
            'OMP_NUM_THREADS': threads,
            'MKL_NUM_THREADS': threads,
            'OMP_WAIT_POLICY': 'PASSIVE',
            **(env or {}),
        }

    def start(self, folder: Path) -> subprocess.Popen | None:
        """Starts the worker of one run; it writes to ``log.txt``.

        Returns:
            The process; None if the run is being trained already, such as by a worker that has
            outlived a killed benchmark.
        """
        with (folder / 'log.txt').open('ab') as log, (folder / 'lock').open('ab') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            command = [sys.executable, str(WORKER), str(folder)]
            # The worker inherits the lock, which lasts as long as it lives.
            return subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=log, stderr=log, pass_fds=[lock.fileno()]
            )

    def run(self, folders: list[Path]) -> list[Path]:
        """Works through ``folders``; returns those that failed, which does not stop the others.

        An interruption (Ctrl-C) ends the workers; what they saved is used the next time.
        """
        waiting, failed, done = list(folders), [], 0
        working: dict[Path, subprocess.Popen] = {}
        starts: dict[Path, int] = {}
        elsewhere: set[Path] = set()
        begin = time.perf_counter()
        try:
            while waiting or working:
                for folder in list(waiting):
                    if len(working) >= self.jobs:
                        break
                    if folder in elsewhere and read_results(folder) is not None:
                        waiting.remove(folder)
                        done += 1
                        continue
                    log = folder / 'log.txt'
                    starts[folder] = log.stat().st_size if log.is_file() else 0
                    process = self.start(folder)
                    if process is not None:
                        waiting.remove(folder)
                        working[folder] = process
                        print(f'start {label(folder)}', flush=True)
                    elif folder not in elsewhere:
                        elsewhere.add(folder)
                        print(f'wait  {label(folder)}: another process trains it', flush=True)
                time.sleep(0.2)
                for folder in [f for f, process in working.items() if process.poll() is not None]:
                    code = working.pop(folder).returncode
                    done += 1
                    left = (time.perf_counter() - begin) / done * (len(folders) - done) / 60
                    progress = f'[{done}/{len(folders)}, about {left:.0f} min left]'
                    if not _tell_end(folder, code, starts[folder], progress):
                        failed.append(folder)
        finally:
            _terminate(working.values())
        return failed


def _terminate(processes: Collection[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _tell_end(folder: Path, code: int, start: int, progress: str) -> bool:
    """Prints how a run has ended, and returns whether it has results."""
    result = read_results(folder)
    if code or result is None:
        log = folder / 'log.txt'
        why = reason(log, start, code)
        print(f'FAILED {label(folder)} (exit code {code}), see {log}:\n{why}', flush=True)
        return False
    text = f'{headline(result)}, {result["seconds"]:.0f} s {progress}'
    print(f'done  {label(folder)}: {text}', flush=True)
    return True
