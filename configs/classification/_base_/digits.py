"""What the networks of ../digits share: from scratch, 400 steps.

Learning rates: best of a grid on the val split, teacher and student alone.
"""

_base_ = ['./datasets/digits.py', './schedules/small_set.py', './runtime.py']

max_epochs = 80
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=20),
    dict(_base_.param_scheduler[1], end=max_epochs, T_max=max_epochs),
]
default_hooks = dict(logger=dict(interval=5))
