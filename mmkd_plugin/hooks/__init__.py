"""MMEngine hooks: the control plane of distillation."""

from .distill_hook import DistillHook
from .safe_checkpoint_hook import SafeCheckpointHook, mend_last_checkpoint

__all__ = ['DistillHook', 'SafeCheckpointHook', 'mend_last_checkpoint']
