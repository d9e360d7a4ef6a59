"""The teacher of ImageNet, whose fine-tuned weights are published: nothing to train."""

_base_ = '../_base_/funmatch_imagenet.py'

model = dict(backbone=dict(name='resnetv2_152x2_bit'), data_preprocessor=dict(mixup=None))
