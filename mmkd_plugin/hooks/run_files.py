"""What a distilled run writes into its work dir beside checkpoints: its config and its plan."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from ..distiller import Distiller
from ..recipes.method import Chosen, Method
from ..terms.settings import resolved
from .entries import distill_hooks
from .plan_table import paste_text, places_text, plan_text

PLAN = 'distillation.txt'


def keep_resolved(runner: Runner, method: Method, distiller: Distiller, chosen: Chosen) -> None:
    """Writes the terms that were resolved into the config of the run, and the config once more.

    MMEngine has written it, into the work dir and beside the logged numbers, before there were any
    models. With the terms in place of a recipe's name, and targets in place of ``'auto'``, the
    files repeat the run when the tables of this package change, and ``--cfg-options
    custom_hooks.0.terms.0.weight=...`` reaches them. The config of a hook that was given as an
    object says nothing of it, and stays.
    """
    entry = _entry(runner, method)
    if entry is None:
        return
    terms = resolved(distiller.terms, chosen.terms)
    if not method.changes and terms == chosen.terms:
        return
    for key in ('recipe', 'weights', 'term_options'):
        entry.pop(key, None)
    if 'terms' in entry and runner.cfg.get('terms') == entry['terms']:
        runner.cfg.terms = terms  # the variable of the config file
    entry.update(terms=terms, task_weight=chosen.task_weight)
    runner.message_hub.update_info('cfg', runner.cfg.pretty_text)
    _try_writing(runner.dump_config)
    # Not those of the trackers of experiments: some refuse a value that changes.
    for backend in runner.visualizer._vis_backends.values() if is_main_process() else ():
        if isinstance(backend, LocalVisBackend):
            _try_writing(functools.partial(backend.add_config, runner.cfg))


def _entry(runner: Runner, method: Method) -> dict | None:
    """What the config of the run says of this hook, if it is the config of this hook."""
    found = [hook for hook in distill_hooks(runner.cfg) if isinstance(hook, dict)]
    if len(found) != 1:
        return None
    (entry,) = found
    same = entry.get('recipe') == method.recipe and entry.get('terms') == method.terms
    return entry if same else None


class PlanFile:
    """``distillation.txt`` of a run: written when training begins, and when a weight was found."""

    def __init__(self, remark: str) -> None:
        self.remark = remark
        self._known: tuple[dict[str, float], float | None] | None = None

    def begin(self, runner: Runner, distiller: Distiller, max_norm: float | None) -> None:
        """Logs the plan, and writes the file. Call it when nothing is left to be loaded."""
        runner.logger.info('\n'.join([*self._head(distiller), plan_text(distiller)]))
        self.update(runner, distiller, max_norm)

    def update(self, runner: Runner, distiller: Distiller, max_norm: float | None) -> None:
        """Writes the file again if weights, or a limit of the gradient, have been found since."""
        known = distiller.weights(), max_norm
        if known == self._known:
            return
        self._known = known
        if is_main_process():
            paste = paste_text(distiller, max_norm)
            parts = [*self._head(distiller), plan_text(distiller), *([paste] if paste else [])]
            places = 'Places, with the shapes of a probe image:\n' + places_text(distiller)
            text = '\n\n'.join([*parts, places]) + '\n'
            _try_writing(lambda: Path(runner.work_dir, PLAN).write_text(text, encoding='utf-8'))

    def _head(self, distiller: Distiller) -> list[str]:
        head = (
            f"Distillation (the student's own losses times {distiller.task_weight}; the teacher "
            f'runs to its {distiller.teacher.depth}):'
        )
        return [self.remark, head] if self.remark else [head]


def _try_writing(write: Callable[[], Any]) -> None:
    """A work dir that lets nothing be written costs these files, and not the run."""
    try:
        write()
    except OSError as error:
        path = error.filename or os.curdir
        print_log(f'{path} is not written ({error}).', 'current', logging.WARNING)
