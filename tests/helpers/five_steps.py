"""Five iterations of a distilled training in another package, and its checkpoint without ours."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

STEPS = 5

# Runs as a process of its own: one request a line (config, checkpoint), one answer a line.
PLAIN = """
import importlib, json, sys
sys.modules['mmkd_plugin'] = None  # importing it raises from here on
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
package = sys.argv[1]
init_default_scope(package)
importlib.import_module(package + '.models')
for line in sys.stdin:
    config, checkpoint = json.loads(line)
    try:
        model = MODELS.build(Config.fromfile(config).model)
        saved = torch.load(checkpoint, map_location='cpu', weights_only=False)
        model.load_state_dict(saved['state_dict'], strict=True)
        answer = 'loaded ' + type(model).__name__
    except Exception as error:
        answer = f'{type(error).__name__}: {error}'.replace(chr(10), ' ')
    print('ANSWER ' + answer, flush=True)
"""


class PlainPackage:
    """A process with one OpenMMLab package but without the plugin, asked to load checkpoints."""

    def __init__(self, package: str, folder: Path) -> None:
        script = folder / 'plain.py'
        script.write_text(PLAIN)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(script), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
        )

    def load(self, model: dict, checkpoint: Path) -> str:
        """What became of loading a checkpoint strictly into a model of this config."""
        config = self.folder / f'{checkpoint.parent.name}.py'
        Config(dict(model=model)).dump(config)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(config), str(checkpoint)]) + '\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('ANSWER '):
                return line.removeprefix('ANSWER ').strip()
        return f'the process ended with code {self.process.wait()}'

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Losses(Hook):
    """Keeps the losses of all steps, and the terms as they were resolved."""

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.steps: list[dict] = []
        self.plan = runner.model.distiller.plan()
        self.start = {k: v.clone() for k, v in runner.model.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.steps.append({k: v.item() for k, v in outputs.items() if 'loss' in k})


def run_config(
    scope: str, model: dict, dataset: dict, work_dir: Path, hook: dict, batch_size: int = 2, **other
) -> Config:
    """A Runner's config: five iterations of a model on a data set, with one hook of ours."""
    return Config(
        dict(
            default_scope=scope,
            custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
            model=model,
            work_dir=str(work_dir),
            train_dataloader=dict(
                batch_size=batch_size,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=False),
                dataset=dataset,
                **other,
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=STEPS, val_interval=100),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=STEPS, by_epoch=False),
            ),
            custom_hooks=[dict(type='mmkd_plugin.DistillHook', **hook)],
            randomness=dict(seed=0),
            log_level='WARNING',
        )
    )


def random_teacher(scope: str, model: dict) -> dict:
    """The entry ``teacher`` of a hook, with random weights."""
    return dict(config=dict(model=model, default_scope=scope), checkpoint=None, allow_random=True)


def train(config: Config, terms: tuple[str, ...]) -> tuple[Runner, Losses]:
    """Trains and checks what holds for every package.

    Args:
        config: of a Runner.
        terms: names of the terms whose losses must be there.

    Returns:
        The runner, and what it saw.
    """
    runner, seen = Runner.from_cfg(config), Losses()
    runner.register_hook(seen)
    runner.train()
    assert len(seen.steps) == STEPS
    for losses in seen.steps:
        assert all(math.isfinite(value) for value in losses.values()), losses
        for name in terms:
            assert losses[f'loss_{name}'] != 0, losses  # a KL of two new heads may round below 0
    assert not hasattr(runner.model, 'distiller')
    state = runner.model.state_dict()
    assert list(state) == list(seen.start)
    assert any(not torch.equal(value, seen.start[key]) for key, value in state.items())
    return runner, seen
