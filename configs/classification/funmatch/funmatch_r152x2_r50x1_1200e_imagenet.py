"""1,200 epochs, the official code's "good middle ground". Every number: official code."""

_base_ = '../_base_/funmatch_imagenet.py'

steps = 367835
train_cfg = dict(max_iters=steps)
optim_wrapper = dict(optimizer=dict(lr=3e-2, weight_decay=0.01))
param_scheduler = [_base_.warmup, dict(_base_.decay, end=steps, T_max=steps - 5000)]
match = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', name='funmatch')
custom_hooks = [dict(type='DistillHook', teacher=_base_.teacher, terms=[match], task_weight=0.0)]
