"""Where to listen in a model, and what was heard there; running no more of it than is needed."""

from ..errors import TapError
from .paths import TapConfig, TapPoint, is_loss_input, match_paths, parse_tap, refuse_checkpointed
from .recorder import Capture, Crop, Recorder

__all__ = [
    'Capture',
    'Crop',
    'Recorder',
    'TapConfig',
    'TapError',
    'TapPoint',
    'is_loss_input',
    'match_paths',
    'parse_tap',
    'refuse_checkpointed',
]
