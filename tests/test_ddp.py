"""Two gloo processes on the CPU against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

TERMS = {
    'noise': 'dict(toys.TERM, end=3)',
    'plain': "dict(toys.TERM, loss=dict(type='CWDLoss'))",
}
SCRIPT = """
import os
import torch, toys
import torch.distributed as dist
world = int(os.environ['WORLD_SIZE'])
if world > 1:
    dist.init_process_group('gloo')
from mmengine.hooks import Hook
from mmengine.runner import Runner

class Keep(Hook):
    priority = 'LOWEST'
    def __init__(self, path): self.path, self.noise = path, None
    def before_train(self, runner):
        self.model = runner.model.module if world > 1 else runner.model
        self.model.distiller.rng.reseed(0)
        self.noise = torch.randn(4, generator=self.model.distiller.rng.generator('cpu'))
    def after_train(self, runner):
        parameters = {{n: p.detach() for n, p in self.model.named_parameters()}}
        torch.save(dict(parameters=parameters, noise=self.noise), self.path)

launch = dict(launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=False,
    broadcast_buffers=False)) if world > 1 else dict()
for name, term in dict({terms}).items():
    work = f'{out}/{{name}}_{{world}}'
    config = toys.runner_config(
        work, toys.hook_config(term), batch_size=4 // world, max_iters=4,
        experiment_name=work, **launch)
    config.model.norm = False
    runner = Runner.from_cfg(config)
    runner.register_hook(Keep(f"{out}/{{name}}_{{world}}_{{os.environ['RANK']}}.pth"))
    runner.train()
"""


def launch(world: int, out: Path) -> None:
    terms = ', '.join(f'{name}={term}' for name, term in TERMS.items())
    run_ranks(SCRIPT.format(out=str(out), terms=terms), world)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp('ddp')
    launch(2, out), launch(1, out)
    return lambda name, world, rank: torch.load(out / f'{name}_{world}_{rank}.pth')


@pytest.mark.parametrize('name', list(TERMS))
def test_ranks_stay_equal_also_when_connectors_fall_idle(results, name):
    a, b = (results(name, 2, rank)['parameters'] for rank in (0, 1))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any('distiller' in k for k in a) == (name == 'noise')


def test_half_the_batch_on_two_ranks_equals_one_process(results):
    one, two = (results('plain', world, 0)['parameters'] for world in (1, 2))
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key], two[key], atol=1e-6), key


def test_ranks_draw_different_noise(results):
    assert not torch.equal(results('noise', 2, 0)['noise'], results('noise', 2, 1)['noise'])
