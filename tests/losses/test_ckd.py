"""CKDLoss: pinned numbers, its limit, and two gloo processes against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from mmkd_plugin import functional as F
from mmkd_plugin.losses import CKDLoss, ckd

STUDENT = torch.tensor([[2, 1, 1], [1, 1, 0], [0, 1, 2]], dtype=torch.float64)
TEACHER = torch.tensor([[4, 1, 0], [0, 2, 1], [1, 0, 3]], dtype=torch.float64)

VARIANTS = ('ts', 'sym', 'ss')
BATCHES = {'equal': (3, 3), 'unequal': (4, 2), 'idle': (6, 0)}  # samples of the two processes


def test_pinned():
    assert CKDLoss()(STUDENT, TEACHER).item() == pytest.approx(0.95743814, abs=1e-8)
    assert CKDLoss(temperature=2.0)(STUDENT, TEACHER).item() == pytest.approx(1.02028355, abs=1e-8)
    assert CKDLoss(variant='sym')(STUDENT, TEACHER).item() == pytest.approx(1.91449221, abs=1e-8)
    assert CKDLoss(variant='ss')(STUDENT, TEACHER).item() == pytest.approx(0.97607928, abs=1e-8)
    for weight, expected in ((0.1, 0.0957438135), (100, 95.7438135)):
        value = weight * CKDLoss()(STUDENT, TEACHER)
        assert value.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize('variant', VARIANTS)
def test_gathering_without_other_processes_changes_nothing(variant):
    loss = CKDLoss(variant=variant, gather=True)
    assert torch.equal(loss(STUDENT, TEACHER), CKDLoss(variant=variant)(STUDENT, TEACHER))


def test_a_batch_of_one_is_told_once(monkeypatch):
    lines = []
    monkeypatch.setattr(ckd, 'print_log', lambda text, *args: lines.append(text))
    loss = CKDLoss()
    loss(STUDENT[:2], TEACHER[:2])
    assert not lines
    assert [loss(STUDENT[:1], TEACHER[:1]).item() for _ in range(2)] == [0, 0]
    assert len(lines) == 1 and 'batch of one sample' in lines[0] and 'batch_size' in lines[0]


def test_too_many_samples_are_refused(monkeypatch):
    monkeypatch.setattr(ckd, 'MAX_SAMPLES', 3)
    CKDLoss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match='every sample with every other, at most 3, but got 4'):
        CKDLoss()(torch.zeros(1, 5, 2, 2), torch.zeros(1, 5, 2, 2))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(temperature=0), 'temperature must be a finite number above 0, got 0'),
        (dict(variant='tss'), "variant must be one of 'ts', 'sym', 'ss'.*did you mean 'ts'"),
    ],
)
def test_wrong_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CKDLoss(**kwargs)


WEIGHTS = torch.tensor([1.0, 0, 2, 1, 0.5, 1], dtype=torch.float64)


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in 'xt')


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
import torch.distributed as dist
import test_ckd as case
from mmkd_plugin.losses import CKDLoss

dist.init_process_group('gloo')
rank = dist.get_rank()
results = dict()
for name, counts in case.BATCHES.items():
    x, t = (rows.split(counts)[rank] for rows in case.data())
    for variant in case.VARIANTS:
        for gather in (True, False):
            model = torch.nn.Linear(5, 5).double()
            with torch.no_grad():
                model.weight.copy_(torch.eye(5)), model.bias.zero_()
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            value = CKDLoss(0.5, variant, gather=gather)(wrapped(x), t)
            value.backward()
            results[name, variant, gather] = (value.item(), model.weight.grad, model.bias.grad)
x, t = (rows.split((4, 2))[rank] for rows in case.data())
weights = case.WEIGHTS.split((4, 2))[rank]
images = torch.tensor([0, 1, 0, 1] if rank == 0 else [0, 0])
for per_image in (False, True):
    x = x.detach().clone().requires_grad_()
    loss = CKDLoss(0.5, gather=True, per_image=per_image)
    value = loss(x, t, weights=weights, images=images)
    value.backward()
    results['weighted', per_image] = (value.item(), x.grad)
torch.save(results, f'{out}/{{rank}}.pth')
dist.destroy_process_group()
"""


@pytest.fixture(scope='module')
def ranks(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp('gather')
    run_ranks(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    return [torch.load(out / f'{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('name', BATCHES)
def test_two_processes_that_gather_equal_one_with_the_whole_batch(ranks, name, variant):
    x, t = data()
    weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    value = F.contrastive(x @ weight.T + bias, t, 0.5, variant)
    value.backward()
    for results in ranks:
        loss, *grads = results[name, variant, True]
        assert loss == pytest.approx(value.item(), abs=1e-12)
        torch.testing.assert_close(grads, [weight.grad, bias.grad], rtol=0, atol=1e-12)


@pytest.mark.parametrize('variant', VARIANTS)
def test_without_gathering_every_process_has_its_own_contrast(ranks, variant):
    x, t = data()
    for rank, results in enumerate(ranks):
        rows = slice(3 * rank, 3 * rank + 3)
        expected = F.contrastive(x[rows], t[rows], 0.5, variant).item()
        assert results['equal', variant, False][0] == pytest.approx(expected, abs=1e-12)
        assert results['equal', variant, True][0] != pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('weighted', [False, True])
def test_the_images_of_a_batch_are_contrasted_apart(variant, weighted):
    x, t = data()
    images = torch.tensor([1, 0, 1, 0, 1, 1])
    weights = torch.tensor([1.0, 2, 0, 1, 3, 1]) if weighted else None
    loss = CKDLoss(variant=variant, per_image=True)
    assert loss.needs == ('images',) and CKDLoss().needs == ()
    value = loss(x, t, images=images, weights=weights)
    expected = share = 0
    for image in (0, 1):
        own = images == image
        own_weights = None if weights is None else weights[own]
        amount = own.sum() if weights is None else own_weights.sum()
        expected += amount * CKDLoss(variant=variant)(x[own], t[own], weights=own_weights)
        share += amount
    torch.testing.assert_close(value, expected / share, rtol=1e-6, atol=0)
    assert abs(value - CKDLoss(variant=variant)(x, t, weights=weights)) > 1e-2
    with pytest.raises(ValueError, match='CKDLoss needs images'):
        loss(x, t)


def test_the_error_about_too_many_samples_names_the_way_out(monkeypatch):
    monkeypatch.setattr(ckd, 'MAX_SAMPLES', 2)
    for call in (CKDLoss().rows, CKDLoss()):
        with pytest.raises(ValueError, match=r"at most 2, but got 3;.*'teacher_topk', k=512"):
            call(STUDENT, TEACHER)


@pytest.mark.parametrize('per_image', [False, True])
def test_weights_and_images_are_gathered_with_the_samples(ranks, per_image):
    x, t = data()
    x.requires_grad_()
    groups = torch.tensor([0, 1, 0, 1, 2, 2]) if per_image else None
    value = F.contrastive(x, t, 0.5, 'ts', WEIGHTS, groups)
    (2 * value).backward()  # DDP's average over two processes comes after it
    for results, own in zip(ranks, (slice(0, 4), slice(4, 6))):
        got, grad = results['weighted', per_image]
        assert got == pytest.approx(value.item(), abs=1e-12)
        torch.testing.assert_close(grad, x.grad[own], rtol=0, atol=1e-12)
