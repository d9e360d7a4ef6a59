"""Metrics."""

from .cls_accuracy import ClsAccuracy

__all__ = ['ClsAccuracy']
