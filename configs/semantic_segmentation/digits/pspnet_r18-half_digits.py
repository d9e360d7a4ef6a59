"""Teacher: PSPNet with a half-width ResNet-18, from scratch on the digits' semantic maps."""

_base_ = [
    '../../_base_/models/pspnet_r18_small-images.py',
    '../../_base_/datasets/digits_semantic.py',
    '../../_base_/schedules/small-images_adamw.py',
    '../../_base_/default_runtime.py',
]

model = dict(backbone=dict(base_channels=32, stem_channels=32), decode_head=dict(in_channels=128))

default_scope = 'mmseg'
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer')
optim_wrapper = dict(optimizer=dict(lr=4e-3))
