"""Losses that look at a batch as a whole, and batches that are less than that."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from mmengine.runner import Runner

from ..distiller import Distiller
from .runner_model import members

FEW = 8  # images on a GPU, of which a loss that compares whole images has little to learn


def warn_of_parts(runner: Runner, distiller: Distiller) -> None:
    """Says once which terms see only a part of what the optimizer makes one step of.

    Gradients that are accumulated are those of one large batch only if no sample's loss depends on
    the others. And where an image is one sample, a small batch on a GPU leaves few to compare.
    """
    terms = [term for term in distiller.terms if any(x.batch_coupled for x in term.losses)]
    if not terms:
        return
    steps, size = _accumulated(runner), getattr(runner.train_dataloader, 'batch_size', None)
    if steps > 1:
        print_log(
            f'optim_wrapper.accumulative_counts={steps} adds up the gradients of {steps} batches, '
            f'and the loss of {_names(terms)} looks at each of them by itself: the sum is not that '
            'of one large batch. Raise train_dataloader.batch_size where memory allows.',
            'current',
            logging.WARNING,
        )
    images = [term for term in terms if term.kind == 'image']
    if images and size is not None and size < FEW:
        print_log(
            f'train_dataloader.batch_size={size}: the loss of {_names(images)} compares the images '
            f'of a batch on its own GPU with each other, and {size} are few. Published settings '
            'have 64 and more.',
            'current',
            logging.WARNING,
        )


def _accumulated(runner: Runner) -> int:
    """Batches of which the optimizer makes one step; of several optimizers the most."""
    wrappers = members(runner.optim_wrapper)
    return max((wrapper._accumulative_counts for wrapper in wrappers), default=1)


def _names(terms: list) -> str:
    return ', '.join(f'{term.name!r} ({type(term.losses[0]).__name__})' for term in terms)
