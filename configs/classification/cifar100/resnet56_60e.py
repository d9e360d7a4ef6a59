_base_ = '../_base_/cifar100_60e.py'

model = dict(backbone=dict(type='CIFARResNet', depth=56))
