"""Which class of the teacher is which class of the student."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from mmengine.logging import print_log

from .checks import near_matches, nearest
from .errors import Refusal
from .taps import TapError

BY_NAME = 'names'
UNKNOWN = -1  # a class of the student that the teacher does not know


def class_names(meta: Any) -> tuple[str, ...] | None:
    """Reads class names from what describes a data set.

    A data set of several parts (MMDetection's ``ConcatDataset``) has a list of metainfos. Its
    classes are those of the part that has most, if the others name the first of them.

    Args:
        meta: a ``metainfo``, the ``dataset_meta`` of a checkpoint, or a list of them; names are
            under ``classes`` (or ``CLASSES``): a sequence, an array, or one string for one class.

    Returns:
        The names, or None where nothing names them, or where two parts give one label to two
        classes; the log then tells which.
    """
    if isinstance(meta, (list, tuple)):
        return _common_names([class_names(part) for part in meta])
    if not isinstance(meta, Mapping):
        return None
    names = next((meta[key] for key in ('classes', 'CLASSES') if meta.get(key) is not None), None)
    if isinstance(names, np.ndarray):
        names = names.tolist()  # of one without dimensions the one name
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, Iterable) or isinstance(names, (bytes, Mapping, Set)):
        return None
    names = list(names)
    if not all(isinstance(name, (str, int)) for name in names):
        return None  # from a file; text for what may be nested without end would take for ever
    return tuple(str(name) for name in names) or None


def dataset_classes(dataset: Any) -> tuple[str, ...] | None:
    """Reads class names from a Runner's data set, also through wrappers that keep them to
    themselves; see :func:`class_names`.
    """
    parts = getattr(dataset, 'datasets', None)
    if isinstance(parts, (list, tuple)):  # a wrapper that ignores differences tells only the first
        return _common_names([dataset_classes(part) for part in parts])
    names = class_names(getattr(dataset, 'metainfo', None))
    inner = getattr(dataset, 'dataset', None)
    return names if names or inner is None else dataset_classes(inner)


def _common_names(parts: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The list of names of which all others are the beginning."""
    known = [names for names in parts if names]
    longest = max(known, key=len, default=None)
    for names in known:
        for label, (name, other) in enumerate(zip(names, longest or ())):
            if name != other:
                print_log(
                    f'The parts of a data set name different classes for label {label} ({name!r} '
                    f'and {other!r}), so the names of its classes count as unknown.',
                    'current',
                    logging.WARNING,
                )
                return None
    return longest


def resolve_class_map(
    config: Any, student: Sequence[str] | None, teacher: Sequence[str] | None
) -> tuple[int, ...]:
    """The ``class_map`` of a teacher's config as indices.

    Args:
        config: ``'names'``: classes of equal names; a dict from student to teacher names; or a
            list with the teacher's index for each class of the student, -1 (or None) where it has
            none.
        student: class names of the student's data set, if known.
        teacher: class names in the teacher's checkpoint, if known.

    Returns:
        The teacher's index, or -1, for each class of the student.

    Raises:
        ValueError: wrong form, unknown names, or names that are not known on one side.
    """
    if isinstance(config, (list, tuple)):
        return _given_indices(config)
    if config != BY_NAME and not isinstance(config, dict):
        raise ValueError(
            f"teacher.class_map={config!r} must be 'names', a dict from the student's class names "
            "to the teacher's, or a list of the teacher's indices."
        )
    sources = (
        ('student', student, 'its data set names no classes'),
        ('teacher', teacher, 'its checkpoint names no classes'),
    )
    for role, named, where in sources:
        if not named:
            raise ValueError(
                f'teacher.class_map={config!r} speaks of names, but those of the {role} are not '
                f'known ({where}). '
                "Give a list: the teacher's index for each class of the student, or -1."
            )
    assert student is not None and teacher is not None
    wanted = {name: name for name in student if name in teacher} if config == BY_NAME else config
    for own, theirs in wanted.items():
        for role, name, names in (('student', own, student), ('teacher', theirs, teacher)):
            if name not in names:
                raise Refusal(
                    f'teacher.class_map names the class {name!r}, which the {role} does not have; '
                    f'{nearest(str(name), names)}.',
                    unknown=str(name),
                    of=role,
                    nearest=near_matches(str(name), names),
                )
    if not wanted:
        raise Refusal(
            "teacher.class_map='names': student and teacher share no class name (student "
            f'{list(student)[:5]}, teacher {list(teacher)[:5]}). Give a dict of names.',
            student_names=list(student)[:8],
            teacher_names=list(teacher)[:8],
        )
    indices = tuple(
        list(teacher).index(wanted[name]) if name in wanted else UNKNOWN for name in student
    )
    _tell_shared(indices)
    missing = [name for name, index in zip(student, indices) if index == UNKNOWN]
    if missing:
        print_log(
            f'The teacher does not know {len(missing)} of the {len(student)} classes of the '
            f'student ({", ".join(missing[:8])}); their logits are not distilled.',
            'current',
            logging.WARNING,
        )
    return indices


def _given_indices(config: Sequence) -> tuple[int, ...]:
    if not all(c is None or (_is_index(c) and c >= UNKNOWN) for c in config):
        raise ValueError(
            f'teacher.class_map={config!r} must hold the index of the teacher for each class '
            'of the student, -1 where the teacher does not know the class.'
        )
    indices = tuple(UNKNOWN if c is None else c for c in config)
    _tell_shared(indices)
    return indices


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tell_shared(indices: Sequence[int]) -> None:
    """Several classes of the student may be one of the teacher's; seldom is that meant."""
    shared = sorted({i for i in indices if i != UNKNOWN and list(indices).count(i) > 1})
    if shared:
        print_log(
            f'teacher.class_map gives the classes {shared} of the teacher to more than one class '
            'of the student each.',
            'current',
            logging.WARNING,
        )


def fit_class_map(class_map: Sequence[int], student: int, teacher: int) -> list[int]:
    """The student's classes that the teacher knows.

    Args:
        class_map: the teacher's index, or -1, for each class of the student.
        student: number of the student's classes.
        teacher: number of the teacher's.

    Raises:
        TapError: a map that does not fit the numbers of classes, or in which nothing is shared.
    """
    if len(class_map) != student:
        raise TapError(
            f'class_map names {len(class_map)} classes, but the student has {student}.',
            mapped_classes=len(class_map),
            student_classes=student,
        )
    if max(class_map) >= teacher:
        raise TapError(
            f'class_map points to class {max(class_map)} of the teacher, which has {teacher}.',
            mapped_to=max(class_map),
            teacher_classes=teacher,
        )
    own = [i for i, c in enumerate(class_map) if c != UNKNOWN]
    if not own:
        raise TapError('class_map shares no class with the teacher.')
    return own


def class_difference(teacher: Sequence[str] | None, student: Sequence[str] | None) -> str | None:
    """Tells how two lists of classes differ in names or order; None where nobody knows of any."""
    if not teacher or not student or tuple(teacher) == tuple(student):
        return None
    first = next(
        (i for i, (t, s) in enumerate(zip(teacher, student)) if t != s),
        min(len(teacher), len(student)),
    )
    names = [repr(c[first]) if first < len(c) else 'nothing' for c in (teacher, student)]
    same = sorted(teacher) == sorted(student)
    return (
        f'The teacher was trained on {len(teacher)} classes and the student has '
        f'{len(student)}{", the same ones in another order" if same else ""}; they differ '
        f'first at index {first} (teacher {names[0]}, student {names[1]}).'
    )
