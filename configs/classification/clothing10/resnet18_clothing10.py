_base_ = '../_base_/clothing10.py'

model = dict(backbone=dict(type='TorchvisionBackbone', name='resnet18'))
optim_wrapper = dict(optimizer=dict(lr=0.05))
