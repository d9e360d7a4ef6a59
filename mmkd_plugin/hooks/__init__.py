"""MMEngine hooks: the control plane of distillation."""

from .compiled_step_hook import CompiledStepHook
from .distill_hook import DistillHook
from .recalibrate_bn_hook import RecalibrateBNHook
from .safe_checkpoint_hook import SafeCheckpointHook, mend_last_checkpoint
from .step_seed_hook import StepSeedHook

__all__ = [
    'CompiledStepHook',
    'DistillHook',
    'RecalibrateBNHook',
    'SafeCheckpointHook',
    'StepSeedHook',
    'mend_last_checkpoint',
]
