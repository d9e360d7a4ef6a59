"""Handwritten digits on textured backgrounds (mmkd_plugin.datasets.digits); made on first use."""

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

data_root = 'data/digits'
digits = dict(image_size=96, train=800, val=200, seed=0)
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
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmkd_plugin.DigitsCocoDataset',
        split='train',
        data_root=data_root,
        digits=digits,
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmkd_plugin.DigitsCocoDataset',
        split='val',
        data_root=data_root,
        digits=digits,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + '/annotations/val.json',
    metric='bbox',
    classwise=True,
)
test_evaluator = val_evaluator
