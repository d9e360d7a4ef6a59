"""The digits set for MMSegmentation: background and ten digits, per pixel; see digits.py."""

_base_ = './digits.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = train_pipeline

train_dataloader = dict(
    batch_size=8, dataset=dict(type='mmkd_plugin.DigitsSegDataset', pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(type='mmkd_plugin.DigitsSegDataset', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
