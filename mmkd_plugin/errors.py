"""Errors of this package that are more than a bad value; tools show them as one line."""


class TapError(ValueError):
    """A tap that does not fit the model."""


class ProbeError(ValueError):
    """A model that cannot run on the probe image."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what to do."""
