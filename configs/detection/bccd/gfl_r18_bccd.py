# Teacher: GFL, ResNet-18 of full width, 64-channel neck, from scratch on BCCD at 144x108.
_base_ = [
    '../../_base_/models/gfl_r18_small-images.py',
    '../../_base_/datasets/bccd_detection.py',
    '../../_base_/schedules/bccd_18e.py',
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=16),  # 144x108 becomes 144x112
    bbox_head=dict(
        num_classes=3,
        # cells are 10 to 38 pixels wide here; GFL's 8 is meant for 1333x800
        anchor_generator=dict(octave_base_scale=2.5),
    ),
    test_cfg=dict(max_per_img=100),
)
