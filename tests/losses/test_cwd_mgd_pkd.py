"""CWDLoss, MGDLoss and PKDLoss against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmkd_plugin.losses import CWDLoss, MGDLoss, PKDLoss


def maps(*shape: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in 'st')


def numpy_conv3x3(x, weight, bias):
    n, _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((n, weight.shape[0], h, w)) + bias[None, :, None, None]
    for dy in range(3):
        for dx in range(3):
            window = padded[:, :, dy : dy + h, dx : dx + w]
            out += np.einsum('oc,nchw->nohw', weight[:, :, dy, dx], window)
    return out


def test_cwd_pinned():
    s = torch.tensor([[[[1, 2], [3, 4]], [[0, 1], [1, 0]]]], dtype=torch.float64)
    t = torch.tensor([[[[2, 0], [1, 3]], [[4, 0], [0, 4]]]], dtype=torch.float64)
    loss = CWDLoss()
    assert loss(s, t).item() == pytest.approx(1.7470355974, abs=1e-10)
    assert 145 * loss(s, t).item() == pytest.approx(253.32016162, abs=1e-8)
    assert CWDLoss(temperature=1.0)(s, t).item() == pytest.approx(0.7798717120, abs=1e-10)
    assert not list(loss.parameters())


def test_cwd_with_align_is_cwd_of_the_aligned_map():
    s, t = maps(2, 3, 4, 5)[0], maps(2, 6, 4, 5, seed=1)[1]
    loss = CWDLoss()
    value = loss(s, t)
    weight, bias = loss.align.weight.detach(), loss.align.bias.detach()
    aligned = torch.einsum('oc,nchw->nohw', weight[:, :, 0, 0], s) + bias.view(1, -1, 1, 1)
    torch.testing.assert_close(value.detach(), CWDLoss()(aligned, t))


@pytest.mark.parametrize('normalize', ['mean', 'batch'])
@pytest.mark.parametrize(('mask', 'drawn'), [('position', (2, 1, 4, 5)), ('channel', (2, 3, 1, 1))])
def test_mgd_equals_numpy(monkeypatch, normalize, mask, drawn):
    s, t = maps(2, 3, 4, 5)
    loss = MGDLoss(mask_ratio=0.65, normalize=normalize, mask=mask)
    loss.connect(s.shape, t.shape)
    loss.double()
    draw = torch.rand(drawn, generator=torch.Generator().manual_seed(0))
    shapes = []
    monkeypatch.setattr(torch, 'rand', lambda shape, **kw: (shapes.append(tuple(shape)), draw)[1])
    value = loss(s, t).item()
    assert shapes == [drawn]

    first, _, second = loss.generator
    parameters = [p.detach().numpy() for c in (first, second) for p in (c.weight, c.bias)]
    keep = np.where(draw.numpy() < 0.65, 0.0, 1.0)
    assert 0 < keep.mean() < 1
    hidden = np.maximum(numpy_conv3x3(s.numpy() * keep, *parameters[:2]), 0)
    squares = (numpy_conv3x3(hidden, *parameters[2:]) - t.numpy()) ** 2
    expected = squares.mean() if normalize == 'mean' else squares.sum() / 2
    assert value == pytest.approx(expected, rel=1e-10)


def test_mgd_equivalent_weight():
    """A weight for 'batch' times C H W is the weight for 'mean'."""
    s, t = maps(2, 3, 4, 5)
    mean, batch = MGDLoss(mask_ratio=0), MGDLoss(mask_ratio=0, normalize='batch')
    for loss in (mean, batch):
        loss.connect(s.shape, t.shape)
        loss.double()
    batch.load_state_dict(mean.state_dict())
    weight = 2e-5
    expected = weight * batch(s, t).item()
    assert weight * 3 * 4 * 5 * mean(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_mgd_trains_align_and_generator():
    s, t = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 6, 4, 5)
    loss = MGDLoss()
    loss(s, t).backward()
    assert len(list(loss.parameters())) == 6
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    # a masked position gets no gradient in any channel
    blocked = s.grad.abs().sum(1) == 0
    assert 0 < blocked.float().mean() < 1


def test_mgd_default_is_the_mean_over_all_elements():
    loss = MGDLoss()
    assert (loss.mask_ratio, loss.normalize, loss.mask) == (0.65, 'mean', 'position')


def test_mgd_hides_whole_channels_from_the_generator():
    s, t = torch.rand(8, 50, 4, 4) + 1, torch.rand(8, 50, 4, 4)
    loss = MGDLoss(mask_ratio=0.15, mask='channel')
    loss.connect(s.shape, t.shape)
    seen = []
    loss.generator.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    loss(s, t)
    hidden = seen[0] == 0
    assert torch.equal(hidden, hidden[:, :, :1, :1].expand_as(hidden)), 'not whole channels'
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.06)
    assert torch.equal(seen[0][~hidden], s[~hidden])


def test_pkd_is_one_minus_the_correlation_over_batch_and_positions():
    s, t = maps(3, 4, 5, 6)
    rows = []
    for c in range(4):
        a, b = s[:, c].flatten().numpy(), t[:, c].flatten().numpy()
        rows.append(1 - np.corrcoef(a, b)[0, 1])
    loss = PKDLoss()
    assert loss(s, t).item() == pytest.approx(np.mean(rows), rel=1e-10)
    assert not list(loss.parameters())


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: CWDLoss(temperature=0), 'temperature must be a finite number above 0'),
        (lambda: MGDLoss(mask_ratio=1), 'mask_ratio must be a number of at least 0 and below 1'),
        (lambda: MGDLoss(mask_ratio='0.5'), "got '0.5'"),
        (lambda: MGDLoss(normalize='men'), "normalize must be one of 'mean', 'batch'.*'mean'"),
        (lambda: MGDLoss(mask='chanel'), "one of 'position', 'channel', got .*mean 'channel'"),
        (lambda: MGDLoss(mask=None), "mask must be one of 'position', 'channel', got None"),
    ],
)
def test_wrong_options_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
