"""How often a model repeats the images of its batch, and what its teacher then sees of them."""

from __future__ import annotations

from torch import Tensor

from ..taps import TapError
from ..taps.foreign import AnyModule


def branches(model: AnyModule, training: bool) -> int:
    """How often the maps of a model hold each image of its batch.

    TridentNet's maps hold the whole batch for its first branch, then for the next one, and so on;
    in a test for one branch only, unless ``test_branch_idx`` is -1.
    """
    count = getattr(model, 'num_branch', 1)
    known = isinstance(count, int) and (training or getattr(model, 'test_branch_idx', -1) == -1)
    return count if known else 1


def copies_of(student: AnyModule, teacher: AnyModule) -> int:
    """How many images of the student's maps belong to one of the teacher's.

    Raises:
        TapError: the teacher has more of them than the student, or a number that does not divide.
    """
    own, theirs = branches(student, True), branches(teacher, False)
    if own % theirs:
        raise TapError(
            f'the teacher ({type(teacher).__name__}) sees each image in {theirs} branches '
            f'also in a test (test_branch_idx=-1), the student ({type(student).__name__}) in '
            f'{own}: their images do not correspond. Choose a branch of the teacher: '
            'test_branch_idx=1 in its backbone and roi_head.'
        )
    return own // theirs


def repeated(teacher: Tensor, student: Tensor, copies: int) -> Tensor:
    """The teacher's tensor (N, ...) as often as the student's (k N, ...) holds its images."""
    if copies == 1 or len(student) != copies * len(teacher):
        return teacher
    return teacher.repeat(copies, *[1] * (teacher.dim() - 1))


def check_image_count(images: int, expected: int) -> None:
    """Refuses maps that hold other images than they should.

    Raises:
        TapError: the model repeats its batch in a way that is not known.
    """
    if images != expected:
        raise TapError(
            f'the maps of the student hold {images} images where the batch '
            f'makes {expected}: it repeats them in an order that is not known. Known are '
            'the branches of TridentNet (num_branch). Distil features from in front of the '
            'repetition, such as an early stage of the backbone.'
        )
