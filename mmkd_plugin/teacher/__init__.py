"""The frozen teacher: loaded, checked, given its inputs, run no further than is needed."""

from .building import build_model, draw_weights
from .handle import TEACHER_KEYS, Teacher, make_teacher

__all__ = ['TEACHER_KEYS', 'Teacher', 'build_model', 'draw_weights', 'make_teacher']
