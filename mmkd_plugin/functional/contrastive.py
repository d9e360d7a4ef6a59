"""Contrast between the logit vectors of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .checks import check_choice, check_pair, check_temperature, widen

VARIANTS = ('ts', 'sym', 'ss')
EPS = 1e-12  # of the norm; too small for half precision, which is widened first


def contrastive(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, variant: str = 'ts'
) -> Tensor:
    r"""InfoNCE between the logit vectors of teacher and student (CKD, Zhu et al. 2024).

    .. math:: M_{ij} = \cos(t_i, s_j), \qquad
        L = -\frac{1}{B} \sum_i \log \frac{e^{M_{ii} / \tau}}{\sum_j e^{M_{ij} / \tau}}

    The student's row of a sample is drawn to the teacher's row of that sample and kept away from
    the teacher's other rows. The perfect student does not reach 0.

    Args:
        student: Logits of the student, one row per sample.
        teacher: Logits of the teacher; gets no gradient.
        temperature: :math:`\tau`, above 0.
        variant: ``'ts'`` as above, as the released code has it. ``'sym'`` adds the same with
            :math:`M` transposed (a sum, not a mean). ``'ss'`` takes :math:`\cos(s_i, s_j)` off the
            diagonal.

    Returns:
        A scalar; 0 for a batch of one sample or none.

    Shape:
        - student, teacher: (B, C)
        - output: ()

    Raises:
        ValueError: for unequal shapes, or an invalid temperature or variant.

    Example:
        >>> import torch
        >>> print(f'{contrastive(torch.eye(2), torch.eye(2)).item():.6f}')  # log(1 + 1/e)
        0.313262
    """
    check_pair(student, teacher, 2, '(B, C)')
    check_temperature(temperature)
    check_choice('variant', variant, VARIANTS)
    if not student.shape[0]:
        return widen(student).sum() * 0
    with torch.autocast(student.device.type, enabled=False):  # it would narrow the product
        s = _unit(widen(student))
        t = _unit(widen(teacher.detach()), temperature)
        rows = torch.arange(s.shape[0], device=s.device)
        if variant == 'ss':
            similar = (s / temperature @ s.T).diagonal_scatter((s * t).sum(1))
        else:
            similar = t @ s.T
        loss = cross_entropy(similar, rows)
        return loss + cross_entropy(similar.T, rows) if variant == 'sym' else loss


def _unit(x: Tensor, temperature: float = 1.0) -> Tensor:
    """Rows of length 1 / temperature; times the inverse, whose backward is cheaper than that of
    a quotient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * length.clamp(min=EPS).mul(temperature).reciprocal()
