"""Thousands of files that were damaged or made up, each read in a process that may die of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
CHILD = REPO / 'tests' / 'helpers' / 'fuzz_loader.py'
COUNT = 1500  # files of each kind and seed
# What reading may take beside the process itself, for these files of at most 60 KB.
MEMORY = 64 * 2**20
SECONDS = 20.0  # for a single file


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('kind', ['zip', 'old', 'pickle', 'program'])
def test_no_file_crashes_hangs_runs_code_or_takes_memory(tmp_path, kind, seed):
    done = subprocess.run(
        [sys.executable, '-X', 'faulthandler', str(CHILD), kind, str(seed), str(COUNT), tmp_path],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1'),
        timeout=1800,
    )
    if done.returncode:  # the file that did it is still there
        pytest.fail(f'{tmp_path / "mutant.pth"}: {done.returncode} {done.stderr[-3000:]}')
    refused, slowest, memory = done.stdout.split('RESULT')[1].split()
    assert int(refused) > COUNT * 0.5
    assert float(slowest) < SECONDS and int(memory) < MEMORY
