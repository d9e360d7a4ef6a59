"""The weight of a term: a number, or a target that it is calibrated to in the first iterations."""

from .calibration import Calibration
from .target import AUTO, TARGETS, Weight, parse_weight

__all__ = ['AUTO', 'TARGETS', 'Calibration', 'Weight', 'parse_weight']
