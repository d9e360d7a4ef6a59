"""Small sets: SGD, a warm-up and a cosine to 0. How long, the base of the set says; how fast, it or the network."""

train_cfg = dict(type='EpochBasedTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4),
)
# A set says where the warm-up ends (`end`), and the cosine (`end` and `T_max`).
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, begin=0, start_factor=0.02),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, eta_min=0.0, convert_to_iter_based=True),
]
