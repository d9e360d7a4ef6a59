"""What function matching changes in a training config beside its term: mixup and the optimizer.

The other recipes are a loss and leave the training alone. This one is a way to train (papers:
*Knowledge distillation: a good teacher is patient and consistent*, 2021), so ``tools/train.py
--recipe funmatch`` also edits the config; ``configs/classification/cifar100/funmatch_*.py`` and
``configs/classification/funmatch/`` have it written out.
"""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict

# The official code's 1,500 steps are 1 to 23 percent of its runs; this share is recommended.
WARMUP_SHARE = 0.06

# How to compute, not what to compute: mixed precision and gradient accumulation stay.
_KEPT = ('type', 'dtype', 'loss_scale', 'accumulative_counts')


def training(
    epochs: int, lr: float = 3e-3, warmup: int | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Optimizer and schedule for a training of so many epochs.

    Decay on kernels only, clipping and the shape of the schedule: official code. Rate and decay:
    recommended for CIFAR (1e-3 to 3e-3, and 0.1, which is wd/lr of the official code).

    Args:
        epochs: length of the training.
        lr: largest learning rate.
        warmup: epochs of the linear ramp; by default their published share of the training.

    Returns:
        ``optim_wrapper`` (without its type) and ``param_scheduler`` of a config.
    """
    if warmup is None:
        warmup = max(1, round(WARMUP_SHARE * epochs))
    warmup = min(warmup, epochs - 1)
    optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.1),
        clip_grad=dict(max_norm=1.0),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    )
    cosine = dict(type='CosineAnnealingLR', by_epoch=True, eta_min=0.0, convert_to_iter_based=True)
    schedule = [dict(cosine, begin=warmup, end=epochs, T_max=epochs - warmup)]
    if warmup:  # a start of 0 is refused
        ramp = dict(type='LinearLR', by_epoch=True, start_factor=1e-9, convert_to_iter_based=True)
        schedule.insert(0, dict(ramp, begin=0, end=warmup))
    return optim_wrapper, schedule


def apply_to(cfg: Config) -> None:
    """Edits the config of a student: mixup of one coefficient per step, AdamW, cosine.

    The crops stay those of the config; the epochs, too, and they want to be many.

    Raises:
        ValueError: if the model's images are not mixed by our data preprocessor, or the training
            does not count epochs.
    """
    preprocessor: Any = cfg.model.get('data_preprocessor') or {}
    if 'ClsDataPreprocessor' not in str(preprocessor.get('type')):
        raise ValueError(
            "funmatch mixes the images in ClsDataPreprocessor, but the config's data_preprocessor "
            f'is {preprocessor.get("type")!r}. Use that one, or mix the images in your pipeline '
            'and take --recipe kd --task-weight 0.'
        )
    epochs = (cfg.get('train_cfg') or {}).get('max_epochs')
    if not epochs:
        raise ValueError(
            'funmatch as a recipe plans its schedule in epochs, but train_cfg has no max_epochs. '
            'Start from a config in configs/classification/funmatch, which counts steps.'
        )
    preprocessor.mixup = 1.0
    kept = {k: cfg.optim_wrapper[k] for k in _KEPT if k in cfg.optim_wrapper}
    optim_wrapper, schedule = training(epochs)
    cfg.optim_wrapper = ConfigDict(optim_wrapper, **kept)
    cfg.param_scheduler = [ConfigDict(part) for part in schedule]
    hook = dict(type='mmkd_plugin.RecalibrateBNHook', num_batches=20)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
