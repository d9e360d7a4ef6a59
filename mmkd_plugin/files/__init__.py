"""Files that are there as a whole or not at all."""

from .whole import whole_file

__all__ = ['whole_file']
