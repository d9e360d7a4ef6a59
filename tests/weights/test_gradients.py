"""Norms of single losses' gradients, which leave no trace in the step they are taken from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from toys import toy_batch, toy_model

from mmkd_plugin.weights.gradients import parameter_norms, trainable


class Net(nn.Module):
    """Two layers, a norm and dropout; the first part may be checkpointed."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.second = nn.Linear(8, 2)
        self.other = nn.Linear(8, 1)
        self.frozen = nn.Linear(8, 1).requires_grad_(False)
        self.distiller = nn.Linear(2, 2)
        self.reentrant = reentrant

    def forward(self, x):
        x = checkpoint(self.first, x, use_reentrant=True) if self.reentrant else self.first(x)
        return self.distiller(self.second(x)).square().mean(), self.other(x).square().mean()


def inputs(requires_grad: bool = False):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(requires_grad)


def test_norms_are_those_of_the_loss_alone_on_the_students_own_parameters():
    net = Net()
    first, second = net(inputs())
    norms = parameter_norms(first, net, 'distiller')
    own = [(n, p) for n, p in net.named_parameters() if n.startswith(('first', 'second', 'other'))]
    assert len(trainable(net, 'distiller')) == len(own) == len(norms.squares)
    expected = torch.autograd.grad(first, [p for _, p in own], retain_graph=True, allow_unused=True)
    for (name, _), gradient, square, reached in zip(own, expected, norms.squares, norms.reached):
        assert bool(reached) == (not name.startswith('other'))
        if gradient is not None:
            assert float(square) == pytest.approx(float(gradient.square().sum()), rel=1e-5)
    both = norms.reached & parameter_norms(second, net, 'distiller').reached
    assert both.sum() == 4  # of the first part, weights and biases of layer and norm
    (first + second).backward()  # the graph is still there


@pytest.mark.parametrize('reentrant', [False, True])
def test_nothing_is_left_behind(reentrant):
    net = Net(reentrant)
    x = inputs(requires_grad=True)  # or a reentrant part would have no gradient
    sum(net(x)).backward()  # gradients of a first micro-batch
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
    objects = {n: p.grad for n, p in net.named_parameters()}
    losses = net(x)
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    state = torch.get_rng_state()
    norms = [parameter_norms(loss, net, 'distiller') for loss in losses]
    assert all(float(n.norm(n.reached)) > 0 for n in norms)
    assert torch.equal(state, torch.get_rng_state())
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    for name, parameter in net.named_parameters():
        assert parameter.grad is objects[name]
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])


def test_reentrant_checkpoints_give_the_same_norms():
    found = []
    for reentrant in (False, True):
        net = Net(reentrant)
        torch.manual_seed(3)
        loss, _ = net(inputs(requires_grad=True))
        found.append(parameter_norms(loss, net, 'distiller'))
    assert torch.equal(found[0].reached, found[1].reached)
    torch.testing.assert_close(found[0].squares, found[1].squares)


def test_half_precision_neither_vanishes_nor_overflows():
    try:
        with torch.autocast('cpu', dtype=torch.float16):
            pass
    except RuntimeError as error:  # torch 2.1
        pytest.skip(f'float16 is not to be had on this CPU: {error}')
    # 1e-6 is below what float16 can hold in a gradient of these sizes, 100 is far above it.
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 1))
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    for size in (1e-6, 100.0):
        exact = parameter_norms(net(x).square().mean() * size, net, 'distiller')
        with torch.autocast('cpu', dtype=torch.float16):
            loss = net(x).float().square().mean() * size
            half = parameter_norms(loss, net, 'distiller')
        assert half.is_finite
        assert half.norm(half.reached) == pytest.approx(exact.norm(exact.reached), rel=0.02)


def test_a_gradient_that_is_not_finite_says_so():
    net = toy_model()
    loss = sum(net(*toy_batch(), mode='loss')['loss_cls'])
    assert not parameter_norms(loss * float('inf'), net, 'distiller').is_finite
    detached = parameter_norms(loss.detach(), net, 'distiller')
    assert detached.is_finite and not detached.reached.any()
