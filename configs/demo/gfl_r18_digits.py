"""The demo's teacher: GFL with a full-width ResNet-18 and a 64-channel neck, trained from scratch."""

_base_ = [
    '../_base_/models/gfl_r18_small-images.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/small-images_adamw.py',
    '../_base_/default_runtime.py',
]
