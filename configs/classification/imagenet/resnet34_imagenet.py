_base_ = '../_base_/imagenet_100e.py'

model = dict(backbone=dict(type='TorchvisionBackbone', name='resnet34'))
