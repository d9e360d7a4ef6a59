"""Handwritten digits on textured backgrounds (mmkd_plugin.datasets.digits); made on first use.

A task adds the kind of its data set, the pipelines and the metric.
"""

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

data_root = 'data/digits'
digits = dict(image_size=96, train=800, val=200, seed=0)

train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', data_root=data_root, digits=digits),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='val', data_root=data_root, digits=digits, test_mode=True),
)
test_dataloader = val_dataloader
