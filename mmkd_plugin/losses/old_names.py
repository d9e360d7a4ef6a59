"""Names from before, which a user's loss on logits may still define or call."""

from __future__ import annotations

import warnings
from typing import Any

from ..checks import carry_old_names


class OldNames:
    """Gives what a subclass defines under an old name to the new one, and warns."""

    set_activation: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        carry_old_names(cls, alone='one_column_refusal', contrasts='compares_rows')
        if 'adopt' in vars(cls):
            _hear_by_adopt(cls)

    def adopt(self, activation: str, background: bool = False) -> None:
        """The old name of ``set_activation``."""
        if type(self).adopt is OldNames.adopt:
            self.set_activation(activation, background)


def _hear_by_adopt(cls: Any) -> None:
    """Lets a loss that overrides ``adopt`` hear by it what it is told by the new name."""
    warnings.warn(f'{cls.__name__}.adopt is called set_activation now.', DeprecationWarning, 3)
    adopt = cls.adopt

    def set_activation(self: Any, activation: str, background: bool = False) -> None:
        super(cls, self).set_activation(activation, background)
        adopt(self, activation, background)  # its own super().adopt() does nothing more

    cls.set_activation = cls.adopt = set_activation
