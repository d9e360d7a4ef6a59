"""Second-order optimizers of the package pytorch-optimizer, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from .checks import check_keys
from .registry import OPTIMIZERS


@OPTIMIZERS.register_module()
def Shampoo(params: Iterable, **kwargs: Any) -> torch.optim.Optimizer:
    """Shampoo with blocks and grafting, ``pytorch_optimizer.ScalableShampoo``.

    The authors of FunMatch report that a second-order optimizer needs fewer epochs. Keep
    ``preconditioning_compute_steps`` at 10 to 1000: inverse roots are what costs time. With
    ``clip_grad`` and ``paramwise_cfg`` it is used like any other optimizer::

        optim_wrapper = dict(
            optimizer=dict(type='Shampoo', lr=3e-3, weight_decay=1e-4,
                           preconditioning_compute_steps=50),
            clip_grad=dict(max_norm=1.0))

    Its state holds objects of that package, so ``tools/train.py --resume`` needs
    ``--trust-checkpoint``.

    Raises:
        ModuleNotFoundError: pytorch-optimizer is not installed, with the command that installs it.
        ValueError: an unknown argument, with the nearest valid ones.
    """
    return _build('ScalableShampoo', params, kwargs)


@OPTIMIZERS.register_module()
def SOAP(params: Iterable, **kwargs: Any) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner, ``pytorch_optimizer.SOAP``.

    Raises:
        ModuleNotFoundError, ValueError: as :func:`Shampoo`.
    """
    return _build('SOAP', params, kwargs)


def _build(name: str, params: Iterable, kwargs: dict) -> torch.optim.Optimizer:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{name} comes with the package pytorch-optimizer, which is not installed; run: '
            'pip install pytorch-optimizer'
        ) from error
    cls = getattr(pytorch_optimizer, name)
    valid = [key for key in inspect.signature(cls).parameters if key not in ('params', 'kwargs')]
    check_keys(kwargs, valid, f'optimizer ({name})')  # the class itself would drop them in silence
    return cls(params, **kwargs)
