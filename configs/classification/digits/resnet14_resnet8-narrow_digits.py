_base_ = './resnet8-narrow_digits.py'

teacher = dict(
    config='mmkd_plugin::classification/digits/resnet14_digits.py',
    checkpoint='work_dirs/resnet14_digits/epoch_80.pth',
)
custom_hooks = [dict(type='DistillHook', teacher=teacher, recipe='kd')]
