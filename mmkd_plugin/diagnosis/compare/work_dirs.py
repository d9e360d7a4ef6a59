"""A work dir of any run of MMEngine: its config, its checkpoint, its seed, whether it finished."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...checkpoints.load import read_file
from ...model_config import read_config
from .errors import CompareError

_NUMBERED = re.compile(r'(?:epoch|iter)_(\d+)\.pth')


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left in its work dir.

    Attributes:
        folder: the work dir.
        config: as the run dumped it.
        checkpoint: the file whose model is compared.
        weights: its model; what else it holds, such as the optimizer, is not kept in memory.
        digest: its SHA-256.
        seed: of the run; None where nothing tells it.
    """

    folder: Path
    config: Config
    checkpoint: Path
    weights: dict[str, Any]
    digest: str
    seed: int | None

    @property
    def split(self) -> str:
        """The set that is predicted on: ``'val'`` or, without one, ``'test'``.

        Raises:
            CompareError: the config has neither.
        """
        for split in ('val', 'test'):
            if self.config.get(f'{split}_dataloader') and self.config.get(f'{split}_evaluator'):
                return split
        raise CompareError(
            f'The config of {self.folder} has neither val_dataloader with val_evaluator nor '
            'test_dataloader with test_evaluator: nothing tells on which images runs are compared. '
            'Add them to the config in this work dir.'
        )

    @property
    def evaluator(self) -> Any:
        """The config of the evaluator of that set."""
        return self.config[f'{self.split}_evaluator']


def find_run(
    folder: str | Path, best: bool = False, unfinished: bool = False, trust: bool = False
) -> FinishedRun:
    """Reads a work dir.

    Args:
        folder: the work dir.
        best: take the checkpoint that validated best, not the last one.
        unfinished: take a run that has not reached the end of its schedule, too.
        trust: let the checkpoint hold pickled objects, which can run code.

    Raises:
        CompareError: no such folder, no config or checkpoint in it, or a run that was interrupted.
        CheckpointError: a damaged file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise CompareError(
            f'There is no work dir {folder}: give the folder that a run has written (work_dir of '
            'its config, --work-dir of mmkd train).'
        )
    config = read_config(str(_config_file(folder)), f'the config of {folder}')
    last = _last_checkpoint(folder)
    checkpoint = _best_checkpoint(folder) if best else last
    if checkpoint is None:
        raise CompareError(_without_checkpoint(folder, best))
    weights, digest = read_file(checkpoint, 'checkpoint', trust, advice='add --trust-checkpoint')
    meta = weights.get('meta') if isinstance(weights, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    if not unfinished and not best:
        _check_finished(folder, config, meta)
    if isinstance(weights, dict) and 'state_dict' in weights:
        weights = dict(state_dict=weights['state_dict'])
    seed = meta.get('seed', (config.get('randomness') or {}).get('seed'))
    return FinishedRun(folder, config, checkpoint, weights, digest, seed)


def _config_file(folder: Path) -> Path:
    """The config of the last session that trained, else the newest one in the folder."""
    for session in sorted(folder.glob('*/vis_data/scalars.json'), reverse=True):
        dumped = session.with_name('config.py')
        if dumped.is_file() and any('loss' in line for line in read_scalars(session)):
            return dumped
    found = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    found = found or sorted(folder.glob('*/vis_data/config.py'))
    if not found:
        raise CompareError(
            f'{folder} has no config (*.py): it is no work dir of a run of MMEngine, or its dumped '
            'config was removed. Copy the config that the run was started with into it.'
        )
    return found[-1]


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The lines of a scalars.json; one that an interruption has cut off is left out."""
    lines = []
    for text in path.read_text(encoding='utf-8').splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _last_checkpoint(folder: Path) -> Path | None:
    """What ``last_checkpoint`` names, by its name where the folder was moved; else the newest."""
    note = folder / 'last_checkpoint'
    if note.is_file():
        named = folder / Path(note.read_text(encoding='utf-8').strip()).name
        if named.is_file():
            return named
    numbers = {path: _NUMBERED.fullmatch(path.name) for path in folder.glob('*.pth')}
    found = {path: int(number[1]) for path, number in numbers.items() if number}
    return max(found, key=found.__getitem__) if found else None


def _best_checkpoint(folder: Path) -> Path | None:
    found = sorted(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _without_checkpoint(folder: Path, best: bool) -> str:
    if best:
        return (
            f'{folder} has no best_*.pth: its run kept none. Compare the last checkpoints (without '
            "--best), or train with default_hooks.checkpoint.save_best='auto'."
        )
    kept = 'it has best_*.pth, which --best takes' if _best_checkpoint(folder) else 'it has no .pth'
    return (
        f'{folder} has no checkpoint epoch_N.pth or iter_N.pth ({kept}): the run was interrupted '
        'before it saved one, or its files were moved. Train it to its end (mmkd train CONFIG '
        f'--work-dir {folder} --resume).'
    )


def _check_finished(folder: Path, config: Config, meta: dict) -> None:
    """Refuses a run whose last checkpoint lies before the end of its schedule."""
    loop = config.get('train_cfg') or {}
    hooks = config.get('custom_hooks') or []
    if any('EarlyStopping' in str(hook.get('type')) for hook in hooks if isinstance(hook, dict)):
        return
    for unit, key in (('epoch', 'max_epochs'), ('iter', 'max_iters')):
        end, reached = loop.get(key), meta.get(unit)
        if isinstance(end, int) and isinstance(reached, int) and reached < end:
            what = 'epoch' if unit == 'epoch' else 'iteration'
            raise CompareError(
                f'The run in {folder} was interrupted: its last checkpoint is of {what} {reached} '
                f'of {end}. Train on to the end (mmkd train CONFIG --work-dir {folder} --resume), '
                'or compare it as it is with --unfinished.'
            )
