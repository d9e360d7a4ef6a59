"""MMEngine hooks: the control plane of distillation."""

from ..saving.mend import mend_last_checkpoint
from .compiled_step_hook import CompiledStepHook
from .distill_hook import DistillHook
from .distill_vis_hook import DistillVisHook
from .interrupt_hook import InterruptHook
from .recalibrate_bn_hook import RecalibrateBNHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .step_seed_hook import StepSeedHook

__all__ = [
    'CompiledStepHook',
    'DistillHook',
    'DistillVisHook',
    'InterruptHook',
    'RecalibrateBNHook',
    'SafeCheckpointHook',
    'StepSeedHook',
    'mend_last_checkpoint',
]
