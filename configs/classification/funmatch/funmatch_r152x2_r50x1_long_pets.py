"""30,000 epochs. Every number: official code."""

_base_ = '../_base_/funmatch_pets.py'

steps = 194062
train_cfg = dict(max_iters=steps)
optim_wrapper = dict(optimizer=dict(lr=3e-3, weight_decay=1e-5 / 3e-3))
param_scheduler = [_base_.warmup, dict(_base_.decay, end=steps, T_max=steps - 1500)]
match = dict(loss=dict(type='KDLoss', temperature=2.0), student='cls_logits', name='funmatch')
custom_hooks = [dict(type='DistillHook', teacher=_base_.teacher, terms=[match], task_weight=0.0)]
