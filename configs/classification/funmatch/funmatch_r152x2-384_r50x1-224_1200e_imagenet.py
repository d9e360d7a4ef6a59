"""Two resolutions: one crop and flip, resized to 384 for the teacher and to 224 for the student."""

_base_ = './funmatch_r152x2_r50x1_1200e_imagenet.py'

train_dataloader = dict(dataset=dict(transforms=[dict(_base_.view, teacher_size=384)]))
teacher = dict(
    # top-1 84.3 at 384 (official README), converted by timm
    checkpoint='https://huggingface.co/timm/resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384/resolve/main/pytorch_model.bin',
)
custom_hooks = [
    dict(
        type='DistillHook',
        teacher=dict(_base_.teacher, **teacher),
        terms=[_base_.match],
        task_weight=0.0,
    )
]
