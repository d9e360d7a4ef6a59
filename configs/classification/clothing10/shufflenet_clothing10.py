_base_ = '../_base_/clothing10.py'

model = dict(backbone=dict(type='TorchvisionBackbone', name='shufflenet_v2_x0_5'))
