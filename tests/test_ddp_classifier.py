"""Logit losses on two gloo processes with half the batch each against one with all of it."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

import mmkd_plugin
from mmkd_plugin.models import ImageClassifier

STEPS, IDLE_FROM = 4, 3
LOSSES = {
    'kd': dict(type='KDLoss'),
    'dkd': dict(type='DKDLoss'),
    'loca': dict(type='LoCaLoss'),
    'ipwd': dict(type='IPWDLoss'),
}
COUPLED = dict(type='CKDLoss')


class Backbone(nn.Module):
    """Without batch norm, which would see another batch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.out_channels = nn.Conv2d(3, 6, 3), 6

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(x).tanh(),)


def classifier(seed: int) -> ImageClassifier:
    return ImageClassifier(Backbone(seed), dict(type='LinearHead', num_classes=4))


def train(loss: dict, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """A few steps on this rank's share of each batch; the term falls idle before the last one."""
    term = dict(loss=loss, student='cls_logits', end=IDLE_FROM, name='term')
    student = classifier(0).train()
    mmkd_plugin.attach(student, classifier(1), [term], task_weight=0.5, probe_size=(8, 8))
    model = student
    if world > 1:
        model = nn.parallel.DistributedDataParallel(student, find_unused_parameters=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        images, labels = torch.randn(8, 3, 8, 8, generator=g), torch.arange(8) % 4
        own = slice(rank * 8 // world, (rank + 1) * 8 // world)
        student.distiller.set_progress(step)
        losses = model(images[own], dict(gt_label=labels[own]), mode='loss')
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in student.named_parameters()}


SCRIPT = """
import torch
import torch.distributed as dist
import test_ddp_classifier as case

dist.init_process_group('gloo')
rank = dist.get_rank()
losses = dict(case.LOSSES, ckd=case.COUPLED)
torch.save({{name: case.train(loss, rank, 2) for name, loss in losses.items()}},
           f'{out}/{{rank}}.pth')
dist.destroy_process_group()
"""


@pytest.fixture(scope='module')
def ranks(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp('ddp')
    run_ranks(SCRIPT.format(out=str(out)))
    return [torch.load(out / f'{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('name', LOSSES)
def test_half_the_batch_on_two_ranks_equals_one_process(ranks, name):
    one, two = train(LOSSES[name]), ranks[0][name]
    assert one.keys() == two.keys()
    assert any('cls_head' in key for key in one) == (name == 'ipwd')
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-6)
        assert torch.equal(two[key], ranks[1][name][key])


def test_a_coupled_loss_does_not(ranks):
    """Shows that the test above can fail."""
    one, two = train(COUPLED), ranks[0]['ckd']
    assert any(not torch.allclose(one[key], two[key], rtol=1e-4, atol=1e-6) for key in one)
    assert all(torch.equal(two[key], ranks[1]['ckd'][key]) for key in one)
