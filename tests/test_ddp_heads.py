"""Means over selected rows: two gloo processes with unequal positives against one with them all.

Sums are averaged over the processes, as those of a detector's own losses that no factor divides.
"""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from region_batches import BOXES, detector, images, sample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmkd_plugin

DETECTED = dict(loss=dict(type='BoxDistillLoss'), student='boxes', teacher='detections')
TERMS = {
    'GFL': dict(
        positive=dict(loss=dict(type='KDLoss', temperature=1.0), select='positive'),
        scores=dict(loss=dict(type='KDLoss', temperature=1.0), select='score_weighted'),
        loca=dict(loss=dict(type='LoCaLoss', temperature=1.0)),
        ipwd=dict(loss=dict(type='IPWDLoss', temperature=1.0, normalize='batch_mean')),
        summed=dict(
            loss=dict(type='KDLoss', temperature=1.0),
            select=dict(by='positive', weights='student_score', reduction='sum'),
        ),
        boxes=dict(
            loss=dict(type='BoxDistillLoss', when='always'), student='boxes', select='positive'
        ),
        detected=DETECTED,
    ),
    'Deformable DETR': dict(
        kd=dict(loss=dict(type='KDLoss', temperature=1.0), select='positive'),
        boxes=dict(loss=dict(type='BoxDistillLoss', when='always'), student='boxes'),
        detected=DETECTED,
    ),
}


def batch():
    """Two images, one with two objects and one with none: rank 1 has no positive at all."""
    samples = [sample(), sample(boxes=BOXES[:0], labels=())]
    return images(samples), samples


def gradients(family: str, name: str) -> dict[str, torch.Tensor]:
    """Of the student, from one term alone, on this process's share of the batch."""
    import torch.distributed as dist

    torch.manual_seed(0)  # biases are drawn when a model is built
    student = detector(family).train()
    teacher = detector(family, width=32, seed=1)
    term = dict(dict(student='cls_logits', name=name), **TERMS[family][name])
    mmkd_plugin.attach(student, teacher, [term], task_weight=0.0, seed=3)
    inputs, samples = batch()
    world = dist.get_world_size() if dist.is_initialized() else 1
    model: nn.Module = student
    if world > 1:
        rank = dist.get_rank()
        inputs, samples = inputs[rank : rank + 1], samples[rank : rank + 1]
        model = nn.parallel.DistributedDataParallel(student, find_unused_parameters=True)
    for module in student.modules():  # each image on its own, in one process as in two
        if isinstance(module, (_BatchNorm, nn.Dropout, nn.MultiheadAttention)):
            module.eval()
    losses = model(inputs, samples, mode='loss')
    total = sum(v for k, v in losses.items() if k.startswith(f'loss_{name}'))  # auxiliary, too
    # The rest of the graph takes part with zeros, as it would in training.
    total = total + sum((v if torch.is_tensor(v) else sum(v)).sum() * 0 for k, v in losses.items())
    total.backward()
    return {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


def main(out: str) -> None:
    import torch.distributed as dist

    dist.init_process_group('gloo')
    found = {f'{f}/{name}': gradients(f, name) for f, names in TERMS.items() for name in names}
    torch.save(found, f'{out}/{dist.get_rank()}.pth')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp('heads')
    run_ranks(f'import test_ddp_heads; test_ddp_heads.main({str(out)!r})')
    return [torch.load(out / f'{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('case', [f'{f}/{name}' for f, names in TERMS.items() for name in names])
def test_two_ranks_give_the_gradient_of_one_process(ranks, case):
    expected = gradients(*case.split('/'))
    assert any(g.abs().sum() > 0 for g in expected.values())
    for rank in ranks:
        assert rank[case].keys() == expected.keys()
        for name, gradient in expected.items():
            gradient = gradient / 2 if case.endswith('summed') else gradient
            close = torch.allclose(rank[case][name], gradient, rtol=1e-3, atol=1e-6)
            assert close, (name, rank[case][name], gradient)
