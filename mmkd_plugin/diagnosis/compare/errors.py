"""What stops a comparison."""

from __future__ import annotations


class CompareError(ValueError):
    """Runs that cannot be compared; the message says what is missing and what to do."""
