"""The frozen teacher: loaded, checked, given its inputs, run no further than is needed."""

from .building import build_model
from .handle import TEACHER_KEYS, Teacher, make_teacher

__all__ = ['TEACHER_KEYS', 'Teacher', 'build_model', 'make_teacher']
