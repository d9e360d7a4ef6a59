"""The runs of a benchmark: ``worker.py`` in a process for each, see ``mmkd_plugin.cli.runs``."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.methods import TASKS
from mmkd_plugin.cli import runs
from mmkd_plugin.cli.runs import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / 'benchmarks' / 'worker.py'


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, else None."""
    return read_json(folder / 'results.json')


def prepare_run(folder: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The results of an equal finished run, else None with ``folder`` prepared for the worker.

    Raises:
        SystemExit: The folder holds a run of other settings.
    """
    old = read_json(folder / runs.NOTE)
    if old is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / runs.NOTE, run)
        return None
    new = json.loads(json.dumps(run))
    if old != new:
        keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        raise SystemExit(
            f'{folder} holds a run made with other settings ({", ".join(keys)}). Remove that '
            'folder to train it again, or name another --work-dir.'
        )
    return read_results(folder)


def headline(result: dict[str, Any]) -> str:
    """The number that counts, as text: ``'AP 41.3'``."""
    task = TASKS[result.get('task', 'detection')]
    return f'{task.main} {task.scale * result[task.main]:.1f}'


def label(folder: Path) -> str:
    """A run as the log names it: ``'runs/pkd-seed0'``."""
    return '/'.join(folder.parts[-2:])


class Run(runs.Run):
    """A folder that :func:`prepare_run` has prepared."""

    home = ROOT

    def command(self) -> list[str]:
        return [str(WORKER), str(self.folder)]

    def has_result(self) -> bool:
        return read_results(self.folder) is not None


class Pool(runs.Pool[Run]):
    """Runs workers as processes and prints how they get on.

    Args:
        jobs: How many at a time.
        threads: CPU threads of each.
        env: Further environment variables, such as which GPU to use.
    """

    def __init__(self, jobs: int, threads: int, env: dict[str, str] | None = None) -> None:
        count = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), str(threads))
        super().__init__(jobs, runs.child_environment(**count, **(env or {})))

    def start(self, folder: Path) -> subprocess.Popen[bytes] | None:
        """Starts the worker of one run; None if the run is being trained already."""
        return Run(folder).start(self.env)

    def run(self, folders: list[Path]) -> list[Path]:
        """Works through ``folders``; returns those that failed, which does not stop the others."""
        return [run.folder for run in self.train([Run(folder) for folder in folders])]

    def on_start(self, run: Run) -> None:
        print(f'start {label(run.folder)}', flush=True)

    def on_wait(self, run: Run) -> None:
        print(f'wait  {label(run.folder)}: another process trains it', flush=True)

    def on_end(self, run: Run, code: int) -> None:
        name, result = label(run.folder), read_results(run.folder)
        if code or result is None:
            why = run.reason(code)
            print(f'FAILED {name} (exit code {code}), see {run.log}:\n{why}', flush=True)
            return
        left = (time.perf_counter() - self.begin) / self.done * (self.total - self.done) / 60
        progress = f'[{self.done}/{self.total}, about {left:.0f} min left]'
        print(f'done  {name}: {headline(result)}, {result["seconds"]:.0f} s {progress}', flush=True)
