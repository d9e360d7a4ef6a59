"""A quarter of the common schedule, to try things: never beside numbers of 240 epochs. Recommended."""

_base_ = './cifar100_240e.py'

train_dataloader = dict(batch_size=128)
train_cfg = dict(max_epochs=60)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[37, 45, 52], gamma=0.1)]
