"""The weight of a term: a number, or a target that it is calibrated to in the first iterations."""

from .calibration import BATCHES, PATIENCE, Calibration, CalibrationError
from .target import AUTO, TARGETS, Weight, parse_weight

__all__ = [
    'AUTO',
    'BATCHES',
    'PATIENCE',
    'TARGETS',
    'Calibration',
    'CalibrationError',
    'Weight',
    'parse_weight',
]
