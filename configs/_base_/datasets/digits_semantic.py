"""The digits set for MMSegmentation: background and ten digits, per pixel; see digits_detection.py."""

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

data_root = 'data/digits'
digits = dict(image_size=96, train=800, val=200, seed=0)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmkd_plugin.DigitsSegDataset',
        split='train',
        data_root=data_root,
        digits=digits,
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
        type='mmkd_plugin.DigitsSegDataset',
        split='val',
        data_root=data_root,
        digits=digits,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
