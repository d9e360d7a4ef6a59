"""Distances between boxes: numbers by hand, torchvision's, and what holds for any boxes."""

from __future__ import annotations

import pytest
import torch
from torchvision import ops

from mmkd_plugin import functional as F

LOSSES = (F.giou_loss, F.diou_loss, F.box_l1)
each_loss = pytest.mark.parametrize('loss', LOSSES)
UNIT = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def boxes(count: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(count, 2, generator=g, dtype=torch.float64)
    size = 4 + 60 * torch.rand(count, 2, generator=g, dtype=torch.float64)
    return torch.cat([corner, corner + size], 1).to(dtype)


def test_numbers_by_hand():
    other = torch.tensor([[0.5, 0.0, 1.5, 1.0]])
    assert F.box_iou(UNIT, other).item() == pytest.approx(1 / 3)
    assert F.giou_loss(UNIT, other).item() == pytest.approx(2 / 3)  # the hull is the union
    assert F.diou_loss(UNIT, other).item() == pytest.approx(2 / 3 + 0.25 / 3.25)
    assert F.box_l1(UNIT, other).item() == pytest.approx(0.25)  # two of four sides, half a width
    assert F.box_l1(UNIT, other, beta=1.0).item() == pytest.approx(2 * 0.125 / 4)
    tall = torch.tensor([[0.0, 0.0, 1.0, 4.0]])
    assert F.box_l1(UNIT, tall).item() == pytest.approx(0.75 / 4)
    assert F.box_l1(UNIT, tall, normalize=False).item() == pytest.approx(3 / 4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_values_and_gradients_are_torchvisions(dtype):
    t = boxes(200, 1, dtype)
    for own, theirs in (
        (F.giou_loss, ops.generalized_box_iou_loss),
        (F.diou_loss, ops.distance_box_iou_loss),
    ):
        s, r = (boxes(200, 0, dtype).requires_grad_() for _ in 'sr')
        value, expected = own(s, t, reduction='none'), theirs(r, t)
        torch.testing.assert_close(value, expected)
        value.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(s.grad, r.grad)
    overlaps = ops.box_iou(boxes(200, 0, dtype), t).diagonal()
    torch.testing.assert_close(F.box_iou(boxes(200, 0, dtype), t), overlaps)


@each_loss
def test_gradients_are_those_of_finite_differences(loss):
    s, t = boxes(30, 0).requires_grad_(), boxes(30, 1)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s)
    assert torch.autograd.gradcheck(lambda x: F.box_l1(x, t, beta=0.3), s)


@each_loss
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equal_boxes_have_no_loss_and_no_gradient(loss, dtype):
    flat = torch.tensor([[3.0, 4.0, 3.0, 9.0], [5.0, 5.0, 5.0, 5.0], [8.0, 8.0, 2.0, 9.0]])
    t = torch.cat([boxes(100, 0, dtype), flat.to(dtype)])
    s = t.clone().requires_grad_()
    values = loss(s, t, reduction='none')
    values.sum().backward()
    assert values.eq(0).all()
    assert s.grad[:100].abs().max() < 1e-6 and s.grad.isfinite().all()


@each_loss
def test_sides_and_axes_are_alike(loss):
    s, t = boxes(50, 0), boxes(50, 1)
    values = loss(s, t, reduction='none')
    swapped = [x[:, [1, 0, 3, 2]] for x in (s, t)]
    torch.testing.assert_close(loss(*swapped, reduction='none'), values)
    mirrored = [torch.stack([-x[:, 2], x[:, 1], -x[:, 0], x[:, 3]], 1) for x in (s, t)]
    torch.testing.assert_close(loss(*mirrored, reduction='none'), values)
    for change in (lambda x: x * 7, lambda x: x + 30):
        torch.testing.assert_close(loss(change(s), change(t), reduction='none'), values)


@each_loss
def test_only_the_student_gets_a_gradient_and_float32_at_least(loss):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        s, t = (boxes(20, seed, dtype).requires_grad_() for seed in (0, 1))
        value = loss(s, t)
        value.backward()
        assert value.dtype == torch.float32 and t.grad is None
        assert s.grad.dtype == dtype and s.grad.isfinite().all() and s.grad.any()
    assert loss(boxes(3, 0), boxes(3, 1)).dtype == torch.float64


@each_loss
def test_weights_are_those_of_a_mean(loss):
    s, t, w = boxes(4, 0), boxes(4, 1), torch.tensor([1.0, 0.0, 2.0, 1.0])
    rows = loss(s, t, reduction='none')
    torch.testing.assert_close(loss(s, t, w), (rows * w).sum() / 4)
    torch.testing.assert_close(loss(s, t, w, reduction='none'), rows * w)
    torch.testing.assert_close(loss(s, t), rows.mean())
    assert loss(s, t, torch.zeros(4)) == 0
    assert loss(s[:0], t[:0]) == 0


def test_the_teacher_is_closer_only_if_it_really_is():
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(5, 4)
    right = torch.tensor([10.0, 10.0, 12.0, 9.0, 8.0])
    teacher = truth.clone()
    teacher[:, 2] = right
    student = truth.clone()
    student[:, 2] = torch.tensor([10.0, 12.0, 10.0, 8.0, 8.0])
    assert F.closer_to(truth, teacher, student).tolist() == [False, True, False, True, False]
    assert not F.closer_to(truth, teacher, student, margin=0.5).any()
    far = torch.tensor([[50.0, 50.0, 60.0, 60.0]])
    assert not F.closer_to(truth[:1], far, far + 1).any()  # none overlaps


@each_loss
def test_wrong_boxes_raise(loss):
    with pytest.raises(ValueError, match=r'boxes must have shape \(N, 4\), got \(2, 5\)'):
        loss(torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r'same shape \(N, 4\)'):
        loss(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'none'"):
        loss(torch.zeros(2, 4), torch.zeros(2, 4), reduction='sum')
