"""What function matching changes in a training config beside its term: mixup and the optimizer.

The other recipes are a loss and leave the training alone. This one is a way to train (papers:
*Knowledge distillation: a good teacher is patient and consistent*, 2021), so ``tools/train.py
--recipe funmatch`` also edits the config; ``configs/classification/cifar100/funmatch_*.py`` and
``configs/classification/funmatch/`` have it written out.
"""

from __future__ import annotations

from mmengine.config import Config, ConfigDict

WARMUP_SHARE = (
    0.06  # official code: 1,500 of 19,922 to 367,835 steps; recommended for other lengths
)

# How to compute, not what to compute: mixed precision and gradient accumulation stay.
_KEPT = ('type', 'dtype', 'loss_scale', 'accumulative_counts')


def apply_to(cfg: Config) -> None:
    """Edits the config of a student: mixup of one coefficient per step, AdamW, cosine.

    The crops stay those of the config; the epochs, too, and they want to be many.

    Raises:
        ValueError: if the model's images are not mixed by our data preprocessor, or the training
            does not count epochs.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
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
    cfg.optim_wrapper = ConfigDict(
        **kept,
        # recommended for CIFAR (1e-3 to 3e-3 and 0.1, which is wd/lr of the official code)
        optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.1),
        clip_grad=dict(max_norm=1.0),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    )
    warmup = min(max(1, round(WARMUP_SHARE * epochs)), epochs - 1)
    cosine = dict(type='CosineAnnealingLR', by_epoch=True, eta_min=0.0, convert_to_iter_based=True)
    cosine.update(begin=warmup, end=epochs, T_max=epochs - warmup)
    cfg.param_scheduler = [ConfigDict(cosine)]
    if warmup:
        ramp = dict(type='LinearLR', by_epoch=True, start_factor=1e-9, convert_to_iter_based=True)
        cfg.param_scheduler.insert(0, ConfigDict(ramp, begin=0, end=warmup))
    hook = dict(type='mmkd_plugin.RecalibrateBNHook')
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
