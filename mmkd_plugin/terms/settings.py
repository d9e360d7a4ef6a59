"""Terms in plain values: what checkpoints, logs and config files say of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .base import Term


def plain(config: Any) -> dict:
    """A term as it is kept in a checkpoint: lists for tuples, and names for classes, which a safe
    ``torch.load`` would refuse."""
    return json.loads(
        json.dumps(config, default=lambda value: getattr(value, '__name__', type(value).__name__))
    )


def resolved(terms: Iterable[Term], configs: Iterable[dict]) -> list[dict]:
    """The configs of the terms with the targets that ``weight='auto'`` stands for.

    The target of a kind of term may be another one in a later version.
    """
    return [
        config if term.target is None else dict(config, weight=dict(ratio=term.target))
        for term, config in zip(terms, configs)
    ]


def settings(terms: Iterable[Term], configs: Iterable[dict]) -> dict[str, dict]:
    """The resolved configs by name. Name and type of the loss are there, however it was written."""
    return {
        term.name: dict(
            config, name=term.name, loss=dict(config['loss'], type=type(term.losses[0]).__name__)
        )
        for term, config in zip(terms, resolved(terms, configs))
    }
