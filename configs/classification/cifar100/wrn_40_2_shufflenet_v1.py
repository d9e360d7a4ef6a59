_base_ = './shufflenet_v1.py'

teacher = dict(
    config='mmkd_plugin::classification/cifar100/wrn_40_2.py',
    checkpoint='work_dirs/wrn_40_2/epoch_240.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
