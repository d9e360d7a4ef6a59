"""MMEngine hooks: the control plane of distillation."""

from .distill_hook import DistillHook
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = ['DistillHook', 'SafeCheckpointHook']
