"""What a run logged while it trained: losses, metrics, seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .work_dirs import read_scalars


def read_lines(folder: Path) -> tuple[list[dict], list[dict]]:
    """Reads MMEngine's scalar logs of all sessions of a run.

    Returns:
        Training lines by iteration and validation lines by epoch (or iteration); where a resumed
        session repeated a step, its line replaces the older one.
    """
    train: dict[int, dict] = {}
    val: dict[int, dict] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in read_scalars(path):
            if 'step' in line:
                (train if 'loss' in line else val)[line['step']] = line
    return [train[step] for step in sorted(train)], [val[step] for step in sorted(val)]


def read_curves(folder: Path) -> dict[str, Any]:
    """Losses and metrics over training.

    Returns:
        ``losses`` and ``metrics``: by name, lists of (place, value). ``unit`` of the places:
        ``'epoch'`` or ``'iteration'``. ``iterations`` and ``seconds`` of training.
    """
    train, val = read_lines(folder)
    last = train[-1] if train else {}
    epochs = last.get('epoch')
    per_epoch = last['step'] / epochs if epochs else 1
    seconds, before = 0.0, 0
    losses: dict[str, list] = {}
    metrics: dict[str, list] = {}
    for line in train:
        # 'time' is the mean since the last line
        seconds += line.get('time', 0.0) * (line['step'] - before)
        before = line['step']
        for key, value in line.items():
            if 'loss' in key and isinstance(value, (int, float)):
                losses.setdefault(key, []).append((line['step'] / per_epoch, value))
    for line in val:
        for key, value in line.items():
            if key not in ('step', 'time', 'data_time') and isinstance(value, (int, float)):
                metrics.setdefault(key, []).append((line['step'], value))
    unit = 'epoch' if epochs else 'iteration'
    return dict(losses=losses, metrics=metrics, unit=unit, iterations=before, seconds=seconds)
