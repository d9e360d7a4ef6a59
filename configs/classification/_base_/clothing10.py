"""What the networks of ../clothing10 share: from scratch, 13 epochs.

Learning rates, seen on the validation split with a network alone: of 0.05, 0.1 and 0.2 the best for the student; the
only one tried to the end for the teacher.
"""

_base_ = ['./datasets/clothing10.py', './schedules/small_set.py', './runtime.py']

max_epochs = 13
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=48),
    dict(_base_.param_scheduler[1], end=max_epochs, T_max=max_epochs),
]
default_hooks = dict(logger=dict(interval=24))
