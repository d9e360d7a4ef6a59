"""Files that MMEngine loads into the model it trains or tests: read safely, and checked to fit.

MMEngine copies what fits, logs the rest, and goes on, if need be with random weights.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from torch import nn

from ..checkpoints.download import fetch
from ..checkpoints.file import few
from ..checkpoints.fit import Fit, bad_numbers, extra_in_own_parts, fill, plain_state, state_dict_of
from ..checkpoints.load import load_file, verify_file
from ..errors import CheckpointError
from ..taps.foreign import AnyModule

_PREFIXES = (
    '', 'http://', 'https://', 'file://', 'torchvision://', 'modelzoo://', 'open-mmlab://',
    'openmmlab://', 'mmcls://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://',
)  # fmt: skip


class ForeignFileError(CheckpointError, ValueError):
    """A file whose weights are those of another network than the config's."""


@contextmanager
def read_safely(trust: bool = False) -> Iterator[None]:
    """Within it MMEngine reads checkpoints of this process by :func:`load_file`.

    That concerns ``load_from``, ``resume`` and the pretrained weights of ``init_cfg``, from every
    place that MMEngine's own loaders know. With ``trust`` they may hold pickled objects, which can
    run code.
    """

    def load_from_safe(filename: str, map_location: Any = None) -> Any:
        path = fetch(filename, 'checkpoint')
        device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
        advice = 'add --trust-checkpoint'
        loaded = load_file(path, 'checkpoint', trust=trust, device=device, advice=advice)
        if filename.startswith('mmcls://'):  # a backbone for a model of another kind
            state = state_dict_of(loaded, f'checkpoint={filename!r}')
            start = 'backbone.'
            loaded = dict(
                state_dict=OrderedDict(
                    (k[len(start) :], v) for k, v in state.items() if k.startswith(start)
                )
            )
        return loaded

    before = OrderedDict(CheckpointLoader._schemes)
    CheckpointLoader.register_scheme(list(_PREFIXES), load_from_safe, force=True)
    try:
        yield
    finally:
        CheckpointLoader._schemes = before


def verify_file_of(runner: Runner) -> None:
    """Checks that the file a run is about to load is whole, where MMEngine itself reads it.

    Raises:
        CheckpointError: if it is damaged.
    """
    file = runner._load_from
    if runner._resume and file is None:
        file = find_latest_checkpoint(runner.work_dir)
    reader = CheckpointLoader._get_checkpoint_loader('')
    if file is None or runner._has_loaded or reader.__module__ == __name__:
        return
    path = Path(file).expanduser()
    if path.is_file():
        verify_file(path, 'resume' if runner._resume else 'load_from')


class CheckWeightsHook(Hook):
    """Checks what MMEngine loads into the model before it is trained or tested.

    Args:
        test: the model is only tested, so the file must have all of it.
    """

    def __init__(self, test: bool) -> None:
        self.test = test

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.test:
            check_test(runner.model, checkpoint, file_of(runner))
        else:
            check_training(runner.model, checkpoint, file_of(runner), runner._resume)


def file_of(runner: Runner) -> str:
    """What the file that a runner has just loaded is called, for messages."""
    key = 'resume' if runner._resume else 'checkpoint' if runner._load_from is None else 'load_from'
    return f'{key}={str(runner._load_from)!r}' if runner._load_from else f'the {key} file'


def check_test(model: nn.Module, checkpoint: dict, file: str) -> None:
    """Refuses a file that leaves a part of the model random, or is of another network.

    The model is filled with what MMEngine has loaded from it; messages call it ``file``.

    Raises:
        ForeignFileError: listing what is missing or misshapen.
    """
    fit = _fit(model, checkpoint, file)
    total = len(fit.matched) + len(fit.missing) + len(fit.misshapen)
    wrong = [*fit.misshapen.values(), *fit.missing]
    if wrong:
        raise ForeignFileError(
            f'{file} does not fit the model of the config: {len(fit.matched)} of {total} entries '
            f'match, {len(fit.misshapen)} have another shape or type, {len(fit.missing)} are '
            f'missing: {few(wrong)}. The rest would be random weights; use the config that this '
            'checkpoint was trained with.',
            matched=len(fit.matched),
            misshapen=len(fit.misshapen),
            missing=len(fit.missing),
            first=wrong[0],
        )
    deeper = [name for name in extra_in_own_parts(fit) if name.endswith('.weight')]
    if deeper:
        raise ForeignFileError(
            f'{file} is of another network: {len(deeper)} of its weights have no place in the '
            f'model of the config: {few(deeper)}. Use the config that this checkpoint was trained '
            'with.',
            extra=len(deeper),
            first=deeper[0],
        )


def check_training(model: nn.Module, checkpoint: dict, file: str, resume: bool) -> None:
    """Refuses a file of another network, and reports what a file fills and what it does not.

    The model is filled with what MMEngine has loaded from it; messages call it ``file``. A detector
    of other classes is a usual start (its head has other shapes): the run goes on. It stops if
    nothing fits, if more of the backbone has another shape than fits, if anything has another shape
    in a run that is resumed, or if what fits is no finite number.

    Raises:
        ForeignFileError: if the file is of another network.
        CheckpointError: if its run had diverged.
    """
    fit = _fit(model, checkpoint, file)
    if not fit.matched:
        raise ForeignFileError(
            f'No entry of {file} fits the student: its names begin like '
            f'{next(iter((*fit.misshapen, *fit.extra)), None)!r}, the '
            f"student's like {next(iter((*fit.misshapen, *fit.missing)), None)!r}. Give the "
            'checkpoint of a plain student model.',
            matched=0,
            misshapen=len(fit.misshapen),
            missing=len(fit.missing),
        )
    matched, misshapen = (
        [name for name in names if name.startswith('backbone.')] or list(names)
        for names in (fit.matched, fit.misshapen)
    )
    shapes = few(list(fit.misshapen.values()))
    if len(misshapen) > len(matched) or (resume and fit.misshapen):
        raise ForeignFileError(
            f'{file} is of another network than the student: {len(fit.misshapen)} entries have '
            f'another shape or type, {len(fit.matched)} fit: {shapes}. Give a checkpoint of the '
            "student's own architecture.",
            matched=len(fit.matched),
            misshapen=len(fit.misshapen),
        )
    meta = checkpoint.get('meta') if resume else None
    exempt = meta.get('not_finite') or () if isinstance(meta, dict) else ()
    if bad := bad_numbers(_inner(model), [name for name in fit.matched if name not in exempt]):
        raise CheckpointError(
            f'{file} holds numbers that no trained network has: {few(bad)}. The run that saved it '
            'had diverged; use an earlier checkpoint.',
            not_finite=len(bad),
            first=bad[0],
        )
    extra = extra_in_own_parts(fit)
    print_log(
        f'{file}: {len(fit.matched)} entries of the model are filled, {len(fit.missing)} are '
        f'missing in the file{_listed(fit.missing)}, {len(fit.misshapen)} have another shape'
        f'{_listed(list(fit.misshapen.values()))}, {len(extra)} of the file have no place'
        f'{_listed(extra)}.',
        'current',
        logging.WARNING if fit.missing or fit.misshapen or extra else logging.INFO,
    )


def _listed(items: list[str]) -> str:
    return f' ({few(items, 4)})' if items else ''


def _fit(model: nn.Module, checkpoint: dict, file: str) -> Fit:
    """Fills the model as MMEngine is going to, through the wrappers of DDP and test time."""
    # MMEngine looks for no other key; what a classifier makes of it is found in its loading.
    return fill(_inner(model), plain_state(checkpoint.get('state_dict', checkpoint), file))


def _inner(model: AnyModule) -> AnyModule:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
