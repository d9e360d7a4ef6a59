_base_ = '../_base_/cifar100_240e.py'

model = dict(backbone=dict(type='CIFARShuffleNetV2'))
optim_wrapper = dict(optimizer=dict(lr=0.01))  # RepDistiller and mdistiller, official code
