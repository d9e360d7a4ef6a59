"""KD on the class logits and on the DFL bins, GFL R50 <- GFL R101."""

_base_ = [
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    '../../_base_/teachers/gfl_r101_ms-2x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # Bernoulli KL, positions weighted by the teacher's score, the default;
                # temperature: recommended
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,  # recommended
                name='kd',
            ),
            dict(
                # temperature: LD (its configs in mmdet)
                loss=dict(type='KDLoss', temperature=10.0),
                student='dfl_logits',
                select='positive',  # as LD's main region
                weight=0.0147,  # LD's 0.25 is a mean over the 17 bins, this a sum: 0.25 / 17
                name='kd_bins',
            ),
        ],
    )
]
