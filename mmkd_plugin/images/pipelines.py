"""What a data pipeline does to an image: read from a config or from the data set that was built.

Nothing is run. A step is known by its name and its arguments, whichever package it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Steps that hold others and always run all of them, in order.
_IN_ORDER = ('Compose', '_Chain', 'KeyMapper', 'TransformBroadcaster', 'Sequential')
_INNER = ('transforms', 'steps', 'branch_pipelines', 'pipelines')


@dataclass(frozen=True)
class Step:
    """One transform.

    Attributes:
        name: its class name, without the package.
        torchvision: whether it is one of torchvision's.
        get: looks up an argument by name; None if there is none.
        inner: the steps inside it, if it is a container.
        always: whether all of the inner steps run, in order.
    """

    name: str
    torchvision: bool
    get: Callable[[str], Any]
    inner: tuple[Step, ...] = ()
    always: bool = True


def pipelines(source: Any) -> list[list[Step]]:
    """The pipelines through which the images of a data set go, one for each innermost set.

    Args:
        source: a data set (wrapped ones, too), its config, or None.

    Returns:
        For each innermost data set its steps, those of wrappers last; empty if none is known.
    """
    if source is None or isinstance(source, (str, type)):
        return []
    get = _getter(source)
    own = [step for key in ('pipeline', 'transform') for step in _steps(get(key))]
    inside = get('datasets')
    if not isinstance(inside, (list, tuple)):
        inside = [] if get('dataset') is None else [get('dataset')]
    if inside:
        return [chain + own for child in inside for chain in pipelines(child)]
    known = get('pipeline') is not None or get('transform') is not None
    return [own] if known else []


def training_data(config: Any) -> Any:
    """The config of the data set that a model is trained on, or else tested; None without one."""
    for name in ('train_dataloader', 'test_dataloader', 'val_dataloader'):
        loader = config.get(name)
        if isinstance(loader, dict) and loader.get('dataset') is not None:
            return loader['dataset']
    return None


def flat(steps: Sequence[Step]) -> Iterator[tuple[Step, bool]]:
    """All steps in order, and whether each of them always runs."""
    for step in steps:
        if not step.inner:
            yield step, True
        for inner, always in flat(step.inner):
            yield inner, always and step.always


def _steps(value: Any) -> list[Step]:
    """Steps of a list, of a Compose, or of a single transform."""
    if value is None or isinstance(value, (str, type)):
        return []
    if isinstance(value, (list, tuple)):
        return [step for item in value for step in _steps(item)]
    if not isinstance(value, dict):
        value = getattr(value, 't', value)  # MMPreTrain's wrapper of torchvision's transforms
    get = _getter(value)
    kind = get('type') if isinstance(value, dict) else type(value)
    if kind is None:
        return []
    text = kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__name__}'
    name = text.replace('/', '.').rpartition('.')[2]
    found = next((get(key) for key in _INNER if get(key) is not None), None)
    branches = list(found.values()) if isinstance(found, dict) and 'type' not in found else found
    inner = () if name == 'Albu' else tuple(_steps(branches))
    return [Step(name, 'torchvision' in text, get, inner, name in _IN_ORDER)]


# What a config need not write.
_DEFAULTS = dict(Normalize=dict(to_rgb=True))


def _getter(value: Any) -> Callable[[str], Any]:
    if isinstance(value, dict):
        defaults = _DEFAULTS.get(str(value.get('type')).rpartition('.')[2], {})
        return lambda key: value.get(key, defaults.get(key))
    return lambda key: getattr(value, key, None)
