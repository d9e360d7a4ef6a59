_base_ = './shufflenet_v1.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/resnet32x4.py',
    checkpoint='work_dirs/resnet32x4/epoch_240.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
