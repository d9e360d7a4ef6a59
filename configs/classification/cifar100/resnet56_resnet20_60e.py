_base_ = './resnet20_60e.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/resnet56_60e.py',
    checkpoint='work_dirs/resnet56_60e/epoch_60.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
