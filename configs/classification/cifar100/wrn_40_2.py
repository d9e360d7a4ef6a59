_base_ = '../_base_/cifar100_240e.py'

model = dict(backbone=dict(type='CIFARWideResNet', depth=40, width=2))
