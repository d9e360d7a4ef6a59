"""The digits set with boxes; see digits.py."""

_base_ = './digits.py'

image_scale = (96, 96)

# No flips: a mirrored digit is another shape. Resize changes nothing here, but heads ask for the
# scale factor that it notes.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type='mmkd_plugin.DigitsCocoDataset',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(dataset=dict(type='mmkd_plugin.DigitsCocoDataset', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=_base_.data_root + '/annotations/val.json',
    metric='bbox',
    classwise=True,
)
test_evaluator = val_evaluator
