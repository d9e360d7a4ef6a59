"""The demo's distilled student: the student's config plus one hook."""

_base_ = './gfl_r18-quarter_digits.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=dict(
            config='mmkd_plugin::demo/gfl_r18_digits.py',
            checkpoint='work_dirs/demo/teacher/epoch_8.pth',
        ),
        recipe='gdd',
    )
]
