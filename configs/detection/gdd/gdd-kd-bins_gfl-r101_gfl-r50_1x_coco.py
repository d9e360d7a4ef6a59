"""GDD on the FPN, KD on class logits and DFL bins, GFL R50 <- GFL R101."""

_base_ = [
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    '../../_base_/teachers/gfl_r101_ms-2x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

# max_norm 35: GDD official configs of all detection pairs. Learning rate and schedule: the base.
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # temperature 4: GDD official code; noise per channel: recommended
                loss=dict(type='GDDLoss', temperature=4.0, noise='channel'),
                student='neck.fpn_convs.*.conv',  # P3-P7: as GDD's RepPoints config
                weight=65.0,  # recommended: taken over from GDD's one-stage pair (RepPoints)
                name='gdd',
            ),
            dict(
                # Bernoulli KL, positions weighted by the teacher's score, the default;
                # temperature: recommended
                loss=dict(type='KDLoss', temperature=1.0),
                student='cls_logits',
                weight=1.0,  # recommended
                name='kd',
            ),
            dict(
                # LD (its configs and code in mmdet): the sum over positives and four sides,
                # weighted by the student's score, divided by 4; mean over 17 bins, here a sum
                loss=dict(type='KDLoss', temperature=10.0),
                student='dfl_logits',
                select=dict(by='positive', weights='student_score', reduction='sum'),
                weight=0.25 / 4 / 17,
                name='kd_bins',
            ),
        ],
        init_student='neck+head',  # recommended: both heads have the same shape
    )
]
