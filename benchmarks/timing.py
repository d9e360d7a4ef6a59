"""What the benchmarks that time steps share: their options, the clock and what they ran on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmkd_plugin.cli.running import new_parser


def make_parser(description: str | None, device: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options for threads and device.

    Args:
        description: Of the benchmark; its lines are kept.
        device: The default; None is a GPU if there is one.
    """
    parser = new_parser(description)
    parser.add_argument('--threads', type=int, help='CPU threads (default: torch decides)')
    default = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--device', default=default, help='cpu, cuda, cuda:1 ... (%(default)s)')
    return parser


def prepare(args: argparse.Namespace) -> torch.device:
    """Sets the threads that were asked for; returns the device."""
    if args.threads:
        torch.set_num_threads(args.threads)
    return torch.device(args.device)


def settings(device: torch.device, **more: Any) -> dict[str, Any]:
    """What the times depend on."""
    return dict(
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **more,
    )


def seconds(step: Callable[[], Any], device: torch.device, number: int = 1) -> float:
    """Seconds of one step, a mean over ``number``; the device is waited for before and after."""
    _wait(device)
    begin = time.perf_counter()
    for _ in range(number):
        step()
    _wait(device)
    return (time.perf_counter() - begin) / number


def turns(
    steps: Sequence[Callable[[], Any]],
    device: torch.device,
    rounds: int,
    warmup: int = 0,
    number: int = 1,
) -> list[list[float]]:
    """:func:`seconds` of each step in every round, taken in turns: a slow moment of the machine
    hits all of them. Each round begins with another step; the ``warmup`` first ones do not count.
    """
    times: list[list[float]] = [[] for _ in steps]
    for i in range(warmup + rounds):
        for k in range(i, i + len(steps)):
            took = seconds(steps[k % len(steps)], device, number)
            if i >= warmup:
                times[k % len(steps)].append(took)
    return times


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
