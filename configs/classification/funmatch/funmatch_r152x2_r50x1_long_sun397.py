"""3,000 epochs. Every number: official code."""

_base_ = '../_base_/funmatch_sun397.py'

steps = 446062
train_cfg = dict(max_iters=steps)
optim_wrapper = dict(optimizer=dict(lr=1e-2, weight_decay=3e-5 / 1e-2))
param_scheduler = [_base_.warmup, dict(_base_.decay, end=steps, T_max=steps - 1500)]
match = dict(loss=dict(type='KDLoss', temperature=10.0), student='cls_logits', name='funmatch')
custom_hooks = [dict(type='DistillHook', teacher=_base_.teacher, terms=[match], task_weight=0.0)]
