"""Keeps the optimizer's state of the connectors apart from the student's in a checkpoint.

A student's file then resumes in a run without connectors, such as the plain config's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

_PER_GROUP = ('base_values', '_last_value', 'min_values')  # lists in MMEngine's schedulers


def split_connectors(
    checkpoint: dict, optimizer: OptimWrapper, connectors: dict[str, nn.Parameter]
) -> dict[str, dict]:
    """Takes the connectors' part out of a checkpoint that is about to be saved.

    Args:
        checkpoint: its ``optimizer`` and ``param_schedulers`` are replaced.
        optimizer: the optimizer wrapper whose state they hold.
        connectors: the connectors' parameters by name.

    Returns:
        By name: ``state`` (or None); and, where the parameter group holds connectors only,
        ``group``, the group's settings, and ``schedulers``, what its schedulers keep for it.
    """
    names = {id(parameter): name for name, parameter in connectors.items()}
    taken: dict[str, dict] = {}
    for live, state, schedulers, put_back in _parts(checkpoint, optimizer):
        groups, kept, whole = [], dict(state['state']), []
        for index, (group, saved) in enumerate(zip(live, state['param_groups'], strict=True)):
            own = {
                key: names[id(parameter)]
                for key, parameter in zip(saved['params'], group['params'], strict=True)
                if id(parameter) in names
            }
            rest = [key for key in saved['params'] if key not in own]
            for key, name in own.items():
                taken[name] = dict(state=kept.pop(key, None))
                if not rest:
                    taken[name]['group'] = {k: v for k, v in saved.items() if k != 'params'}
                    taken[name]['schedulers'] = [
                        {key: values[index] for key, values in _per_group(s, len(live)).items()}
                        for s in schedulers
                    ]
            if own and not rest:
                whole.append(index)
            else:
                groups.append(dict(saved, params=rest))
        shorter = [
            {
                key: [value for i, value in enumerate(values) if i not in whole]
                for key, values in _per_group(s, len(live)).items()
            }
            for s in schedulers
        ]
        put_back(
            dict(state, state=kept, param_groups=groups),
            [dict(s, **entries) for s, entries in zip(schedulers, shorter, strict=True)],
        )
    return taken


def join_connectors(
    checkpoint: dict,
    optimizer: OptimWrapper,
    connectors: dict[str, nn.Parameter],
    taken: dict[str, dict],
) -> None:
    """Puts the connectors' part back into a loaded checkpoint; the inverse of
    :func:`split_connectors`.

    Connectors that are not in ``taken`` start anew: without state, and where they have a group of
    their own at the point of their schedule that the student's first group has reached.

    Raises:
        ValueError: if the student's part does not fit the optimizer.
    """
    names = {id(parameter): name for name, parameter in connectors.items()}
    for live, state, schedulers, put_back in _parts(checkpoint, optimizer):
        own = [[names.get(id(p)) for p in group['params']] for group in live]
        sizes = [row.count(None) for row in own if row.count(None) or not row]
        saved = [len(group['params']) for group in state['param_groups']]
        if sizes != saved:
            raise ValueError(_misfit(saved, sizes))
        groups, kept, at = [], dict(state['state']), 0
        free = 1 + max((k for group in state['param_groups'] for k in group['params']), default=-1)
        values = [_per_group(s, len(saved)) for s in schedulers]
        columns: list[dict[str, list]] = [{key: [] for key in v} for v in values]
        for group, row in zip(live, own, strict=True):
            if None in row or not row:  # the student's, perhaps with connectors in it
                base = state['param_groups'][at]
                column = [{key: v[key][at] for key in v} for v in values]
                at += 1
            else:
                before = taken.get(str(row[0]), {})
                base, column = _own_group(group, before, state, schedulers, values)
            rest, own_names = iter(base.get('params', [])), [n for n in row if n is not None]
            numbers = dict(zip(own_names, itertools.count(free)))
            free += len(numbers)
            params = [next(rest) if name is None else numbers[name] for name in row]
            kept.update(_states(numbers, taken))
            groups.append(dict(base, params=params))
            for target, entry in zip(columns, column, strict=True):
                for key in target:
                    target[key].append(entry[key])
        for target, entries in zip(columns, values, strict=True):
            for key in target:
                target[key] += entries[key][at:]  # of what is no group
        put_back(
            dict(state, state=kept, param_groups=groups),
            [dict(s, **column) for s, column in zip(schedulers, columns, strict=True)],
        )


def _states(numbers: dict[str, int], taken: dict[str, dict]) -> dict[int, Any]:
    """The optimizer's states of connectors by their numbers, of those that have one."""
    states = {number: taken.get(name, {}).get('state') for name, number in numbers.items()}
    return {number: state for number, state in states.items() if state is not None}


def _own_group(
    group: dict, taken: dict, state: dict, schedulers: list, values: list
) -> tuple[dict, list]:
    """Settings and schedulers' entries of a group that holds connectors only."""
    if 'group' in taken:
        return taken['group'], taken['schedulers']
    settings = {key: value for key, value in group.items() if key != 'params'}
    first: dict[str, Any] = next(iter(state['param_groups']), {})
    column = []
    for scheduler, entries in zip(schedulers, values, strict=True):
        name = scheduler['param_name']
        initial = settings.get(f'initial_{name}', settings.get(name))
        start = first.get(f'initial_{name}')
        settings[name] = initial * first[name] / start if start else initial
        fresh = dict(base_values=initial, _last_value=settings[name])
        column.append({key: fresh.get(key, v[0] if v else 0.0) for key, v in entries.items()})
    return settings, column


def _parts(checkpoint: dict, optimizer: OptimWrapper) -> Iterator[tuple]:
    """Of each optimizer: its live groups, its saved state, the states of its schedulers, and a
    function that writes the last two back."""
    if not isinstance(checkpoint.get('optimizer'), dict):
        return
    several = isinstance(optimizer, OptimWrapperDict)
    for name, wrapper in list(optimizer.items()) if several else [(None, optimizer)]:
        states = checkpoint['optimizer'] if several else checkpoint
        key = name if several else 'optimizer'
        if 'param_groups' not in states.get(key, {}):
            continue  # of a strategy that keeps its state in a form of its own
        schedulers = checkpoint.get('param_schedulers') or []
        schedulers = schedulers.get(name, []) if isinstance(schedulers, dict) else schedulers

        def put_back(state: dict, new: list, states=states, key=key, old=schedulers) -> None:
            states[key] = state
            old[:] = new

        yield wrapper.optimizer.param_groups, states[key], list(schedulers), put_back


def _per_group(scheduler: dict, groups: int) -> dict[str, list]:
    """Lists with one entry for each group. With ``paramwise_cfg`` one more follows: the settings
    that MMEngine logs."""
    return {
        key: scheduler[key]
        for key in _PER_GROUP
        if isinstance(scheduler.get(key), list) and len(scheduler[key]) in (groups, groups + 1)
    }


def _misfit(saved: list[int], here: list[int]) -> str:
    def told(sizes: list[int]) -> str:
        return f'{sum(sizes)} parameters in {len(sizes)} group{"s" * (len(sizes) != 1)}'

    return (
        f"The checkpoint's optimizer holds the state of {told(saved)} of the student, this run's "
        f'optimizer has {told(here)}. The student, what of it is frozen or its paramwise_cfg is '
        'not as it was when the file was saved. Resume with those settings, or start a new run '
        'from the weights with load_from.'
    )


def parameter_names(optimizer: Any, named: dict[str, nn.Parameter]) -> dict[str, str]:
    """Names for the paths of an optimizer's state: ``state.3`` is the parameter that has the
    index 3 when all groups are counted through."""
    names = {id(parameter): name for name, parameter in named.items()}
    found = {}
    several = isinstance(optimizer, OptimWrapperDict)
    for key, wrapper in list(optimizer.items()) if several else [(None, optimizer)]:
        prefix = f'optimizer.{key}.state' if several else 'optimizer.state'
        parameters = [p for group in wrapper.optimizer.param_groups for p in group['params']]
        for i, parameter in enumerate(parameters):
            found[f'{prefix}.{i}.'] = names.get(id(parameter), str(i))
    return found
