_base_ = './shufflenet_clothing10.py'

teacher = dict(
    config='mmkd_plugin::classification/clothing10/resnet18_clothing10.py',
    checkpoint='work_dirs/resnet18_clothing10/epoch_13.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
