"""What every registered loss on logits must do beside test_contract.py."""

from __future__ import annotations

import pytest
import torch
from loss_cases import CLASSES, LOSSES, build, each_logit_loss, extras, inputs, objective

from mmkd_plugin.registry import MODELS


@each_logit_loss
def test_every_position_of_a_map_is_a_sample(name):
    s, t = (x.double() for x in inputs(name, batch=12))
    loss = build(name, s, t).double()
    more = extras(name, s)
    expected = objective(loss, loss(s, t, **more))
    maps = {
        key: x.view(2, 2, 3, *x.shape[1:]).movedim(-1, 1) if x.ndim > 1 else x.view(2, 2, 3)
        for key, x in dict(more, s=s, t=t).items()
    }
    assert maps['s'].shape == (2, CLASSES, 2, 3)
    value = objective(loss, loss(maps.pop('s'), maps.pop('t'), **maps))
    torch.testing.assert_close(value, expected)


@each_logit_loss
def test_no_sample_gives_zero_with_a_gradient(name):
    s, t = (x.requires_grad_() for x in inputs(name, batch=0))
    loss = build(name, s, t)
    value = objective(loss, loss(s, t, **extras(name, s)))
    value.backward()
    assert value.item() == 0 and s.grad.shape == (0, CLASSES)
    assert all(x.isfinite() for x in loss.report.values())


@each_logit_loss
def test_one_sample_is_enough(name):
    s, t = (x.requires_grad_() for x in inputs(name, batch=1))
    loss = build(name, s, t)
    value = objective(loss, loss(s, t, **extras(name, s)))
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()


@each_logit_loss
def test_classes_that_differ_raise(name):
    s, t = inputs(name)
    with pytest.raises(ValueError, match=rf'{name} needs the same classes.*\(4, 6\).*\(4, 5\)'):
        MODELS.build(dict(type=name))(s, t[:, :5], **extras(name, s))


@pytest.mark.parametrize('name', [name for name in LOSSES if LOSSES[name].needs])
def test_what_is_needed_is_asked_for(name):
    s, t = inputs(name)
    more = extras(name, s)
    for missing in LOSSES[name].needs:
        rest = {k: x for k, x in more.items() if k != missing}
        with pytest.raises(ValueError, match=rf'{name} needs {missing}; .*cls_logits'):
            MODELS.build(dict(type=name))(s, t, **rest)


@pytest.mark.parametrize('name', [name for name in LOSSES if 'labels' in LOSSES[name].needs])
def test_wrong_labels_raise(name):
    s, t = inputs(name)
    more = extras(name, s)
    labels = more['labels']
    for wrong, message in (
        (labels.float(), 'labels must be integer class indices, got dtype torch.float32'),
        (labels[:3], r'labels must be \(N,\).*got \(3,\)'),
        (labels.new_tensor([0, 1, 6, 2]), r'labels must lie in 0 to 5.* got 6'),
        (labels.new_tensor([0, 1, -1, 2]), r'labels must lie in 0 to 5.* got -1'),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, s, t)(s, t, **dict(more, labels=wrong))
    for dtype in (torch.int32, torch.uint8):
        loss = build(name, s, t)
        value = objective(loss, loss(s, t, **dict(more, labels=labels.to(dtype))))
        assert torch.equal(value, objective(loss, loss(s, t, **more)))
