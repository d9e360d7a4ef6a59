#!/usr/bin/env python
"""One training run of a benchmark, in a process of its own: ``python benchmarks/worker.py
RUN_FOLDER``.

The folder's ``run.json`` says what to train. Started again after a kill, it goes on from its last
checkpoint; ``results.json`` appears when it is done.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint

import mmkd_plugin
from benchmarks.methods import DETECTION, OPTIMIZERS, TASKS, Task
from benchmarks.summary import columns
from mmkd_plugin.cli.runs import write_json
from mmkd_plugin.hooks import CompiledStepHook, mend_last_checkpoint


class RecordHook(Hook):
    """Adds up the seconds spent in training epochs, and keeps every evaluation in ``history.json``.

    The seconds travel in the checkpoint, so they count each epoch once however often the run was
    killed.
    """

    def __init__(self, file: Path, task: Task = DETECTION) -> None:
        self.file = file
        self.task = task
        self.history: dict[str, dict[str, float]] = (
            json.loads(file.read_text()) if file.is_file() else {}
        )

    def before_train_epoch(self, runner: Runner) -> None:
        # Killed between a checkpoint and its evaluation: that is made up for, or "best" would
        # depend on when the run was killed.
        epoch = runner.epoch
        due = epoch > 0 and epoch % runner.train_loop.val_interval == 0
        if due and str(epoch) not in self.history:
            runner.val_loop.run()
        self._start = time.perf_counter()

    def after_train_epoch(self, runner: Runner) -> None:
        runner.message_hub.update_info(
            'bench_seconds', seconds(runner) + time.perf_counter() - self._start
        )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        # A detector that finds nothing at all makes CocoMetric return no numbers: its AP is 0.
        self.history[str(runner.epoch)] = {
            name: float(metrics.get(key, 0.0)) for name, key in self.task.metrics.items()
        }
        write_json(self.file, self.history)


def seconds(runner: Runner) -> float:
    """Training time so far, over all the processes that worked on this run."""
    hub = runner.message_hub
    return hub.get_info('bench_seconds') if 'bench_seconds' in hub.runtime_info else 0.0


def set_epochs(cfg: Config, epochs: int) -> None:
    """Trains for ``epochs``; schedules that ended with the old last epoch end with the new one.

    The milestones of a step schedule keep their share of the run: 150 of 240 are 37 of 60.
    """
    old, cfg.train_cfg.max_epochs = cfg.train_cfg.max_epochs, epochs
    for scheduler in cfg.param_scheduler:
        if scheduler.get('by_epoch', True):
            for key in ('end', 'T_max'):
                if scheduler.get(key) == old:
                    scheduler[key] = epochs
            if 'milestones' in scheduler:
                scheduler.milestones = [m * epochs // old for m in scheduler.milestones]


def build_config(run: dict[str, Any], folder: Path) -> Config:
    """The config of a run: the student's own, and for a method the hook with its terms."""
    cfg = Config.fromfile(run['config'])
    if run['epochs']:
        set_epochs(cfg, run['epochs'])
    cfg.merge_from_dict(run['options'])  # schedules among them are made for these epochs
    if run.get('optimizer'):
        cfg.optim_wrapper = copy.deepcopy(OPTIMIZERS[run['optimizer']].wrapper)
    set_speed(cfg, run.get('amp'), run.get('compile'))
    cfg.work_dir = str(folder)
    cfg.resume = True
    if run.get('load_from') and find_latest_checkpoint(str(folder)) is None:
        cfg.resume, cfg.load_from = False, run['load_from']  # with both MMEngine resumes from it
    cfg.randomness = dict(seed=run['seed'])
    epochs = cfg.train_cfg.max_epochs
    task = TASKS[run.get('task', 'detection')]
    evaluations = run.get('evaluations') or task.evaluations or epochs
    cfg.train_cfg.val_interval = max(1, -(-epochs // evaluations))
    if run['split'] == 'test':
        cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.num_workers = 0  # several runs share the machine: one process each
        loader.persistent_workers = False
    # MMEngine's own hook removes the old checkpoint before it writes the new one: a run killed in
    # between could not go on.
    hook = dict(type='mmkd_plugin.SafeCheckpointHook', interval=1, max_keep_ckpts=1)
    cfg.setdefault('default_hooks', {}).checkpoint = hook
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    if 'mmkd_plugin' not in imports['imports']:
        imports['imports'] = [*imports['imports'], 'mmkd_plugin']
    cfg.custom_imports = imports
    if run.get('recipe') or run['terms']:
        keys = ('config', 'checkpoint', 'cfg_options')
        teacher = {key: run['teacher'][key] for key in keys if key in run['teacher']}
        if run.get('recipe'):
            return mmkd_plugin.distill(cfg, teacher, recipe=run['recipe'])
        hook = dict(
            type='mmkd_plugin.DistillHook',
            teacher=teacher,
            terms=run['terms'],
            task_weight=run.get('task_weight', 1.0),
        )
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]
    return cfg


def set_speed(cfg: Config, amp: str | None, compile: str | None) -> None:
    """Mixed precision (a dtype's name) and ``torch.compile`` (a mode's name)."""
    if amp:
        # The small exponents of float16 need loss scaling; bfloat16 has float32's.
        scale: Any = 'dynamic' if amp == 'float16' else dict(enabled=False)
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=amp, loss_scale=scale)
    if compile:
        # The last batch of an epoch is smaller: compiled once more, not for any size.
        cfg.compile = dict(mode=compile, dynamic=False)
        # A run that PyTorch has quietly gone on with uncompiled is no run of these settings.
        hook = dict(type='mmkd_plugin.CompiledStepHook', strict=True)
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]


def train(folder: Path) -> dict[str, Any]:
    """Trains (or goes on training) the run of ``folder`` and writes its ``results.json``."""
    run = json.loads((folder / 'run.json').read_text())
    task = TASKS[run.get('task', 'detection')]
    cfg = build_config(run, folder)
    record = RecordHook(folder / 'history.json', task)
    mend_last_checkpoint(folder)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(record)
    parameters = sum(p.numel() for p in runner.model.parameters())  # before anything is attached
    epochs, diverged = cfg.train_cfg.max_epochs, None
    try:
        runner.train()
    except FloatingPointError as error:
        diverged = str(error)
        record.history[str(epochs)] = dict.fromkeys(task.metrics, 0.0)
    if str(epochs) not in record.history:  # killed between the last checkpoint and its evaluation
        runner.val_loop.run()
    last = record.history[str(epochs)]
    best = max(record.history.values(), key=lambda m: m[task.main])
    numbers = [last[m] for m in task.metrics] + [best[m] for m in task.metrics]
    results = dict(
        task=run.get('task', 'detection'),
        dataset=run['dataset'],
        config=run['config'],
        pair=run.get('pair'),
        split=run['split'],
        method=run['method'],
        weight=run['weight'],
        seed=run['seed'],
        epochs=epochs,
        **dict(zip(columns(task), numbers)),
        history=record.history,
        seconds=round(seconds(runner), 2),
        parameters=parameters,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
        checkpoint=_newest(folder),
    )
    if diverged:
        results['diverged'] = diverged
    if run.get('recipe') and not diverged:
        results['weights'] = weights(folder / results['checkpoint'])
    for hook in runner.hooks:
        if isinstance(hook, CompiledStepHook):
            results['graphs'] = hook.graphs  # of the last process that worked on this run
    write_json(folder / 'results.json', results)
    return results


def weights(checkpoint: Path) -> dict[str, float]:
    """The weights of the terms in a checkpoint, found or given."""
    return torch.load(checkpoint, map_location='cpu', weights_only=False)['distiller']['weights']


def _newest(folder: Path) -> str | None:
    """The name of the run's last checkpoint; a run that diverges at once has none."""
    found = find_latest_checkpoint(str(folder))
    return None if found is None else Path(found).name


if __name__ == '__main__':
    train(Path(sys.argv[1]))
