_base_ = '../_base_/digits.py'

model = dict(backbone=dict(type='CIFARResNet', depth=14))
optim_wrapper = dict(optimizer=dict(lr=0.02))
