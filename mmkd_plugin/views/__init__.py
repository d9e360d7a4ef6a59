"""What a model's tensors mean: views on its class logits, and on plain module taps.

A term names a view by its name (``student='cls_logits'``) or a tap by a module path. New kinds of
heads plug in with :func:`register_view`; nothing else changes.
"""

from . import classifier  # noqa: F401  (registers its view)
from .base import TapView, View, make_view, register_view, view_names

__all__ = ['TapView', 'View', 'make_view', 'register_view', 'view_names']
