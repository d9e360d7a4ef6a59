"""CKD (contrastive, sample by sample), RetinaNet R50 <- RetinaNet R101.

The paper and the official code have two-stage detectors only.
"""

_base_ = '../../_base_/pairs/retinanet-r101_retinanet-r50_2x_coco.py'

custom_hooks = [
    dict(
        type='mmkd_plugin.DistillHook',
        teacher=_base_.teacher,
        terms=[
            dict(
                # tau: official code. Samples: positives and the teacher's most confident positions,
                # 512 an image as in the RoI sampler, the default on dense heads: recommended
                loss=dict(type='CKDLoss', temperature=1.0),
                student='cls_logits',
                weight=10.0,  # recommended: chosen on digits; 0.1, as on RoIs, moves nothing there
                name='ckd',
            ),
        ],
    )
]
