"""What is known of the type of a model that another package has written: nothing."""

from __future__ import annotations

from typing import Any

# A model, or a head of one. Code asks it for what it has; no class says what that is.
AnyModule = Any
