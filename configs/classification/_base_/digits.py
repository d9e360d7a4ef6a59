"""What the networks of ../digits share: from scratch, 400 steps.

Learning rates: best of a grid on the val split, teacher and student alone.
"""

_base_ = ['./datasets/digits.py', './schedules/small_set.py', './runtime.py']

max_epochs = 80
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, begin=0, end=20, start_factor=0.02),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min=0.0,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(logger=dict(interval=5))
