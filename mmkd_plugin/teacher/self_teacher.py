"""Self-distillation: the teacher is the student as it was at the end of the previous epoch."""

from __future__ import annotations

import copy

from torch import nn

from ..images.pixels import Pixels
from .handle import Teacher

PREVIOUS_EPOCH = 'previous_epoch'


class SelfTeacher(Teacher):
    """A frozen copy of the student that :meth:`refresh` renews at the start of each epoch.

    In the first epoch there is no previous one: let its terms begin with the second
    (``begin=1, by_epoch=True``).

    Args:
        student: the model to copy, before anything is attached to it.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__(
            copy.deepcopy(student), identity=dict(config=PREVIOUS_EPOCH, checkpoint=None)
        )
        self.epoch = 0

    def pixels(self, student: Pixels) -> Pixels:
        """The student's, whatever they are."""
        return student

    def refresh(self, student: nn.Module, epoch: int) -> None:
        """Takes over the student's weights when ``epoch`` (from 0) is a new one."""
        if epoch > self.epoch:
            self.model.load_state_dict(student.state_dict())
            self.epoch = epoch

    def resume_state(self) -> dict:
        weights = {k: v.to('cpu', copy=True) for k, v in self.model.state_dict().items()}
        return dict(epoch=self.epoch, weights=weights)

    def load_resume_state(self, state: dict) -> None:
        self.model.load_state_dict(state['weights'])
        self.epoch = state['epoch']
