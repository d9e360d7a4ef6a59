"""Several gloo processes on the CPU that run one piece of code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent


def run_ranks(code: str, world: int = 2, cwd: Path | None = None) -> None:
    """Runs `code` in `world` processes, which find the project and the tests' helpers.

    Each has the environment of `torchrun`; `dist.init_process_group('gloo')` is for the code.

    Raises:
        AssertionError: one of them failed; with the end of what it printed.
    """
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
    found = [str(path) for path in (TESTS.parent, TESTS, HELPERS)]
    paths = f'import sys; sys.path[:0] = {found!r}\n'
    common = dict(
        WORLD_SIZE=str(world),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
    )
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', paths + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=dict(os.environ, **common, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(world)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-3000:]
