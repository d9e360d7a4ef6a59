"""What the small detectors with a pyramid share: a full-width ResNet-18 and 64 channels of FPN."""

_base_ = './r18_small-images.py'

model = dict(
    neck=dict(
        type='FPN',
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        start_level=1,
        add_extra_convs='on_output',
        num_outs=3,
    ),
)
