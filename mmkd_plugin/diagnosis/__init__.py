"""What can be known of a pair before a run, and of runs after it."""

from .intervals import paired_interval

__all__ = ['paired_interval']
