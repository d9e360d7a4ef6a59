_base_ = './resnet20.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/resnet56.py',
    checkpoint='work_dirs/resnet56/epoch_240.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
