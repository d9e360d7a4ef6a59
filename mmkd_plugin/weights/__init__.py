"""The weight of a term: a number, or a target that it is calibrated to in the first iterations."""

from .calibration import MEASURED, STEPS, Calibration, CalibrationError
from .target import AUTO, TARGETS, Weight, parse_weight

__all__ = [
    'AUTO',
    'MEASURED',
    'STEPS',
    'TARGETS',
    'Calibration',
    'CalibrationError',
    'Weight',
    'parse_weight',
]
