"""The frozen teacher: loaded, checked, given its inputs, run no further than is needed."""

from .handle import Teacher, build_model, make_teacher

__all__ = ['Teacher', 'build_model', 'make_teacher']
