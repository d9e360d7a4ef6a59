"""Which runs of two sides belong together, and whether they may be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .errors import CompareError
from .objects import Objects
from .predictions import Predictions

Any_ = TypeVar('Any_')


def pair_seeds(
    base: Sequence[tuple[int | None, Any_]], run: Sequence[tuple[int | None, Any_]]
) -> tuple[list[tuple[Any_, Any_]], str | None]:
    """Pairs runs by their seeds; where seeds do not tell, in the order in which they are given.

    Args:
        base: seed and run of one side.
        run: of the other side.

    Returns:
        The pairs, and a sentence where something has to be said about them.

    Raises:
        CompareError: several runs that no seed and no order pairs.
    """
    sides = [[seed for seed, _ in side] for side in (base, run)]
    if all(None not in seeds and len(set(seeds)) == len(seeds) for seeds in sides):
        other = dict(run)
        pairs = [(own, other[seed]) for seed, own in base if seed in other]
        left = sorted(set(sides[0]) ^ set(sides[1]), key=str)
        if pairs:
            note = f'Seeds {_list(left)} are on one side only and do not count.' if left else None
            return pairs, note
    if len(base) != len(run):
        raise CompareError(
            f'Runs are paired by their seeds, but one side has seeds {_list(sides[0])}, the other '
            f'{_list(sides[1])}: give runs of the same seeds on both sides (mmkd train CONFIG '
            '--cfg-options randomness.seed=0), or as many on one side as on the other.'
        )
    note = None
    if sides[0] != sides[1] or None in sides[0]:
        note = (
            f'Runs are paired in the order given, as their seeds ({_list(sides[0])} and '
            f'{_list(sides[1])}) do not pair them. The gain holds what seeds differ by.'
        )
    return [(a, b) for (_, a), (_, b) in zip(base, run)], note


def _list(seeds: Sequence[int | None]) -> str:
    return ', '.join('unknown' if seed is None else str(seed) for seed in seeds)


def check_same_set(first: tuple[str, Predictions], other: tuple[str, Predictions]) -> None:
    """Refuses runs of different tasks, classes, images or labels.

    Args:
        first: name and predictions of a run.
        other: of another one.

    Raises:
        CompareError: naming what differs.
    """
    (name, a), (their_name, b) = first, other
    who = f'{name} and {their_name} cannot be compared'
    same = 'Compare runs whose configs have the same val_dataloader.'
    if a.task != b.task:
        raise CompareError(f'{who}: one predicts {a.task}, the other {b.task}. {same}')
    if len(a.classes) != len(b.classes):
        raise CompareError(
            f'{who}: they have another number of classes, {len(a.classes)} '
            f'({_few(a.classes)}) and {len(b.classes)} ({_few(b.classes)}). {same}'
        )
    if a.classes != b.classes:
        differ = [f'{p!r} and {q!r}' for p, q in zip(a.classes, b.classes) if p != q]
        raise CompareError(f'{who}: their classes differ ({_few(differ)}). {same}')
    if a.names != b.names:
        first_name = next((p for p, q in zip(a.names, b.names) if p != q), None)
        detail = f'; the first that differs is {first_name}' if first_name else ''
        raise CompareError(
            f'{who}: they were evaluated on another data set, {a.images} images '
            f'({_few(a.names)}) and {b.images} images ({_few(b.names)}){detail}. {same}'
        )
    if not _same_labels(a, b):
        raise CompareError(
            f'{who}: their images have the same names, but other labels: another version of the '
            f'data set. {same}'
        )


def _few(items: Sequence[str]) -> str:
    return ', '.join(map(str, items[:3])) + (', ...' if len(items) > 3 else '')


def _same_labels(a: Predictions, b: Predictions) -> bool:
    if a.task == 'classification':
        return a.labels is None or b.labels is None or np.array_equal(a.labels, b.labels)
    if a.areas is not None and b.areas is not None:
        return np.array_equal(a.areas[:, 3], b.areas[:, 3])
    if isinstance(a.truth, Objects) and isinstance(b.truth, Objects):
        same = np.array_equal(a.truth.label, b.truth.label)
        return same and np.allclose(a.truth.box, b.truth.box, atol=0.5)
    return True
